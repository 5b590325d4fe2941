// Stored blocks that were found to be damaged: by a reader, by the settler, by the checker, at recovery. Whoever finds
// one reports it here; the checker (storage/checker.h) keeps the list across restarts and works out which points it
// concerns. An entry goes when nothing refers to the block any more, or when it can be read again.
//
// Bounded: beyond kMax only the machine is remembered, until a scrub has come through since.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"

namespace tidemark::storage {

// One block, whole.
struct DamagedExtent {
  MachineId machine;
  VolumeId volume;
  DiskId disk;
  EpochNumber epoch;  // that wrote it
  std::uint64_t first_granule = 0;
  std::uint32_t granules = 0;
  SegmentId segment;
  std::uint32_t offset = 0;       // of its header in the segment
  std::uint32_t stored_size = 0;  // behind the header
  std::string what;               // is wrong with it
  WallMicros found_us = 0;        // set by the checker

  std::pair<SegmentId, std::uint32_t> place() const { return {segment, offset}; }
};

// Thread-safe.
class DamageList {
 public:
  static constexpr std::size_t kMax = 4096;

  // Logged when it is new. True: it is.
  bool report(DamagedExtent found);
  // Put back at the start, without a word.
  void restore(DamagedExtent known);
  void restore_unlisted(const MachineId& machine) {
    const std::lock_guard lock(mutex_);
    unlisted_.insert(machine);
  }

  // It can be read after all, or nothing needs it any more.
  void forget(SegmentId segment, std::uint32_t offset);
  void stamp(WallMicros now_us);  // those that have no time yet

  std::vector<DamagedExtent> all() const;
  std::size_t size() const { return size_.load(std::memory_order_acquire); }
  // Machines with damage for which there was no room.
  std::set<MachineId> unlisted() const;
  // A look at everything begins: what it does not find again is not there any more when it ends.
  void begin_pass();
  void end_pass();

  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }  // changes with the list
  std::uint64_t found() const { return found_.load(std::memory_order_relaxed); }      // new ones, since the start

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<SegmentId, std::uint32_t>, DamagedExtent> list_;
  std::set<MachineId> unlisted_, unlisted_before_;
  std::atomic<std::size_t> size_{0};
  std::atomic<std::uint64_t> version_{0}, found_{0};
};

}  // namespace tidemark::storage
