#include "storage/damage_list.h"

#include <spdlog/spdlog.h>

#include "base/limits.h"

namespace tidemark::storage {

bool DamageList::report(DamagedExtent found) {
  const DamagedExtent said = found;
  bool listed = true;
  {
    const std::lock_guard lock(mutex_);
    if (list_.contains(found.place())) return false;
    if (list_.size() >= kMax) {
      if (!unlisted_.insert(found.machine).second) return false;
      listed = false;
    } else {
      list_.emplace(found.place(), std::move(found));
      size_.store(list_.size(), std::memory_order_release);
    }
    found_.fetch_add(1, std::memory_order_relaxed);
    version_.fetch_add(1, std::memory_order_release);
  }
  spdlog::error(
      "event=damage_found machine={} disk={} offset={} length={} epoch={} segment={:#x} segment_offset={} "
      "error=\"{}\"{}",
      said.machine.to_string(), said.disk.value(), said.first_granule * limits::kGranuleSize,
      std::uint64_t{said.granules} * limits::kGranuleSize, said.epoch.value(), said.segment.value(), said.offset,
      said.what, listed ? "" : " note=\"the list of damage is full: more of this machine is not listed\"");
  return true;
}

void DamageList::restore(DamagedExtent known) {
  const std::lock_guard lock(mutex_);
  if (list_.size() < kMax) list_.emplace(known.place(), std::move(known));
  size_.store(list_.size(), std::memory_order_release);
  version_.fetch_add(1, std::memory_order_release);
}

void DamageList::forget(SegmentId segment, std::uint32_t offset) {
  const std::lock_guard lock(mutex_);
  if (list_.erase({segment, offset}) == 0) return;
  size_.store(list_.size(), std::memory_order_release);
  version_.fetch_add(1, std::memory_order_release);
}

void DamageList::stamp(WallMicros now_us) {
  const std::lock_guard lock(mutex_);
  for (auto& [place, extent] : list_) {
    if (extent.found_us == 0) extent.found_us = now_us;
  }
}

std::vector<DamagedExtent> DamageList::all() const {
  std::vector<DamagedExtent> all;
  const std::lock_guard lock(mutex_);
  all.reserve(list_.size());
  for (const auto& [place, extent] : list_) all.push_back(extent);
  return all;
}

std::set<MachineId> DamageList::unlisted() const {
  const std::lock_guard lock(mutex_);
  std::set<MachineId> machines = unlisted_;
  machines.insert(unlisted_before_.begin(), unlisted_before_.end());
  return machines;
}

void DamageList::begin_pass() {
  const std::lock_guard lock(mutex_);
  unlisted_before_.merge(unlisted_);
  unlisted_.clear();
}

void DamageList::end_pass() {
  const std::lock_guard lock(mutex_);
  unlisted_before_.clear();
  version_.fetch_add(1, std::memory_order_release);
}

}  // namespace tidemark::storage
