// Moving: lists what stands in the victims, folds those regions, copies what is left into cold segments, and has the
// records carried forward that the victims are still needed for.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/marks.h"
#include "base/planted.h"
#include "base/thread_task.h"
#include "base/units.h"
#include "storage/epoch_progress.h"
#include "storage/file_window.h"
#include "storage/segment_keeper.h"
#include "storage/settler_impl.h"

namespace tidemark::storage {

namespace {

constexpr std::uint64_t kRatePiece = 4 << 20;
constexpr std::size_t kExtentsMax = 256 << 10;  // of a cold segment

}  // namespace

// What the first point shows that sees `through` stays; so what is newer does not matter to what is older.
Result<Settler::Machine> Settler::load_machine(const Index& index, const MachineId& id, EpochNumber through) {
  Machine machine{.id = id, .disks = {}, .encrypted = {}, .points = {}, .encoder = nullptr};
  const auto record = index.machine(id);
  if (!record || record->removed()) return machine;
  for (const pb::DiskRecord& disk : record->disks()) {
    machine.disks[VolumeId(disk.volume())] = DiskId(disk.disk());
    if (!disk.wrapped_key().empty()) machine.encrypted.insert(VolumeId(disk.volume()));
  }
  if (const auto last = TIDEMARK_TRY(index.first_to_see(id, through))) through = EpochNumber(last->number());
  for (const pb::EpochEntry& entry : TIDEMARK_TRY(index.epochs(id, 0, true, through))) {
    machine.points.push_back(Lsn(entry.commit_lsn()));
  }
  std::reverse(machine.points.begin(), machine.points.end());
  if (planted(Planted::fold_takes_open_data) && !machine.points.empty() && index.open_epoch(id)) {
    machine.points.back() = index.mark().lsn;
  }
  return machine;
}

Status Settler::settle(const std::vector<SegmentId>& victims) {
  const ThreadTask task("td-settle");
  Move move;
  move.victims.insert(victims.begin(), victims.end());
  for (const pb::MachineRecord& record : index().machines()) {
    if (record.removed()) continue;
    const MachineId id = TIDEMARK_TRY(machine_from_bytes(record.machine()));
    for (const pb::DiskRecord& disk : record.disks()) move.owners[VolumeId(disk.volume())] = id;
  }
  for (const SegmentId segment : victims) {
    TIDEMARK_TRY(is_cold(segment) ? list_cold_segment(segment, move) : list_log_segment(segment, move));
  }
  TIDEMARK_TRY(leave_live(move));
  if (move.victims.empty()) return {};
  for (const auto& [volume, regions] : move.regions) {
    for (const std::uint32_t region : regions) {
      if (stopping()) return fail(Code::cancelled, directory_, "it is being closed");
      TIDEMARK_TRY(settle_region(move, volume, region));
      // Zeroes take no room in the file, and some in its table.
      const bool full = move.cold && (move.cold->size() >= options_.cold_segment_size ||
                                      move.cold->extents() >= kExtentsMax || move.changes.size() >= kExtentsMax);
      if (full) TIDEMARK_TRY(finish_cold(move));
    }
  }
  TIDEMARK_TRY(finish_cold(move));
  TIDEMARK_TRY(carry(move));
  // Only what is flushed lets the victims go.
  TIDEMARK_TRY(indexer_.call([](Index& index) { return index.flush(); }));
  const std::lock_guard lock(mutex_);
  stats_.segments_settled += move.victims.size();
  return {};
}

// --- what stands in a segment ---

Status Settler::list_log_segment(SegmentId segment, Move& move) {
  auto file = TIDEMARK_TRY(files_.open(segment_path(directory_ + "/log", segment), OpenMode::read, false));
  FileWindow window(limits::kCommitSizeMax);
  TIDEMARK_TRY(window.open(*file));
  const auto begin = TIDEMARK_TRY(window.at(0, limits::kIoAlignment));
  const SegmentHeader header = TIDEMARK_TRY(parse_segment_header(begin, partition_, salt_, segment));
  CommitExpectation expected{.partition = partition_,
                             .salt = salt_,
                             .segment = segment,
                             .incarnation = Incarnation(header.incarnation),
                             .offset = limits::kIoAlignment,
                             .chain = std::nullopt};
  CommitInfo commit;
  std::map<MachineId, EpochNumber> open;  // with blocks here
  std::map<MachineId, std::optional<pb::MachineRecord>> records;
  while (!stopping()) {
    // The end of what is valid. Should it be damage instead, then what stands behind it stays referred to, and so does
    // the segment.
    const auto front = TIDEMARK_TRY(window.at(expected.offset, sizeof(CommitHeader)));
    const auto commit_header = parse_commit_header(front, expected);
    if (!commit_header) break;
    const auto parsed = parse_commit(TIDEMARK_TRY(window.at(expected.offset, commit_header->size)), expected, commit);
    if (!parsed) break;
    expected.offset += commit.size;
    count_rate(move, commit.size);
    for (const RecordInfo& record : commit.records) {
      std::vector<EpochNumber>& committed = move.machines[record.machine];
      if (record.type == RecordType::epoch_commit) {
        committed.emplace_back(TIDEMARK_TRY(parse_record<pb::EpochCommitRecord>(record)).number());
      }
      if (record.type != RecordType::blocks && record.type != RecordType::epoch_begin) continue;
      const auto [at, unknown] = records.try_emplace(record.machine);
      if (unknown) at->second = index().machine(record.machine);
      const std::optional<pb::MachineRecord>& known = at->second;
      if (!known || known->removed()) continue;
      if (record.type == RecordType::epoch_begin) {
        TIDEMARK_TRY(list_resize(*known, record, move));
        continue;
      }
      open[record.machine] = record.epoch;
      EpochNumber& newest = move.newest[record.machine];
      newest = std::max(newest, record.epoch);
      for (const pb::DiskRecord& disk : known->disks()) {
        if (disk.disk() != record.disk.value()) continue;
        const VolumeId volume(disk.volume());
        for (const BlockPlace& place : std::span(commit.blocks).subspan(record.first_block, record.block_count)) {
          const auto first = static_cast<std::uint32_t>(place.first_granule / limits::kRegionGranules);
          const auto last =
              static_cast<std::uint32_t>((place.first_granule + place.granules - 1) / limits::kRegionGranules);
          if (last - first < 16) {
            for (std::uint32_t region = first; region <= last; ++region) move.regions[volume].insert(region);
            continue;
          }
          // A wide range of zeroes: only where the index has something at all.
          TIDEMARK_TRY(list_written(volume, first, last, move));
        }
      }
    }
  }
  for (const auto& [machine, epoch] : open) {
    const auto still = index().open_epoch(machine);
    if (still && still->number() == epoch.value()) waits_[segment] = {machine, epoch};
  }
  move.sizes[segment] = TIDEMARK_TRY(file->size());
  move.files[segment] = std::move(file);
  return {};
}

void Settler::count_rate(Move& move, std::uint64_t bytes) {
  move.since_pause += bytes;
  if (move.since_pause >= kRatePiece) hold_rate(std::exchange(move.since_pause, 0));
}

// Of a range of regions those that have anything in the index.
Status Settler::list_written(VolumeId volume, std::uint32_t first, std::uint32_t last, Move& move) {
  constexpr std::size_t kAtOnce = 1024;
  for (std::uint32_t from = first; from <= last;) {
    const auto some = TIDEMARK_TRY(index().regions(volume, from, kAtOnce));
    for (const std::uint32_t region : some) {
      if (region <= last) move.regions[volume].insert(region);
    }
    if (some.size() < kAtOnce) break;
    from = some.back() + 1;
  }
  return {};
}

// A disk that shrinks gets zeroes behind its new end, by the record that begins the epoch.
Status Settler::list_resize(const pb::MachineRecord& machine, const RecordInfo& record, Move& move) {
  const auto begin = TIDEMARK_TRY(parse_record<pb::EpochBeginRecord>(record));
  EpochNumber& newest = move.newest[record.machine];
  newest = std::max(newest, EpochNumber(begin.number()));
  for (const pb::DiskSizeRecord& size : begin.disks()) {
    for (const pb::DiskRecord& disk : machine.disks()) {
      if (disk.disk() != size.disk()) continue;
      TIDEMARK_TRY(list_written(VolumeId(disk.volume()), static_cast<std::uint32_t>(size.size() / limits::kRegionSize),
                                std::numeric_limits<std::uint32_t>::max() - 1, move));
    }
  }
  return {};
}

Status Settler::list_cold_segment(SegmentId segment, Move& move) {
  auto file = TIDEMARK_TRY(files_.open(cold_path(directory_ + "/cold", segment), OpenMode::read, false));
  for (const ColdExtent& extent : TIDEMARK_TRY(read_cold_table(*file, segment, partition_, salt_))) {
    move.regions[extent.volume].insert(extent.region);
    const auto owner = move.owners.find(extent.volume);
    if (owner == move.owners.end()) continue;
    EpochNumber& newest = move.newest[owner->second];
    newest = std::max(newest, extent.epoch);
  }
  move.files[segment] = std::move(file);
  return {};
}

// --- one region ---

Result<Settler::Machine*> Settler::machine_of(Move& move, VolumeId volume) {
  const auto owner = move.owners.find(volume);
  if (owner == move.owners.end()) return nullptr;
  auto found = move.loaded.find(owner->second);
  if (found == move.loaded.end()) {
    const EpochNumber newest = move.newest[owner->second];
    found = move.loaded.emplace(owner->second, TIDEMARK_TRY(load_machine(index(), owner->second, newest))).first;
  }
  Machine& machine = found->second;
  return machine.points.empty() || !machine.disks.contains(volume) ? nullptr : &machine;
}

Status Settler::settle_region(Move& move, VolumeId volume, std::uint32_t region) {
  Machine* const machine = TIDEMARK_TRY(machine_of(move, volume));
  if (machine == nullptr) return {};  // removed, or nothing committed yet
  const auto place_one = [&](Version& version, std::vector<Version>& to) -> Status {
    if (!move.victims.contains(version.segment)) {
      to.push_back(version);
      return {};
    }
    if (!move.cold) {
      move.cold =
          TIDEMARK_TRY(ColdWriter::create(files_, directory_ + "/cold", cold_segment(next_cold_), partition_, salt_));
      ++next_cold_;
    }
    const std::size_t at = to.size();
    if (version.extent.encoding == wire::Encoding::zero) {
      for (const auto& [first, count] : shown_runs(version)) {
        Version& run = to.emplace_back(version);
        run.segment = move.cold->segment();
        run.extent = {.first = first, .count = count, .encoding = wire::Encoding::zero, .offset = 0, .stored_size = 0};
      }
    } else {
      TIDEMARK_TRY(place(move, *machine, version, to));
    }
    for (std::size_t i = at; i < to.size(); ++i) {
      if (to[i].segment == move.cold->segment()) {
        move.cold->add_extent(volume, region, to[i].lsn, to[i].epoch, to[i].extent);
      }
    }
    return {};
  };
  move.volume = volume;
  move.region = region;
  auto change = TIDEMARK_TRY(fold_region(*machine, volume, region, place_one));
  if (change) move.changes.push_back(std::move(*change));
  // Without a cold segment nothing has to wait.
  if (!move.cold && move.changes.size() >= 1024) TIDEMARK_TRY(this->change(move.changes, {}));
  return {};
}

// What of a version is shown, in runs. In a cold segment extents of one LSN never overlap, so their order means
// nothing.
std::vector<std::pair<std::uint32_t, std::uint32_t>> Settler::shown_runs(const Version& version) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> runs;
  const std::uint32_t last = version.extent.first + version.extent.count;
  for (std::uint32_t at = version.extent.first; at < last; ++at) {
    if (!version.shown.test(at)) continue;
    if (!runs.empty() && runs.back().first + runs.back().second == at) {
      ++runs.back().second;
    } else {
      runs.emplace_back(at, 1);
    }
  }
  return runs;
}

