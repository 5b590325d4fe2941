// What the index says of whole regions as of a commit, kept for who reads there again: a random read asks RocksDB for
// all the deltas of a region, and a shard's thread must not ask it at all.
//
// What shows as of a commit stays the same for as long as the point is held; where it stands does not: blocks are
// moved, and segments used again. So a map is good while the volume's number in PlaceVersions is what it was before the
// index was asked, seen with a pin of ReaderPins taken before: what moves later waits for that pin before it gives
// back.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/planted.h"
#include "storage/index.h"
#include "storage/sharded_lru.h"

namespace tidemark::storage {

// A number for each volume (or for some together), another one after each change of where its blocks stand. One thread
// changes; any may ask.
class PlaceVersions {
 public:
  // Nothing: they are being moved.
  std::optional<std::uint64_t> of(VolumeId volume) const {
    const Slot& slot = slots_[volume.value() % kSlots];
    const std::uint64_t ended = slot.ended;
    return slot.begun == ended ? std::optional(ended) : std::nullopt;
  }

  // From before the first place changes until the last one did.
  class Change {
   public:
    Change(PlaceVersions& versions, std::set<VolumeId> volumes) : versions_(versions), volumes_(std::move(volumes)) {
      if (planted(Planted::moved_unseen)) volumes_.clear();
      for (const VolumeId volume : volumes_) ++versions_.slots_[volume.value() % kSlots].begun;
    }
    ~Change() {
      for (const VolumeId volume : volumes_) ++versions_.slots_[volume.value() % kSlots].ended;
    }
    Change(const Change&) = delete;
    Change& operator=(const Change&) = delete;

   private:
    PlaceVersions& versions_;
    std::set<VolumeId> volumes_;
  };

 private:
  static constexpr std::size_t kSlots = 1024;
  struct Slot {
    std::atomic<std::uint64_t> begun{0}, ended{0};
  };
  std::array<Slot, kSlots> slots_;
};

// Thread-safe.
class RegionMaps {
 public:
  struct Key {
    std::uint64_t store = 0;  // one opening of one partition
    VolumeId volume;
    Lsn as_of;
    std::uint32_t region = 0;
    bool operator==(const Key&) const = default;
    std::uint64_t hash() const {
      constexpr std::uint64_t kMix = 0x9e3779b97f4a7c15ULL;
      return (((store * kMix + volume.value()) * kMix + as_of.value()) * kMix + region) * kMix;
    }
  };
  struct Map {
    std::uint64_t version = 0;
    std::vector<Extent> extents;  // as Index::lookup gives them
  };

  explicit RegionMaps(std::uint64_t bytes_max) : maps_(bytes_max) {}

  std::shared_ptr<const Map> find(const Key& key) { return maps_.find(key); }  // null: there is none
  void put(const Key& key, std::shared_ptr<const Map> map) {
    const std::uint64_t size = sizeof(Map) + map->extents.capacity() * sizeof(Extent) + kOverhead;
    maps_.put(key, std::move(map), size);
  }
  std::uint64_t bytes() const { return maps_.bytes(); }

 private:
  static constexpr std::uint64_t kOverhead = 192;  // of the lists and tables, about
  ShardedLru<Key, std::shared_ptr<const Map>> maps_;
};

}  // namespace tidemark::storage
