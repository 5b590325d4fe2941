// What was written to a disk of a clone and is not in the index yet: runs of granules over the newest view. Belongs to
// its clone's writer, under its mutex.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/ids.h"

namespace tidemark::server {

// Bytes of written data, given back when the last run that shows some of it goes.
class OverlayChunk {
 public:
  OverlayChunk(std::shared_ptr<std::atomic<std::uint64_t>> total, std::size_t size)
      : total_(std::move(total)), bytes_(size) {
    *total_ += bytes_.size();
  }
  ~OverlayChunk() { *total_ -= bytes_.size(); }
  OverlayChunk(const OverlayChunk&) = delete;
  OverlayChunk& operator=(const OverlayChunk&) = delete;
  std::span<std::byte> span() { return bytes_.span(); }
  std::span<const std::byte> span() const { return bytes_.span(); }

 private:
  const std::shared_ptr<std::atomic<std::uint64_t>> total_;
  AlignedBuffer bytes_;
};

class Overlay {
 public:
  struct Run {
    std::uint64_t first = 0, granules = 0;
    std::shared_ptr<const OverlayChunk> data;  // null: zeroes
    std::uint64_t offset = 0;                  // of `first` in it, in granules
    EpochNumber epoch;
  };

  void put(Run run);
  // Those that overlap, in order, cut to the range.
  std::vector<Run> find(std::uint64_t first, std::uint64_t granules) const;
  void drop_until(EpochNumber epoch);  // they show in the view
  bool empty() const { return runs_.empty(); }

 private:
  std::map<std::uint64_t, Run> runs_;  // by first granule; they do not overlap
};

}  // namespace tidemark::server
