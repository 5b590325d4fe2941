#include "storage/index_compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/limits.h"
#include "storage/epoch_progress.h"

namespace tidemark::storage {

namespace {

struct Run {
  std::uint64_t first = 0, end = 0;  // granules
  EpochNumber epoch;
  bool operator==(const Run&) const = default;
};

// Data by the epoch that wrote it; zeroes that were written and what never was read the same.
Result<std::vector<Run>> shown(const Index& index, const MachineId& machine, VolumeId volume, Lsn as_of,
                               std::uint32_t region) {
  std::vector<Run> runs;
  for (const Extent& extent : TIDEMARK_TRY(index.lookup(
           machine, volume, as_of, std::uint64_t{region} * limits::kRegionGranules, limits::kRegionGranules))) {
    if (extent.encoding == wire::Encoding::zero) continue;
    if (!runs.empty() && runs.back().end == extent.first_granule && runs.back().epoch == extent.epoch) {
      runs.back().end += extent.granules;
    } else {
      runs.push_back({extent.first_granule, extent.first_granule + extent.granules, extent.epoch});
    }
  }
  return runs;
}

class Comparison {
 public:
  Comparison(const Index& first, const Index& second) : first_(first), second_(second) {}

  Result<std::vector<std::string>> run() {
    std::map<std::string, pb::MachineRecord> before, after;
    for (auto& record : first_.machines()) before[record.machine()] = record;
    for (auto& record : second_.machines()) after[record.machine()] = record;
    for (const auto& [bytes, record] : before)
      if (!record.removed() && !after.contains(bytes)) differ(record.name(), "the log does not tell of this machine");
    for (const auto& [bytes, record] : after) {
      if (full()) break;
      const auto found = before.find(bytes);
      if (record.removed() || (found == before.end() && behind())) continue;
      if (found == before.end()) {
        differ(record.name(), "the index does not have this machine");
        continue;
      }
      if (found->second.SerializeAsString() != record.SerializeAsString() && !behind())
        differ(record.name(), "the machine's record is not the newest one of the log");
      const MachineId id = TIDEMARK_TRY(machine_from_bytes(bytes));
      TIDEMARK_TRY(machine(id, record));
    }
    return std::move(differences_);
  }

 private:
  bool behind() const { return first_.mark().lsn < second_.mark().lsn; }
  bool full() const { return differences_.size() >= kDifferencesMax; }
  void differ(const std::string& object, const std::string& what) {
    if (!full()) differences_.push_back(object + ": " + what);
  }

  // Of the epochs of a machine, newest first: is this one looked at block by block? The newest, the oldest, and some
  // between.
  static bool looked_at(std::size_t at, std::size_t count) {
    const std::size_t step = std::max<std::size_t>(1, count / (kComparedPoints - 1));
    return at % step == 0 || at + 1 == count;
  }

  Status machine(const MachineId& id, const pb::MachineRecord& record) {
    std::map<std::uint64_t, pb::EpochEntry> there;
    for (auto& entry : TIDEMARK_TRY(first_.epochs(id, 0, true))) there[entry.number()] = entry;
    auto told_of = TIDEMARK_TRY(second_.epochs(id, 0, true));
    for (std::size_t at = 0; at < told_of.size(); ++at) {
      const pb::EpochEntry& entry = told_of[at];
      if (Lsn(entry.commit_lsn()) > first_.mark().lsn) continue;
      const auto found = there.find(entry.number());
      if (found == there.end()) {
        differ(record.name(), fmt::format("the index does not have epoch {}", entry.number()));
        continue;
      }
      pb::EpochEntry known = found->second, told = entry;
      there.erase(found);
      for (pb::EpochEntry* const one : {&known, &told}) {
        one->clear_home();       // where its record stands
        one->clear_begin_lsn();  // that record may be gone, and blocks with it: they are in a cold segment
        one->clear_plain_bytes();
        one->clear_stored_bytes();
      }
      if (known.SerializeAsString() != told.SerializeAsString())
        differ(record.name(), fmt::format("epoch {} is not what the log tells of it", entry.number()));
      for (const auto& disk : record.disks())
        if (looked_at(at, told_of.size()))
          TIDEMARK_TRY(volume(id, record, VolumeId(disk.volume()), entry, disk.name()));
      if (full()) return {};
    }
    for (const auto& [number, entry] : there)
      differ(record.name(), fmt::format("the log does not tell of epoch {}", number));
    return {};
  }

  Status volume(const MachineId& id, const pb::MachineRecord& record, VolumeId volume, const pb::EpochEntry& epoch,
                const std::string& disk) {
    constexpr std::size_t kAtOnce = 1024;
    for (std::uint32_t from = 0;;) {
      auto some = TIDEMARK_TRY(first_.regions(volume, from, kAtOnce));
      auto others = TIDEMARK_TRY(second_.regions(volume, from, kAtOnce));
      if (some.empty() && others.empty()) return {};
      // As far as both lists reach.
      std::uint32_t last = UINT32_MAX;
      if (some.size() == kAtOnce) last = some.back();
      if (others.size() == kAtOnce) last = std::min(last, others.back());
      std::set<std::uint32_t> regions(some.begin(), some.end());
      regions.insert(others.begin(), others.end());
      for (const std::uint32_t region : regions) {
        if (region > last) break;
        const Lsn as_of(epoch.commit_lsn());
        if (TIDEMARK_TRY(shown(first_, id, volume, as_of, region)) !=
            TIDEMARK_TRY(shown(second_, id, volume, as_of, region)))
          differ(record.name(),
                 fmt::format("{}, epoch {}: the MiB at {} is not what the log and the cold segments hold", disk,
                             epoch.number(), region));
        if (full()) return {};
      }
      if (last == UINT32_MAX) return {};
      from = last + 1;
    }
  }

  const Index& first_;
  const Index& second_;
  std::vector<std::string> differences_;
};

}  // namespace

Result<std::vector<std::string>> compare_indexes(const Index& first, const Index& second) {
  return Comparison(first, second).run();
}

}  // namespace tidemark::storage
