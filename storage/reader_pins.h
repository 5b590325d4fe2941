// Who reads, and since when: so that a segment is given back only when no reader is left that began while something
// still referred to it. A reader that begins later cannot find a way into it.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "base/ids.h"
#include "base/planted.h"

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
  // Only readers keep it from being released, as of the last time that was asked.
  bool kept_by_readers(SegmentId segment) const {
    const std::lock_guard lock(mutex_);
    const auto found = unreferenced_.find(segment);
    return found != unreferenced_.end() && !reading_.empty() && *reading_.begin() < found->second;
  }
  void released(SegmentId segment) {
    const std::lock_guard lock(mutex_);
    unreferenced_.erase(segment);
  }

  class Scope {
   public:
    explicit Scope(ReaderPins& pins) : pins_(pins), ticket_(pins.begin()) {}
    ~Scope() { pins_.end(ticket_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    ReaderPins& pins_;
    const Ticket ticket_;
  };

 private:
  mutable std::mutex mutex_;
  Ticket next_ = 1;
  std::set<Ticket> reading_;
  std::map<SegmentId, Ticket> unreferenced_;
};

// Which points are being read, and which are being dropped: never both. Thread-safe.
class PointUses {
 public:
  // False: it is being dropped, and must not be read.
  bool begin(const MachineId& machine, EpochNumber epoch) {
    const std::lock_guard lock(mutex_);
    const Point point(machine, epoch);
    if (dropping_.contains(point)) return false;
    ++uses_[point];
    return true;
  }
  void end(const MachineId& machine, EpochNumber epoch) {
    const std::lock_guard lock(mutex_);
    const auto found = uses_.find({machine, epoch});
    if (--found->second == 0) uses_.erase(found);
  }
  // From now on nobody can begin to read it, until dropped() was called; false: somebody is reading it.
  bool drop(const MachineId& machine, EpochNumber epoch) {
    const std::lock_guard lock(mutex_);
    const Point point(machine, epoch);
    if (uses_.contains(point) && !planted(Planted::drops_what_is_in_use)) return false;
    dropping_.insert(point);
    return true;
  }
  // The index does not have it any more.
  void dropped(const MachineId& machine, EpochNumber epoch) {
    const std::lock_guard lock(mutex_);
    dropping_.erase({machine, epoch});
  }

 private:
  using Point = std::pair<MachineId, EpochNumber>;
  std::mutex mutex_;
  std::map<Point, std::uint64_t> uses_;
  std::set<Point> dropping_;
};

}  // namespace tidemark::storage
