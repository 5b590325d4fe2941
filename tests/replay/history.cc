#include "tests/replay/history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "storage/epoch_progress.h"
#include "wire/block.h"

namespace tidemark::replay {

using namespace std::chrono_literals;
namespace pb = storage::pb;

namespace {

constexpr std::uint32_t kIncremental = 2, kConsistent = 2;
constexpr std::size_t kPayloadMax = limits::kFramePayloadMax - limits::kBlockHeaderSize - limits::kBlockPlainSizeMax;

MachineId machine_of(unsigned number) {
  std::array<std::byte, MachineId::kSize> bytes{};
  std::memcpy(bytes.data(), &number, sizeof number);
  return MachineId(bytes);
}

}  // namespace

History::History(Store& store, ManualClock& clock, unsigned number, std::vector<std::uint64_t> disk_granules)
    : store_(store),
      clock_(clock),
      number_(number),
      machine_(machine_of(number)),
      disk_granules_(std::move(disk_granules)) {}

Status History::add_machine() {
  pb::MachineRecord record;
  record.set_machine(storage::machine_to_bytes(machine_));
  record.set_name(fmt::format("machine-{}", number_));
  TIDEMARK_TRY(store_.partition().put_machine(record, {}));
  for (std::size_t disk = 0; disk < disk_granules_.size(); ++disk) {
    pb::DiskRecord opened;
    opened.set_identity(fmt::format("disk-{}", disk));
    opened.set_size(disk_granules_[disk] * limits::kGranuleSize);
    TIDEMARK_TRY(store_.partition().open_disk(machine_, opened));
  }
  store_.pump();
  begin_life();
  return {};
}

void History::begin_life() {
  retention_.emplace(storage::RetentionClock(clock_.wall_us(), clock_.wall_us(), clock_.monotonic()));
  retention_->record_changed(machine_, store_.partition().find(machine_)->record);
}

Status History::send(std::uint64_t number, const std::set<std::pair<std::uint32_t, std::uint64_t>>& granules) {
  pb::EpochBeginRecord begin;
  begin.set_number(number);
  begin.set_kind(kIncremental);
  for (std::size_t disk = 0; disk < disk_granules_.size(); ++disk) {
    pb::DiskSizeRecord* size = begin.add_disks();
    size->set_disk(static_cast<std::uint32_t>(disk));
    size->set_size(disk_granules_[disk] * limits::kGranuleSize);
  }
  TIDEMARK_TRY(store_.retry([&] { return store_.partition().begin_epoch(machine_, begin); }));
  wire::BlockEncoder encoder(machine_, 0);
  std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
  const auto flush = [&](std::uint32_t disk) -> Status {
    if (encoder.payload().empty()) return {};
    const auto payload = encoder.take();
    received_ += payload.size();
    return store_.retry([&] { return store_.partition().append_blocks(machine_, DiskId(disk), payload); });
  };
  for (auto at = granules.begin(); at != granules.end();) {
    const auto [disk, first] = *at;
    if (at == granules.begin() || std::prev(at)->first != disk) encoder.start(DiskId(disk), EpochNumber(number));
    std::uint32_t count = 0;
    const std::uint64_t region_end = first - first % limits::kRegionGranules + limits::kRegionGranules;
    for (; at != granules.end() && at->first == disk && at->second == first + count &&
           count < limits::kBlockGranulesMax && first + count < region_end;
         ++at, ++count) {
      content_of(disk, at->second, number,
                 std::span(plain).subspan(count * limits::kGranuleSize, limits::kGranuleSize));
    }
    encoder.add(first, std::span(plain).first(count * limits::kGranuleSize));
    const bool last = at == granules.end() || at->first != disk;
    if (last || encoder.payload().size() > kPayloadMax) TIDEMARK_TRY(flush(disk));
  }
  return {};
}

Status History::epoch(const std::set<std::pair<std::uint32_t, std::uint64_t>>& granules) {
  const std::uint64_t number = ++last_epoch_;
  TIDEMARK_TRY(send(number, granules));
  pb::EpochCommitRecord commit;
  commit.set_number(number);
  commit.set_time_us(clock_.wall_us());
  commit.set_agent_time_us(clock_.wall_us());
  commit.set_arrival_us(clock_.wall_us());
  commit.set_consistency(kConsistent);
  commit.set_digest(storage::hash_to_bytes({number, ~number}));
  TIDEMARK_TRY(store_.retry([&] { return store_.partition().commit_epoch(machine_, commit); }));
  store_.pump();
  for (const auto& [disk, granule] : granules) model_.write(disk, granule, number);
  all_.push_back({.number = EpochNumber(number), .arrival_us = clock_.wall_us(), .point = true});
  retention_->epoch_committed(machine_);
  return {};
}

Status History::half_epoch(const std::set<std::pair<std::uint32_t, std::uint64_t>>& granules) {
  TIDEMARK_TRY(send(++last_epoch_, granules));
  store_.pump();
  return {};
}

Status History::abort_open() {
  pb::EpochAbortRecord abort;
  abort.set_number(last_epoch_);
  abort.set_reason("its process died");
  return store_.retry([&] { return store_.partition().abort_epoch(machine_, abort); });
}

Status History::retain() {
  retention_->observe(clock_.wall_us(), clock_.monotonic());
  for (const MachineId& machine : retention_->due(1)) {
    const auto entries = TIDEMARK_TRY(store_.partition().epochs(machine, 0, true, 0ms));
    std::vector<storage::LadderEpoch> epochs;
    for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry)
      epochs.push_back(storage::ladder_epoch(*entry));
    auto decision = storage::decide(epochs, store_.partition().find(machine)->record, {}, retention_->clock().now_us());
    if (!decision.drop.empty()) store_.partition().drop_points(machine, decision.drop);
    retention_->decided(machine, decision.next_due_us);
  }
  return {};
}