// Copies a block, or of one that is shown in parts these parts, encoded anew.
Status Settler::place(Move& move, Machine& machine, Version& version, std::vector<Version>& to) {
  const std::uint64_t region_start = std::uint64_t{move.region} * limits::kRegionGranules;
  const DeltaExtent& extent = version.extent;
  const std::size_t size = limits::kBlockHeaderSize + extent.stored_size;
  const std::uint64_t start = round_down(extent.offset, limits::kIoAlignment);
  static_assert(limits::kBlockHeaderSize + wire::kSealedOverhead < limits::kIoAlignment);
  if (!move.buffer) move.buffer = AlignedBuffer(limits::kBlockPlainSizeMax + 4 * limits::kIoAlignment);
  const std::span<std::byte> space =
      move.buffer.span().first(round_up(extent.offset + size, limits::kIoAlignment) - start);
  const auto damaged = [&](const std::string& what) -> Status {
    leave_mark(Mark::settler_met_damage);
    {
      const std::lock_guard lock(mutex_);
      ++stats_.damaged_blocks;
    }
    context_->damaged_reads.fetch_add(1, std::memory_order_relaxed);
    context_->damage.report({.machine = machine.id,
                             .volume = move.volume,
                             .disk = machine.disks.at(move.volume),
                             .epoch = version.epoch,
                             .first_granule = region_start + extent.first,
                             .granules = extent.count,
                             .segment = version.segment,
                             .offset = extent.offset,
                             .stored_size = extent.stored_size,
                             .what = what});
    to.push_back(version);  // where it is, so that who reads it is told
    return {};
  };
  const auto read = move.files.at(version.segment)->read_at(start, space);
  if (!read) return damaged(read.error().what);
  if (start + *read < extent.offset + size) return damaged("the segment ends before it");
  const std::span<const std::byte> block = space.subspan(extent.offset - start, size);
  wire::BlockHeader header;
  std::memcpy(&header, block.data(), sizeof header);
  const std::span<const std::byte> stored = block.subspan(sizeof header);
  const Extent named{.first_granule = 0,
                     .granules = 0,
                     .block_first_granule = region_start + extent.first,
                     .block_granules = extent.count,
                     .encoding = extent.encoding,
                     .segment = version.segment,
                     .offset = extent.offset,
                     .stored_size = extent.stored_size,
                     .epoch = version.epoch,
                     .sealed = extent.sealed};
  const DiskId disk = machine.disks.at(move.volume);
  if (const auto damage = find_damage(machine.id, disk, named, header, stored)) return damaged(*damage);

  const auto count_moved = [&](std::uint64_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      ++stats_.blocks_moved;
      stats_.bytes_moved += bytes;
    }
    count_rate(move, bytes);
  };
  // Of a volume that was encrypted later on, what is still in the clear is sealed on its way.
  const auto key = machine.encrypted.contains(move.volume) ? context_->keys->find(move.volume) : nullptr;
  const auto add = [&](std::span<const std::byte> whole, DeltaExtent& moved) -> Status {
    wire::BlockHeader own;
    std::memcpy(&own, whole.data(), sizeof own);
    if (key != nullptr && !own.sealed()) {
      move.sealed.resize(whole.size() + wire::kSealedOverhead);
      if (!move.sealer) move.sealer = std::make_unique<BlockSealer>();
      move.sealer->seal(machine.id, *key, own, whole.subspan(sizeof own), move.sealed);
      whole = move.sealed;
    }
    moved.sealed = key != nullptr || own.sealed();
    moved.stored_size = static_cast<std::uint32_t>(whole.size() - sizeof own);
    moved.offset = TIDEMARK_TRY(move.cold->add_block(whole));
    count_moved(whole.size());
    return {};
  };
  if (version.shown.count() == extent.count) {
    Version& moved = to.emplace_back(version);
    moved.segment = move.cold->segment();
    return add(block, moved.extent);
  }
  leave_mark(Mark::block_cut);
  move.plain.resize(limits::kBlockPlainSizeMax);
  const std::span plain = std::span(move.plain).first(std::size_t{extent.count} * limits::kGranuleSize);
  if (!move.decoder) move.decoder = std::make_unique<StoredDecoder>(context_->keys);
  if (const auto decoded = move.decoder->decode(machine.id, move.volume, header, stored, plain); !decoded) {
    return damaged(decoded.error().what);
  }
  if (!machine.encoder) machine.encoder = std::make_unique<wire::BlockEncoder>(machine.id);
  for (const auto& [first, count] : shown_runs(version)) {
    machine.encoder->start(disk, version.epoch);
    machine.encoder->add(region_start + first, plain.subspan(std::size_t{first - extent.first} * limits::kGranuleSize,
                                                             std::size_t{count} * limits::kGranuleSize));
    const auto payload = machine.encoder->take();
    wire::BlockHeader part;
    std::memcpy(&part, payload.data(), sizeof part);
    Version& moved = to.emplace_back(version);
    moved.segment = move.cold->segment();
    moved.extent = {.first = first,
                    .count = count,
                    .encoding = static_cast<wire::Encoding>(part.encoding),
                    .offset = 0,
                    .stored_size = part.stored_size};
    if (moved.extent.encoding != wire::Encoding::zero) TIDEMARK_TRY(add(payload, moved.extent));
  }
  return {};
}

