// Applying durable commits to the index.
//
// Everything that readers go by (the mark, epochs, aborted ranges, counts) is staged and written in one last batch,
// then published in memory. Deltas may be written before it, in batches of bounded size: they are newer than any commit
// that is visible, and written again with the same keys and values if a crash comes in between. The same holds for the
// deltas of a removed machine, which go away before the batch that says so is written.
#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/planted.h"
#include "base/units.h"
#include "storage/epoch_progress.h"
#include "storage/extent_codec.h"
#include "storage/index_impl.h"
#include "storage/zero_range.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kBatchBytes = 1 << 20;

class Applier {
 public:
  explicit Applier(Index::Impl& index) : index_(index), mark_(index.mark) {}

  Status apply(std::span<const CommitInfo> commits) {
    if (planted(Planted::mark_ahead_of_data) && !commits.empty()) {
      const CommitInfo& last = commits.back();
      const LogMark ahead{
          .segment = last.segment, .offset = last.offset + last.size, .lsn = last.last_lsn, .checksum = last.checksum};
      index_.db->Put(write_options(), slice(keys::mark()), keys::encode_mark(ahead)).PermitUncheckedError();
      index_.db->Flush({}).PermitUncheckedError();
    }
    for (const CommitInfo& commit : commits) {
      const bool gap = index_.rebuilding && commit.segment != mark_.segment && commit.first_lsn > mark_.lsn;
      if (mark_.segment != SegmentId() && commit.first_lsn != mark_.lsn.next() && !gap) {
        return fail(Code::corrupt, index_.directory,
                    "a commit with LSN " + std::to_string(commit.first_lsn.value()) +
                        " does not follow the index's mark " + std::to_string(mark_.lsn.value()));
      }
      count(commit.segment, 0);  // a segment is known from its first commit on, even if nothing in it counts
      for (const RecordInfo& record : commit.records) TIDEMARK_TRY(apply(commit, record));
      mark_ = {.segment = commit.segment,
               .offset = commit.offset + commit.size,
               .lsn = commit.last_lsn,
               .checksum = commit.checksum};
    }
    return finish();
  }

 private:
  Status apply(const CommitInfo& commit, const RecordInfo& record) {
    segment_ = commit.segment;
    if (record.type == RecordType::machine) return machine(record);
    if (passed_over(record.machine)) return {};
    IndexedMachine* machine = staged(record.machine);
    if (machine == nullptr) {
      return inconsistent(record,
                          "it is of machine " + record.machine.to_string() + ", which no record before it tells of");
    }
    if (machine->record->removed()) return {};  // what was on its way when the machine was removed
    switch (record.type) {
      case RecordType::machine: break;
      case RecordType::epoch_begin: return begin(*machine, record);
      case RecordType::blocks: return blocks(*machine, commit, record);
      case RecordType::epoch_commit: return commit_epoch(*machine, record);
      case RecordType::epoch_abort: return abort_epoch(*machine, record);
      case RecordType::history: return history(*machine, record);
    }
    return inconsistent(record, "its type is unknown");
  }

  Status machine(const RecordInfo& record) {
    auto content = TIDEMARK_TRY(parse_record<pb::MachineRecord>(record));
    if (!content.removed() && passed_over(record.machine)) return {};
    IndexedMachine* known = staged(record.machine);
    // Of a machine that was removed nothing is taken but its removal, written once more.
    if (known != nullptr && known->record->removed() && !content.removed()) return {};
    if (known != nullptr && index_.rebuilding) content = *known->record;  // the newest: older ones may lack disks
    IndexedMachine& machine = known != nullptr ? *known : machines_[record.machine];
    if (known == nullptr) machine.homes = std::make_shared<pb::MachineHomes>();
    const bool removal = content.removed() && (known == nullptr || !known->record->removed());
    machine.record = std::make_shared<pb::MachineRecord>(std::move(content));
    touched_[record.machine].record = true;
    if (removal) TIDEMARK_TRY(remove(record.machine, machine));
    move_home(record.machine, machine, &pb::MachineHomes::record, &pb::MachineHomes::set_record, segment_);
    return {};
  }

  bool passed_over(const MachineId& machine) const {
    return index_.rebuilding && std::binary_search(index_.passed_over.begin(), index_.passed_over.end(), machine);
  }

