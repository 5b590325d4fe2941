// Who reads, and since when: so that a segment is given back only when no reader is left that began while something
// still referred to it. A reader that begins later cannot find a way into it.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <set>

#include "base/ids.h"

namespace tidemark::storage {

// Thread-safe.
class ReaderPins {
 public:
  using Ticket = std::uint64_t;

  Ticket begin() {
    const std::lock_guard lock(mutex_);
    reading_.insert(next_);
    return next_++;
  }
  void end(Ticket ticket) {
    const std::lock_guard lock(mutex_);
    reading_.erase(ticket);
  }
  // The segment is known to be unreferenced from the first call on; true once every reader from before is gone.
  bool may_release(SegmentId segment) {
    const std::lock_guard lock(mutex_);
    const Ticket since = unreferenced_.try_emplace(segment, next_).first->second;
    return reading_.empty() || *reading_.begin() >= since;
  }
  void released(SegmentId segment) {
    const std::lock_guard lock(mutex_);
    unreferenced_.erase(segment);
  }

 private:
  std::mutex mutex_;
  Ticket next_ = 1;
  std::set<Ticket> reading_;
  std::map<SegmentId, Ticket> unreferenced_;
};

}  // namespace tidemark::storage
