// What damage means: which points show a damaged block, and what of it is to be sent again.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "storage/checker_impl.h"
#include "storage/epoch_progress.h"

namespace tidemark::storage {

namespace {

using Granules = std::bitset<limits::kRegionGranules>;
constexpr std::chrono::seconds kLocateEvery{2};

Granules granules_of(const DeltaExtent& extent) {
  Granules granules;
  for (std::uint32_t i = 0; i < extent.count; ++i) granules.set(extent.first + i);
  return granules;
}

bool is_point(const pb::EpochEntry& epoch) { return epoch.consistency() != kFuzzy; }

void add_wanted(const DamagedExtent& extent, const std::vector<ByteRange>& ranges, std::vector<WantedRange>& to) {
  for (const ByteRange& range : ranges) to.push_back({extent.disk, range.offset, range.length});
}

void merge(std::vector<WantedRange>& ranges) {
  std::ranges::sort(ranges, [](const WantedRange& a, const WantedRange& b) {
    return std::pair(a.disk, a.offset) < std::pair(b.disk, b.offset);
  });
  std::vector<WantedRange> merged;
  for (const WantedRange& range : ranges) {
    if (!merged.empty() && merged.back().disk == range.disk &&
        range.offset <= merged.back().offset + merged.back().length) {
      merged.back().length = std::max(merged.back().length, range.offset + range.length - merged.back().offset);
    } else {
      merged.push_back(range);
    }
  }
  ranges = std::move(merged);
}

}  // namespace

// Anew whenever the list changed, and as long as there is damage whenever the index went on.
Status Checker::locate_damage() {
  const std::uint64_t version = context_->damage.version();
  const Lsn indexed = indexer_.indexed_lsn();
  if (version == located_version_) {
    if (context_->damage.size() == 0 || indexed == located_lsn_) return {};
    if (options_.background && clock_.monotonic() - located_at_ < kLocateEvery) return {};
  }
  context_->damage.stamp(clock_.wall_us());
  std::vector<DamageReport> reports;
  std::map<MachineId, std::vector<pb::EpochEntry>> epochs;
  std::map<MachineId, MachineDamage> machines;
  std::map<MachineId, std::vector<bool>> shown;  // by epoch
  for (DamagedExtent& extent : context_->damage.all()) {
    if (stopping()) return {};
    const MachineId machine = extent.machine;
    auto of_machine = epochs.find(machine);
    if (of_machine == epochs.end()) {
      auto all = TIDEMARK_TRY(index().epochs(machine, 0, true));
      std::ranges::reverse(all);
      of_machine = epochs.emplace(machine, std::move(all)).first;
    }
    DamageReport report{.extent = std::move(extent)};
    if (!TIDEMARK_TRY(locate_one(report, of_machine->second))) {
      spdlog::info("event=damage_gone machine={} disk={} offset={} length={} note=\"no point needs it any more\"",
                   machine.to_string(), report.extent.disk.value(), report.extent.first_granule * limits::kGranuleSize,
                   std::uint64_t{report.extent.granules} * limits::kGranuleSize);
      context_->damage.forget(report.extent.segment, report.extent.offset);
      continue;
    }
    MachineDamage& damage = machines[machine];
    if (report.open || report.first != EpochNumber()) {
      ++damage.extents;
      damage.bytes += std::uint64_t{report.extent.granules} * limits::kGranuleSize;
    }
    damage.newest = damage.newest || report.newest;
    add_wanted(report.extent, report.wanted, damage.wanted);
    auto& marks = shown[machine];
    marks.resize(of_machine->second.size());
    for (std::size_t i = 0; i < marks.size() && report.first != EpochNumber(); ++i) {
      const EpochNumber number(of_machine->second[i].number());
      if (number >= report.first && number <= report.last && is_point(of_machine->second[i])) marks[i] = true;
    }
    reports.push_back(std::move(report));
  }
  for (auto& [machine, damage] : machines) {
    merge(damage.wanted);
    damage.points = static_cast<std::uint64_t>(std::ranges::count(shown[machine], true));
  }
  for (const MachineId& machine : context_->damage.unlisted()) machines[machine].unlisted = true;
  std::erase_if(machines, [](const auto& one) { return one.second.extents == 0 && !one.second.unlisted; });
  // What was forgotten here is not among them: the version from before makes the next turn look once more.
  publish(std::move(reports), machines, version);
  located_version_ = version;
  located_lsn_ = indexed;
  located_at_ = clock_.monotonic();
  return {};
}

// False: nothing refers to it any more. `epochs`: all of the machine, in order.
Result<bool> Checker::locate_one(DamageReport& report, const std::vector<pb::EpochEntry>& epochs) {
  const DamagedExtent& extent = report.extent;
  const auto region = static_cast<std::uint32_t>(extent.first_granule / limits::kRegionGranules);
  const auto referred =
      TIDEMARK_TRY(index().find_stored(extent.machine, extent.volume, region, extent.segment, extent.offset));
  if (!referred) return false;
  report.located = true;
  if (epochs.empty() || referred->lsn.value() > epochs.back().commit_lsn()) {
    report.open = true;
    return true;
  }
  const auto history =
      TIDEMARK_TRY(index().history(extent.machine, extent.volume, region, Lsn(epochs.back().commit_lsn())));
  const auto found = std::ranges::find_if(history.versions, [&](const Version& version) {
    return version.segment == extent.segment && version.extent.offset == extent.offset &&
           version.extent.encoding != wire::Encoding::zero;
  });
  if (found == history.versions.end()) return true;  // moved since: the next look will not find it
  Granules visible = granules_of(found->extent);
  auto newer = found;  // those in front of it hide it, one epoch after the other
  for (const pb::EpochEntry& epoch : epochs) {
    if (epoch.commit_lsn() < found->lsn.value()) continue;
    while (newer != history.versions.begin() && std::prev(newer)->lsn.value() <= epoch.commit_lsn()) {
      --newer;
      visible &= ~granules_of(newer->extent);
    }
    if (visible.none()) break;
    if (report.first == EpochNumber()) report.first = EpochNumber(epoch.number());
    report.last = EpochNumber(epoch.number());
    if (is_point(epoch)) ++report.points;
  }
  report.newest = visible.any();
  const std::uint64_t start = std::uint64_t{region} * limits::kRegionGranules;
  for (std::uint32_t i = 0; i < limits::kRegionGranules; ++i) {
    if (!visible.test(i)) continue;
    const std::uint64_t offset = (start + i) * limits::kGranuleSize;
    if (!report.wanted.empty() && report.wanted.back().offset + report.wanted.back().length == offset) {
      report.wanted.back().length += limits::kGranuleSize;
    } else {
      report.wanted.push_back({.offset = offset, .length = limits::kGranuleSize, .zero = false});
    }
  }
  return true;
}

void Checker::publish(std::vector<DamageReport> reports, const std::map<MachineId, MachineDamage>& machines,
                      std::uint64_t version) {
  std::map<MachineId, MachineDamage> before;
  {
    const std::lock_guard lock(mutex_);
    before = std::exchange(machines_, machines);
    reports_ = std::move(reports);
    reports_version_ = version;
    if (before != machines_) version_.fetch_add(1, std::memory_order_release);
  }
  for (const auto& [machine, damage] : machines) {
    const auto known = before.find(machine);
    if (known != before.end() && known->second == damage) continue;
    const bool was_newest = known != before.end() && known->second.newest;
    if (damage.newest && !was_newest) {
      spdlog::error(
          "event=machine_damaged machine={} extents={} bytes={} points={} newest=true remedy=\"its agent is asked "
          "to send it again; `tidemark damage` tells which points are affected\"",
          machine.to_string(), damage.extents, damage.bytes, damage.points);
    } else if (!damage.newest && was_newest) {
      spdlog::info("event=damage_healed machine={} note=\"points from now on are sound\" points_affected={}",
                   machine.to_string(), damage.points);
    }
  }
  for (const auto& [machine, damage] : before) {
    if (!machines.contains(machine)) spdlog::info("event=machine_sound machine={}", machine.to_string());
  }
}

}  // namespace tidemark::storage