  // What tells of the machine's record (or history, or aborts) stands in another segment from now on; 0: in none.
  void move_home(const MachineId& id, IndexedMachine& machine, std::uint64_t (pb::MachineHomes::*get)() const,
                 void (pb::MachineHomes::*set)(std::uint64_t), SegmentId to) {
    auto homes = std::make_shared<pb::MachineHomes>(*machine.homes);
    if (const SegmentId from((homes.get()->*get)()); from != SegmentId()) count(from, -1);
    if (to != SegmentId()) count(to, 1);
    (homes.get()->*set)(to.value());
    machine.homes = std::move(homes);
    touched_[id].homes = true;
  }

  Status begin(IndexedMachine& machine, const RecordInfo& record) {
    const auto content = TIDEMARK_TRY(parse_record<pb::EpochBeginRecord>(record));
    const bool resumed = machine.open && machine.open->number() == content.number();
    if (machine.open && !resumed) {
      // In a rebuild its end may be gone, which told whether it was committed: the history record does so as well.
      index_.rebuilding ? drop_open(record.machine, machine) : abort_open(machine, record);
    }
    // A disk that shrank and grows again holds zeroes in between, not what once was there. Older records do not tell of
    // it themselves.
    zero_everywhere_ = false;
    for (const pb::DiskSizeRecord& disk : content.disks()) {
      std::uint64_t former = 0;
      const auto note = [&](const auto& sizes) {
        for (const pb::DiskSizeRecord& size : sizes)
          if (size.disk() == disk.disk()) former = std::max(former, size.size());
      };
      note(content.former());
      if (machine.newest) note(machine.newest->disks());
      const auto volume = machine.volume(DiskId(disk.disk()));
      if (former <= disk.size() || !volume) continue;
      const std::uint64_t end = round_up(former, limits::kGranuleSize) / limits::kGranuleSize;
      const std::uint64_t from = round_up(disk.size(), limits::kGranuleSize) / limits::kGranuleSize;
      pending_.clear();
      mine_.clear();
      note_zero_regions(from, end - from);
      TIDEMARK_TRY(zero_range(*volume, record.lsn, EpochNumber(content.number()), from, end - from));
      TIDEMARK_TRY(put_pending(*volume, record.lsn, EpochNumber(content.number())));
    }
    auto open = std::make_shared<pb::OpenEpochEntry>(
        begin_epoch_entry(content, record.lsn, resumed ? machine.open.get() : nullptr));
    open->set_home(resumed ? machine.open->home() : segment_.value());
    if (!resumed) count(segment_, 1);
    machine.open = std::move(open);
    touched_[record.machine].open = true;
    return {};
  }

  Status blocks(IndexedMachine& machine, const CommitInfo& commit, const RecordInfo& record) {
    // A rebuild may come upon blocks of which the begin is gone: what became of the epoch is told further on.
    if (!machine.open && !index_.rebuilding) return inconsistent(record, "it has blocks, and no epoch is open");
    const auto volume = machine.volume(record.disk);
    if (!volume) return inconsistent(record, "it has blocks of a disk that no record before it tells of");
    zero_everywhere_ = machine.record->has_clone();
    if (std::size_t{record.first_block} + record.block_count > commit.blocks.size()) {
      return inconsistent(record, "its blocks are not there");
    }
    const std::span places = std::span(commit.blocks).subspan(record.first_block, record.block_count);
    const EpochNumber epoch = record.epoch;
    pending_.clear();
    note_regions(places);
    for (const BlockPlace& place : places) {
      if (place.encoding == wire::Encoding::zero) {
        TIDEMARK_TRY(zero_range(*volume, record.lsn, epoch, place.first_granule, place.granules));
      } else {
        const std::uint64_t region = place.first_granule / limits::kRegionGranules;
        pending_.push_back({static_cast<std::uint32_t>(region),
                            {.first = static_cast<std::uint32_t>(place.first_granule % limits::kRegionGranules),
                             .count = place.granules,
                             .encoding = place.encoding,
                             .offset = place.offset,
                             .stored_size = place.stored_size,
                             .sealed = place.sealed}});
      }
    }
    TIDEMARK_TRY(put_pending(*volume, record.lsn, epoch));
    if (!machine.open || machine.open->number() != epoch.value()) {
      return batch_.GetDataSize() > kBatchBytes ? write_batch() : Status();
    }
    machine.open = [&] {
      // Staged copies are this applier's own: one that nobody else holds is changed in place.
      auto open = machine.open.use_count() == 1 ? std::const_pointer_cast<pb::OpenEpochEntry>(machine.open)
                                                : std::make_shared<pb::OpenEpochEntry>(*machine.open);
      add_blocks(*open, record, places);
      return open;
    }();
    touched_[record.machine].open = true;
    return batch_.GetDataSize() > kBatchBytes ? write_batch() : Status();
  }