Result<std::vector<std::uint64_t>> History::kept() {
  const auto entries = TIDEMARK_TRY(store_.partition().epochs(machine_, 0, true, 0ms));
  std::vector<std::uint64_t> epochs;
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) epochs.push_back(entry->number());
  return epochs;
}

std::optional<std::string> History::check_point(std::uint64_t epoch) {
  for (std::uint32_t disk = 0; disk < disk_granules_.size(); ++disk) {
    if (auto wrong = check_disk(disk, epoch)) return wrong;
  }
  return std::nullopt;
}

std::optional<std::string> History::check_disk(std::uint32_t disk, std::uint64_t epoch) {
  constexpr std::uint64_t kPiece = 4 << 20;
  const std::string name = fmt::format("machine {} disk {} at epoch {}", number_, disk, epoch);
  const auto reader = store_.partition().read(machine_, DiskId(disk), EpochNumber(epoch), 0ms);
  if (!reader) return name + ": " + reader.error().message();
  const std::uint64_t size = disk_granules_[disk] * limits::kGranuleSize;
  if ((*reader)->disk_size() != size) return name + " has the wrong size";
  std::vector<std::byte> got(kPiece), expected(limits::kGranuleSize);
  const auto& written = model_.disk(disk);
  for (std::uint64_t at = 0; at < size;) {
    const auto ranges = (*reader)->map(at, size - at);
    if (!ranges) return name + ": " + ranges.error().message();
    for (const storage::ByteRange& range : *ranges) {
      const std::uint64_t end = range.offset + range.length;
      if (range.offset != at || range.length == 0) return name + ": the map has a hole";
      at = end;
      if (range.zero) {
        for (auto granule = written.lower_bound(range.offset / limits::kGranuleSize);
             granule != written.end() && granule->first * limits::kGranuleSize < end; ++granule) {
          if (model_.version(disk, granule->first, epoch) != 0)
            return fmt::format("{}: granule {} reads as zeroes", name, granule->first);
        }
        continue;
      }
      for (std::uint64_t from = range.offset; from < end; from += kPiece) {
        const std::span piece = std::span(got).first(std::min(kPiece, end - from));
        if (const auto read = (*reader)->read(from, piece); !read) return name + ": " + read.error().message();
        compared_ += piece.size();
        for (std::uint64_t offset = 0; offset < piece.size(); offset += limits::kGranuleSize) {
          const std::uint64_t granule = (from + offset) / limits::kGranuleSize;
          const std::uint64_t version = model_.version(disk, granule, epoch);
          if (version == 0) {
            std::ranges::fill(expected, std::byte{0});
          } else {
            content_of(disk, granule, version, expected);
          }
          if (std::memcmp(expected.data(), piece.data() + offset, limits::kGranuleSize) != 0)
            return fmt::format("{}: granule {} is not as epoch {} left it", name, granule, version);
        }
      }
    }
  }
  return std::nullopt;
}

std::optional<std::string> History::check_ladder() {
  const auto decision = storage::decide(all_, store_.partition().find(machine_)->record, {}, clock_.wall_us());
  const auto there = kept();
  if (!there) return there.error().message();
  std::vector<std::uint64_t> expected;
  for (const EpochNumber epoch : decision.keep) expected.push_back(epoch.value());
  if (*there != expected)
    return fmt::format("machine {} has {} points, and the ladder keeps {} others or as many of all that ever were",
                       number_, there->size(), expected.size());
  for (const EpochNumber epoch : decision.drop) {
    const auto reader = store_.partition().read(machine_, DiskId(0), epoch, 0ms);
    if (reader) return fmt::format("machine {} epoch {} was dropped and can be read", number_, epoch.value());
    if (reader.error().code != Code::not_found) return reader.error().message();
  }
  return std::nullopt;
}

}  // namespace tidemark::replay
