// Decoded blocks, by the place where they stand: a segment is never written twice under the same number, so what is
// cached stays right whatever happens to points and clones, and is shared by all of them. Holds at most what it was
// made for; the least recently used go first. Only blocks that were found sound come in. Of raw blocks their granules'
// hashes stay longer than the blocks do, and of regions what the index said of them. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/aligned_buffer.h"
#include "base/ids.h"
#include "storage/granule_hashes.h"
#include "storage/region_maps.h"
#include "storage/sharded_lru.h"

namespace tidemark::storage {

class BlockCache {
 public:
  struct Parts {
    std::uint64_t blocks = 0, hashes = 0, regions = 0;  // bytes
  };
  explicit BlockCache(std::uint64_t bytes_max)
      : BlockCache({.blocks = bytes_max - bytes_max / kHashesPart - bytes_max / kRegionsPart,
                    .hashes = bytes_max / kHashesPart,
                    .regions = bytes_max / kRegionsPart}) {}
  explicit BlockCache(const Parts& parts) : blocks_(parts.blocks), hashes_(parts.hashes), regions_(parts.regions) {}

  using Place = StoredPlace;
  using Block = std::shared_ptr<const AlignedBuffer>;

  Block find(const Place& place) {  // null: it is not here
    Block block = blocks_.find(place);
    (block ? hits_ : misses_).fetch_add(1, std::memory_order_relaxed);
    return block;
  }
  bool has(const Place& place) const { return blocks_.has(place); }
  void put(const Place& place, Block block) {
    const std::uint64_t size = block->size();
    if (!has(place)) blocks_.put(place, std::move(block), size);
  }
  GranuleHashes& hashes() { return hashes_; }
  RegionMaps& regions() { return regions_; }

  struct Stats {
    std::uint64_t bytes = 0, hits = 0, misses = 0;
  };
  Stats stats() const {
    return {.bytes = blocks_.bytes(),
            .hits = hits_.load(std::memory_order_relaxed),
            .misses = misses_.load(std::memory_order_relaxed)};
  }

 private:
  static constexpr std::uint64_t kHashesPart = 8, kRegionsPart = 8;

  ShardedLru<Place, Block> blocks_;
  GranuleHashes hashes_;
  RegionMaps regions_;
  std::atomic<std::uint64_t> hits_{0}, misses_{0};
};

}  // namespace tidemark::storage