  Status commit_epoch(IndexedMachine& machine, const RecordInfo& record) {
    const auto content = TIDEMARK_TRY(parse_record<pb::EpochCommitRecord>(record));
    const bool open = machine.open && machine.open->number() == content.number();
    if (!open && !index_.rebuilding) {
      return inconsistent(record, "it commits epoch " + std::to_string(content.number()) + ", which is not open");
    }
    pb::OpenEpochEntry begun;  // by what the commit itself tells, where the begin is gone
    begun.set_begin_lsn(record.lsn.value());
    begun.set_kind(content.kind());
    begun.set_blocks(content.blocks());
    *begun.mutable_disks() = content.disks();
    auto entry =
        std::make_shared<pb::EpochEntry>(commit_epoch_entry(open ? *machine.open : begun, content, record.lsn));
    entry->set_home(segment_.value());
    count(segment_, 1);
    if (machine.open) drop_open(record.machine, machine);
    machine.newest = entry;
    epochs_[record.machine][entry->number()] = std::move(entry);
    return {};
  }

  void drop_open(const MachineId& id, IndexedMachine& machine) {
    count(SegmentId(machine.open->home()), -1);
    machine.open.reset();
    touched_[id].open = true;
  }

  // The machine's epochs up to `through` are those listed, and no others.
  Status history(IndexedMachine& machine, const RecordInfo& record) {
    const auto content = TIDEMARK_TRY(parse_record<pb::HistoryRecord>(record));
    const std::uint64_t ended = std::max(content.through(), content.aborted().highest_epoch());
    if (machine.open && machine.open->number() <= ended)
      drop_open(record.machine, machine);  // in a rebuild: see begin()
    auto& staged = epochs_[record.machine];
    TIDEMARK_TRY(for_each_epoch(record.machine, [&](const pb::EpochEntry& entry) {
      if (entry.number() > content.through()) return;
      if (entry.home() != 0) count(SegmentId(entry.home()), -1);
      staged[entry.number()] = nullptr;
    }));
    for (const pb::EpochEntry& entry : content.epochs()) {
      auto kept = std::make_shared<pb::EpochEntry>(entry);
      kept->set_home(0);
      if (!machine.newest || machine.newest->number() <= kept->number()) machine.newest = kept;
      staged[entry.number()] = std::move(kept);
    }
    if (content.has_aborted()) {
      machine.aborted = std::make_shared<pb::AbortedRanges>(join_aborted(machine.aborted.get(), content.aborted()));
      touched_[record.machine].aborted = true;
    }
    move_home(record.machine, machine, &pb::MachineHomes::history, &pb::MachineHomes::set_history, segment_);
    auto homes = std::make_shared<pb::MachineHomes>(*machine.homes);
    homes->set_through(content.through());
    machine.homes = std::move(homes);
    return {};
  }

  // What the history record tells of needs no other record. What was aborted while that was on its way still does.
  pb::AbortedRanges join_aborted(const pb::AbortedRanges* known, const pb::AbortedRanges& told) {
    std::map<std::uint64_t, pb::AbortedRanges::Range> ranges;
    for (const auto& range : told.ranges()) (ranges[range.first_lsn()] = range).clear_home();
    const int known_count = known != nullptr ? known->ranges_size() : 0;
    for (int i = 0; i < known_count; ++i) {
      const auto& range = known->ranges(i);
      const auto found = ranges.find(range.first_lsn());
      if (found != ranges.end() && found->second.last_lsn() >= range.last_lsn()) {
        if (range.home() != 0) count(SegmentId(range.home()), -1);
      } else {
        ranges[range.first_lsn()] = range;
      }
    }
    pb::AbortedRanges all;
    for (const auto& [first, range] : ranges) *all.add_ranges() = range;
    all.set_highest_epoch(std::max(told.highest_epoch(), known != nullptr ? known->highest_epoch() : 0));
    return all;
  }