Status Settler::finish_cold(Move& move) {
  std::vector<SegmentId> added;
  if (move.cold) {
    added.push_back(move.cold->segment());
    Status finished = move.cold->finish();
    if (finished) finished = manifest_.add(added);
    extents_[move.cold->segment()] = move.cold->extents();
    move.cold.reset();
    if (finished) finished = change(move.changes, added);
    if (!finished) give_up(added.front());
    return finished;
  }
  return change(move.changes, {});
}

// A cold segment that nothing came to refer to, for want of space or otherwise: tried again and again, they would take
// what is left. What cannot be removed now is removed at the next start.
void Settler::give_up(SegmentId segment) {
  if (index().knows_segment(segment)) return;
  leave_mark(Mark::cold_given_up);
  extents_.erase(segment);
  const std::string path = cold_path(directory_ + "/cold", segment);
  const auto there = files_.exists(path);
  Status removed = manifest_.remove(std::span(&segment, 1));
  if (removed && there && *there) removed = files_.remove(path);
  if (!removed) spdlog::warn("event=cold_segment_left path={} error=\"{}\"", path, removed.error().message());
}

// --- records ---

Status Settler::carry(const Move& move) {
  for (const auto& [machine, committed] : move.machines) {
    const auto homes = index().homes(machine);
    const auto record = index().machine(machine);
    if (!homes || !record || in_flight(machine)) continue;
    const auto victim = [&](std::uint64_t home) { return home != 0 && move.victims.contains(SegmentId(home)); };
    std::uint64_t carried = 0;
    if (victim(homes->record())) {
      send({.type = RecordType::machine, .machine = machine, .payload = record->SerializeAsString()});
      ++carried;
    }
    std::uint64_t through = homes->through();
    bool history = victim(homes->history());
    if (const auto aborted = index().aborted(machine)) {
      history =
          history || std::ranges::any_of(aborted->ranges(), [&](const auto& range) { return victim(range.home()); });
    }
    if (!record->removed()) {
      for (const EpochNumber epoch : committed) {
        const auto entry = TIDEMARK_TRY(index().epoch(machine, epoch));
        if (!entry || !victim(entry->home())) continue;
        history = true;
        through = std::max(through, entry->number());
      }
      if (history) {
        carried += TIDEMARK_TRY(send_history(machine, EpochNumber(through), {})) ? 1 : 0;
      }
    }
    const std::lock_guard lock(mutex_);
    stats_.records_carried += carried;
  }
  return {};
}

}  // namespace tidemark::storage