  // Every epoch of the machine, those that this call has made so far included.
  template <typename Visit>
  Status for_each_epoch(const MachineId& id, Visit visit) {
    const auto& staged = epochs_[id];
    bool sound = true;
    TIDEMARK_TRY(for_each(keys::of_machine(keys::Tag::epoch, id).view(), [&](rocksdb::Slice, rocksdb::Slice value) {
      pb::EpochEntry entry;
      sound = sound && entry.ParseFromArray(value.data(), static_cast<int>(value.size()));
      if (sound && !staged.contains(entry.number())) visit(entry);
    }));
    if (!sound) return fail(Code::corrupt, index_.directory, "an epoch in the index cannot be parsed");
    const auto copies = staged;  // visit() may change it
    for (const auto& [number, entry] : copies) {
      if (entry) visit(*entry);
    }
    return {};
  }

  Status abort_epoch(IndexedMachine& machine, const RecordInfo& record) {
    const auto content = TIDEMARK_TRY(parse_record<pb::EpochAbortRecord>(record));
    if (machine.open && machine.open->number() == content.number()) {
      abort_open(machine, record);
    } else if (index_.rebuilding && content.first_lsn() != 0) {
      // Its begin is gone, and blocks of it may not be: the record stands for itself.
      add_aborted(machine, record.machine, Lsn(content.first_lsn()), record.lsn, content.number());
    }
    return {};
  }

  // The open epoch ends with this record, and never was.
  void abort_open(IndexedMachine& machine, const RecordInfo& record) {
    // The record that ends it may be the next one's begin, which must stay visible.
    const Lsn last = record.type == RecordType::epoch_begin ? Lsn(record.lsn.value() - 1) : record.lsn;
    add_aborted(machine, record.machine, Lsn(machine.open->begin_lsn()), last, machine.open->number());
    drop_open(record.machine, machine);
  }

  void add_aborted(IndexedMachine& machine, const MachineId& id, Lsn first, Lsn last, std::uint64_t number) {
    auto aborted =
        machine.aborted ? std::make_shared<pb::AbortedRanges>(*machine.aborted) : std::make_shared<pb::AbortedRanges>();
    const int ranges = aborted->ranges_size();
    pb::AbortedRanges::Range* newest = ranges == 0 ? nullptr : aborted->mutable_ranges(ranges - 1);
    const bool committed_since =
        newest != nullptr && machine.newest && machine.newest->commit_lsn() > newest->first_lsn();
    if (newest != nullptr && !committed_since && newest->home() == segment_.value() &&
        newest->first_lsn() <= first.value()) {
      newest->set_last_lsn(std::max(newest->last_lsn(), last.value()));  // the two are one
    } else if (newest == nullptr || newest->last_lsn() < first.value()) {
      pb::AbortedRanges::Range* range = aborted->add_ranges();
      range->set_first_lsn(first.value());
      range->set_last_lsn(last.value());
      range->set_home(segment_.value());
      count(segment_, 1);
    }
    aborted->set_highest_epoch(std::max(aborted->highest_epoch(), number));
    machine.aborted = std::move(aborted);
    touched_[id].aborted = true;
  }

  // The machine's volumes, epochs and counts go. Its record stays, so that its identity is never taken for unknown.
  Status remove(const MachineId& id, IndexedMachine& machine) {
    TIDEMARK_TRY(write_batch());
    {
      // Readers learn it before the first key goes: they look again after they have read.
      const std::unique_lock lock(index_.mutex);
      const auto found = index_.machines.find(id);
      if (found != index_.machines.end()) found->second.removing = true;
    }
    // Their places are no longer referred to. What was there before this call is given up at once, in the batches that
    // delete it, so that a crash in between leaves counts that agree with what is left.
    for (const pb::DiskRecord& disk : machine.record->disks()) TIDEMARK_TRY(delete_volume(VolumeId(disk.volume())));
    TIDEMARK_TRY(for_each_epoch(id, [&](const pb::EpochEntry& entry) {
      if (entry.home() != 0) count(SegmentId(entry.home()), -1);
      epochs_[id][entry.number()] = nullptr;
    }));
    if (machine.open) drop_open(id, machine);
    machine.newest.reset();
    const int ranges = machine.aborted ? machine.aborted->ranges_size() : 0;
    for (int i = 0; i < ranges; ++i) {
      if (machine.aborted->ranges(i).home() != 0) count(SegmentId(machine.aborted->ranges(i).home()), -1);
    }
    machine.aborted.reset();
    touched_[id].aborted = true;
    move_home(id, machine, &pb::MachineHomes::history, &pb::MachineHomes::set_history, SegmentId());
    return {};
  }

  Status delete_volume(VolumeId volume) {
    Delta delta;
    Status status;
    TIDEMARK_TRY(
        for_each(keys::Key(keys::Tag::delta).u32(volume.value()).view(), [&](rocksdb::Slice key, rocksdb::Slice value) {
          keys::DeltaKey at;
          if (!status) return;
          if (!keys::parse_delta(key.ToStringView(), at)) {
            status = fail(Code::corrupt, index_.directory, "the index has a delta with a damaged key");
            return;
          }
          for (std::string_view rest = value.ToStringView(); !rest.empty() && status;) {
            status = take_delta(rest, at.lsn, delta);
            if (!status) break;
            if (at.lsn <= index_.mark.lsn) {
              give_up(volume, delta);
            } else {
              changes_.add(volume, delta, -1);
            }
          }
          batch_status_ = batch_status_.ok() ? batch_.Delete(key) : batch_status_;
          if (status && batch_.GetDataSize() > kBatchBytes) status = write_batch();
        }));
    TIDEMARK_TRY(std::move(status));
    return write_batch();
  }

  // --- deltas ---
  struct Pending {
    std::uint32_t region;
    DeltaExtent extent;
    std::uint32_t order = 0;  // in the record
  };

  // Makes mine_, when the record has a wide range: the regions that the rest of the record writes. There the wide range
  // joins the other extents in pending_, because a region and an LSN have one key.
  void note_regions(std::span<const BlockPlace> places) {
    mine_.clear();
    const auto zero = [](const BlockPlace& place) { return place.encoding == wire::Encoding::zero; };
    const bool any_wide = std::any_of(places.begin(), places.end(), [&](const BlockPlace& place) {
      return zero(place) && ZeroRange(place.first_granule, place.granules, zero_everywhere_).wide;
    });
    if (!any_wide) return;
    for (const BlockPlace& place : places) {
      if (zero(place)) {
        note_zero_regions(place.first_granule, place.granules);
      } else {
        mine_.push_back(static_cast<std::uint32_t>(place.first_granule / limits::kRegionGranules));
      }
    }
    std::sort(mine_.begin(), mine_.end());
    mine_.erase(std::unique(mine_.begin(), mine_.end()), mine_.end());
  }

  void note_zero_regions(std::uint64_t first, std::uint64_t count) {
    const auto noted =
        ZeroRange(first, count, zero_everywhere_)
            .parts(
                first, [&](std::uint32_t region, std::uint32_t, std::uint32_t) { mine_.push_back(region); },
                [] { return Status(); });
    TIDEMARK_CHECK(noted.has_value());
  }

  Status zero_range(VolumeId volume, Lsn lsn, EpochNumber epoch, std::uint64_t first, std::uint64_t count) {
    const ZeroRange range(first, count, zero_everywhere_);
    return range.parts(
        first,
        [&](std::uint32_t region, std::uint32_t from, std::uint32_t granules) {
          pending_.push_back({region, {.first = from, .count = granules, .encoding = wire::Encoding::zero}});
        },
        [&] { return zero_regions(volume, lsn, epoch, range.first_whole, range.end_whole); });
  }

  Status zero_regions(VolumeId volume, Lsn lsn, EpochNumber epoch, std::uint64_t first, std::uint64_t end) {
    TIDEMARK_TRY(write_batch());  // so that the scan sees what this call has put so far
    constexpr DeltaExtent kWhole{.first = 0, .count = limits::kRegionGranules, .encoding = wire::Encoding::zero};
    for (const std::uint32_t region : mine_) {
      if (region >= first && region < end) pending_.push_back({region, kWhole});
    }

    const std::string bound = after_prefix(keys::region(volume, static_cast<std::uint32_t>(end - 1)).view());
    const rocksdb::Slice upper(bound);
    rocksdb::ReadOptions options;
    options.total_order_seek = true;
    options.iterate_upper_bound = &upper;
    const std::unique_ptr<rocksdb::Iterator> it(index_.db->NewIterator(options));
    value_.clear();
    const Delta zeroes{.lsn = lsn, .epoch = epoch, .segment = segment_, .extents = {kWhole}};
    append_delta(zeroes, lsn, value_);
    it->Seek(slice(keys::region(volume, static_cast<std::uint32_t>(first))));
    while (it->Valid()) {
      keys::DeltaKey key;
      if (!keys::parse_delta(it->key().ToStringView(), key)) {
        return fail(Code::corrupt, index_.directory, "the index has a delta with a damaged key");
      }
      if (!std::binary_search(mine_.begin(), mine_.end(), key.region)) {
        TIDEMARK_TRY(put_delta(volume, key.region, zeroes, value_));
        if (batch_.GetDataSize() > kBatchBytes) TIDEMARK_TRY(write_batch());
      }
      it->Seek(slice(keys::region(volume, key.region + 1)));
    }
    return it->status().ok() ? Status() : Status(index_.error(it->status(), "be read"));
  }

  // One key per region of the record; within a region the extents stay in the record's order.
  Status put_pending(VolumeId volume, Lsn lsn, EpochNumber epoch) {
    const auto by_region = [](const Pending& a, const Pending& b) { return a.region < b.region; };
    if (!std::is_sorted(pending_.begin(), pending_.end(), by_region)) {
      for (std::uint32_t i = 0; i < pending_.size(); ++i) pending_[i].order = i;
      std::sort(pending_.begin(), pending_.end(), [](const Pending& a, const Pending& b) {
        return std::pair(a.region, a.order) < std::pair(b.region, b.order);
      });
    }
    delta_.lsn = lsn;
    delta_.epoch = epoch;
    delta_.segment = segment_;
    for (std::size_t i = 0; i < pending_.size();) {
      const std::uint32_t region = pending_[i].region;
      delta_.extents.clear();
      for (; i < pending_.size() && pending_[i].region == region; ++i) delta_.extents.push_back(pending_[i].extent);
      value_.clear();
      append_delta(delta_, lsn, value_);
      TIDEMARK_TRY(put_delta(volume, region, delta_, value_));
    }
    return {};
  }

  Status put_delta(VolumeId volume, std::uint32_t region, const Delta& delta, std::string_view value) {
    const auto key = keys::delta(volume, region, delta.lsn);
    if (index_.rebuilding) TIDEMARK_TRY(supersede(volume, key, delta.lsn));
    put(key, value);
    changes_.add(volume, delta, 1);
    return {};
  }

  // A rebuild begins with the cold segments. Where the log still has the record itself, that holds: it is whole.
  Status supersede(VolumeId volume, const keys::Key& key, Lsn lsn) {
    std::string before;
    const rocksdb::Status status = index_.db->Get(rocksdb::ReadOptions(), slice(key), &before);
    if (status.IsNotFound()) return {};
    if (!status.ok()) return index_.error(status, "be read");
    Delta delta;
    for (std::string_view rest = before; !rest.empty();) {
      TIDEMARK_TRY(take_delta(rest, lsn, delta));
      changes_.add(volume, delta, -1);
    }
    return {};
  }

  // --- counts: of everything in the index that a segment is needed for ---
  void count(SegmentId segment, std::int64_t references) { changes_.live[segment] += references; }

  // True from now on, with what is written next, whatever becomes of this call.
  void give_up(VolumeId volume, const Delta& delta) {
    CountChanges gone;
    gone.add(volume, delta, -1);
    const Counts after = index_.after(gone);
    batch_status_ = batch_status_.ok() ? Index::Impl::put(after, batch_) : batch_status_;
    const std::unique_lock lock(index_.mutex);
    index_.take(after);
  }

  // --- writing ---
  void put(const keys::Key& key, std::string_view value) {
    // Keys and values are far below the batch's limits, so this cannot fail but for lack of memory.
    batch_status_ = batch_status_.ok() ? batch_.Put(slice(key), slice(value)) : batch_status_;
  }

  Status write_batch() {
    if (!batch_status_.ok()) return index_.error(batch_status_, "gather changes");
    if (batch_.Count() == 0) return {};
    const rocksdb::Status status = index_.db->Write(write_options(), &batch_);
    if (!status.ok()) return index_.error(status, "be written");
    batch_.Clear();
    return {};
  }

  template <typename Visit>
  Status for_each(std::string_view prefix, Visit visit) {
    const std::string bound = after_prefix(prefix);
    const rocksdb::Slice upper(bound);
    rocksdb::ReadOptions options;
    options.total_order_seek = true;
    options.iterate_upper_bound = &upper;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> it(index_.db->NewIterator(options));
    for (it->Seek(slice(prefix)); it->Valid(); it->Next()) visit(it->key(), it->value());
    return it->status().ok() ? Status() : Status(index_.error(it->status(), "be read"));
  }

  template <typename Message>
  void put_message(const keys::Key& key, const Message& message) {
    message.SerializeToString(&value_);
    put(key, value_);
  }

  Status finish() {
    for (const auto& [id, touched] : touched_) {
      const IndexedMachine& machine = machines_.at(id);
      if (touched.record) put_message(keys::of_machine(keys::Tag::machine, id), *machine.record);
      if (touched.homes) put_message(keys::of_machine(keys::Tag::homes, id), *machine.homes);
      if (touched.open) {
        const auto key = keys::of_machine(keys::Tag::open_epoch, id);
        if (machine.open) {
          put_message(key, *machine.open);
        } else {
          batch_status_ = batch_status_.ok() ? batch_.Delete(slice(key)) : batch_status_;
        }
      }
      if (touched.aborted) {
        const auto key = keys::of_machine(keys::Tag::aborted, id);
        if (machine.aborted) {
          put_message(key, *machine.aborted);
        } else {
          batch_status_ = batch_status_.ok() ? batch_.Delete(slice(key)) : batch_status_;
        }
      }
    }
    for (const auto& [id, epochs] : epochs_) {
      for (const auto& [number, entry] : epochs) {
        const auto key = keys::epoch(id, EpochNumber(number));
        if (entry) {
          put_message(key, *entry);
        } else {
          batch_status_ = batch_status_.ok() ? batch_.Delete(slice(key)) : batch_status_;
        }
      }
    }
    const Counts after = index_.after(changes_);
    batch_status_ = batch_status_.ok() ? Index::Impl::put(after, batch_) : batch_status_;
    put(keys::mark(), keys::encode_mark(mark_));
    TIDEMARK_TRY(write_batch());

    const std::unique_lock lock(index_.mutex);
    for (auto& [id, machine] : machines_) index_.machines[id] = std::move(machine);
    index_.take(after);
    index_.mark = mark_;
    return {};
  }

  // The machine as this call has it so far; nullptr when it is unknown.
  IndexedMachine* staged(const MachineId& id) {
    if (last_ != nullptr && last_id_ == id) return last_;
    auto found = machines_.find(id);
    if (found == machines_.end()) {
      const auto known = index_.machines.find(id);  // changed by this thread only, so it may look without the lock
      if (known == index_.machines.end()) return nullptr;
      found = machines_.emplace(id, known->second).first;
    }
    last_id_ = id;
    last_ = &found->second;
    return last_;
  }

  std::unexpected<Error> inconsistent(const RecordInfo& record, std::string what) const {
    return fail(Code::corrupt, "log record " + std::to_string(record.lsn.value()), std::move(what),
                "restore the data directory, or ask for help: the log contradicts itself");
  }

  struct Touched {
    bool record = false, homes = false, open = false, aborted = false;
  };

  Index::Impl& index_;
  LogMark mark_;
  rocksdb::WriteBatch batch_;
  rocksdb::Status batch_status_;
  std::string value_;
  std::vector<Pending> pending_;
  std::vector<std::uint32_t> mine_;
  bool zero_everywhere_ = false;  // the record is of a clone
  Delta delta_;
  std::unordered_map<MachineId, IndexedMachine> machines_;
  MachineId last_id_;
  IndexedMachine* last_ = nullptr;
  std::unordered_map<MachineId, Touched> touched_;
  // By machine and number; nullptr: it goes.
  std::unordered_map<MachineId, std::map<std::uint64_t, std::shared_ptr<const pb::EpochEntry>>> epochs_;
  SegmentId segment_;  // of the record at hand
  CountChanges changes_;
};

}  // namespace

Status Index::apply(std::span<const CommitInfo> commits) {
  if (commits.empty()) return {};
  TIDEMARK_TRY(impl_->check_space());  // it may be this that fills the memory, which is then written out
  return Applier(*impl_).apply(commits);
}

}  // namespace tidemark::storage
