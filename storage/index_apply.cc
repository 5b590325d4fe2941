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

#include "base/marks.h"
#include "base/planted.h"
#include "base/units.h"
#include "storage/epoch_progress.h"
#include "storage/extent_codec.h"
#include "storage/index_batch.h"
#include "storage/index_impl.h"

namespace tidemark::storage {

namespace {

class Applier {
 public:
  explicit Applier(Index::Impl& index) : index_(index), mark_(index.mark), batch_(index) {}

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
      batch_.count(commit.segment, 0);  // a segment is known from its first commit on, even if nothing in it counts
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
    if (const SegmentId from((homes.get()->*get)()); from != SegmentId()) batch_.count(from, -1);
    if (to != SegmentId()) batch_.count(to, 1);
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
      TIDEMARK_TRY(batch_.add_zeroes(
          {.volume = *volume, .lsn = record.lsn, .epoch = EpochNumber(content.number()), .segment = segment_}, from,
          end - from));
    }
    auto open = std::make_shared<pb::OpenEpochEntry>(
        begin_epoch_entry(content, record.lsn, resumed ? machine.open.get() : nullptr));
    open->set_home(resumed ? machine.open->home() : segment_.value());
    if (!resumed) batch_.count(segment_, 1);
    machine.open = std::move(open);
    touched_[record.machine].open = true;
    return {};
  }

  Status blocks(IndexedMachine& machine, const CommitInfo& commit, const RecordInfo& record) {
    // A rebuild may come upon blocks of which the begin is gone: what became of the epoch is told further on.
    if (!machine.open && !index_.rebuilding) return inconsistent(record, "it has blocks, and no epoch is open");
    const auto volume = machine.volume(record.disk);
    if (!volume) return inconsistent(record, "it has blocks of a disk that no record before it tells of");
    if (std::size_t{record.first_block} + record.block_count > commit.blocks.size()) {
      return inconsistent(record, "its blocks are not there");
    }
    const std::span places = std::span(commit.blocks).subspan(record.first_block, record.block_count);
    const EpochNumber epoch = record.epoch;
    TIDEMARK_TRY(batch_.add_blocks({.volume = *volume,
                                    .lsn = record.lsn,
                                    .epoch = epoch,
                                    .segment = segment_,
                                    .of_clone = machine.record->has_clone()},
                                   places));
    if (!machine.open || machine.open->number() != epoch.value()) {
      index_.without_begin[record.machine][epoch] = record.lsn;
      return batch_.write_if_large();
    }
    machine.open = [&] {
      // Staged copies are this applier's own: one that nobody else holds is changed in place.
      auto open = machine.open.use_count() == 1 ? std::const_pointer_cast<pb::OpenEpochEntry>(machine.open)
                                                : std::make_shared<pb::OpenEpochEntry>(*machine.open);
      add_blocks(*open, record, places);
      return open;
    }();
    touched_[record.machine].open = true;
    return batch_.write_if_large();
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
    batch_.count(segment_, 1);
    if (machine.open) drop_open(record.machine, machine);
    if (index_.rebuilding) ended(record.machine, EpochNumber(content.number()));
    machine.newest = entry;
    epochs_[record.machine][entry->number()] = std::move(entry);
    return {};
  }

  // Of a rebuild: all epochs up to this one.
  void ended(const MachineId& id, EpochNumber through) {
    const auto found = index_.without_begin.find(id);
    if (found == index_.without_begin.end()) return;
    found->second.erase(found->second.begin(), found->second.upper_bound(through));
    if (found->second.empty()) index_.without_begin.erase(found);
  }

  void drop_open(const MachineId& id, IndexedMachine& machine) {
    batch_.count(SegmentId(machine.open->home()), -1);
    machine.open.reset();
    touched_[id].open = true;
  }

  // The machine's epochs up to `through` are those listed, and no others.
  Status history(IndexedMachine& machine, const RecordInfo& record) {
    const auto content = TIDEMARK_TRY(parse_record<pb::HistoryRecord>(record));
    const std::uint64_t ended_through = std::max(content.through(), content.aborted().highest_epoch());
    if (machine.open && machine.open->number() <= ended_through)
      drop_open(record.machine, machine);  // in a rebuild: see begin()
    if (index_.rebuilding) ended(record.machine, EpochNumber(ended_through));
    auto& staged = epochs_[record.machine];
    TIDEMARK_TRY(for_each_epoch(record.machine, [&](const pb::EpochEntry& entry) {
      if (entry.number() > content.through()) return;
      if (entry.home() != 0) batch_.count(SegmentId(entry.home()), -1);
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

  // What the history record tells of needs no other record. What was aborted while that was on its way still does; what
  // an earlier one told of and this one does not is forgotten.
  pb::AbortedRanges join_aborted(const pb::AbortedRanges* known, const pb::AbortedRanges& told) {
    std::map<std::uint64_t, pb::AbortedRanges::Range> ranges;
    for (const auto& range : told.ranges()) (ranges[range.first_lsn()] = range).clear_home();
    const int known_count = known != nullptr ? known->ranges_size() : 0;
    for (int i = 0; i < known_count; ++i) {
      const auto& range = known->ranges(i);
      const auto found = ranges.find(range.first_lsn());
      if (range.home() != 0) leave_mark(Mark::aborts_joined);
      if (found != ranges.end() && found->second.last_lsn() >= range.last_lsn()) {
        if (range.home() != 0) batch_.count(SegmentId(range.home()), -1);
      } else if (range.home() != 0) {
        ranges[range.first_lsn()] = range;
      }  // else a history record told of it before, and this one does not: its records are gone
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
    TIDEMARK_TRY(
        batch_.for_each(keys::of_machine(keys::Tag::epoch, id).view(), [&](rocksdb::Slice, rocksdb::Slice value) {
          pb::EpochEntry entry;
          sound = sound && entry.ParseFromArray(value.data(), static_cast<int>(value.size()));
          if (sound && !staged.contains(entry.number())) visit(entry);
        }));
    if (!sound) return index_.damaged("an epoch in the index cannot be parsed");
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
      batch_.count(segment_, 1);
    }
    aborted->set_highest_epoch(std::max(aborted->highest_epoch(), number));
    machine.aborted = std::move(aborted);
    touched_[id].aborted = true;
  }

  // The machine's volumes, epochs and counts go. Its record stays, so that its identity is never taken for unknown.
  Status remove(const MachineId& id, IndexedMachine& machine) {
    TIDEMARK_TRY(batch_.write());
    {
      // Readers learn it before the first key goes: they look again after they have read.
      const std::unique_lock lock(index_.mutex);
      const auto found = index_.machines.find(id);
      if (found != index_.machines.end()) found->second.removing = true;
    }
    std::set<VolumeId> volumes;
    for (const pb::DiskRecord& disk : machine.record->disks()) volumes.insert(VolumeId(disk.volume()));
    const PlaceVersions::Change changing(index_.places, std::move(volumes));
    // Their places are no longer referred to.
    for (const pb::DiskRecord& disk : machine.record->disks())
      TIDEMARK_TRY(batch_.delete_volume(VolumeId(disk.volume())));
    TIDEMARK_TRY(for_each_epoch(id, [&](const pb::EpochEntry& entry) {
      if (entry.home() != 0) batch_.count(SegmentId(entry.home()), -1);
      epochs_[id][entry.number()] = nullptr;
    }));
    if (machine.open) drop_open(id, machine);
    machine.newest.reset();
    const int ranges = machine.aborted ? machine.aborted->ranges_size() : 0;
    for (int i = 0; i < ranges; ++i) {
      if (machine.aborted->ranges(i).home() != 0) batch_.count(SegmentId(machine.aborted->ranges(i).home()), -1);
    }
    machine.aborted.reset();
    touched_[id].aborted = true;
    move_home(id, machine, &pb::MachineHomes::history, &pb::MachineHomes::set_history, SegmentId());
    return {};
  }

  Status finish() {
    for (const auto& [id, touched] : touched_) {
      const IndexedMachine& machine = machines_.at(id);
      if (touched.record) batch_.put_message(keys::of_machine(keys::Tag::machine, id), *machine.record);
      if (touched.homes) batch_.put_message(keys::of_machine(keys::Tag::homes, id), *machine.homes);
      if (touched.open) {
        const auto key = keys::of_machine(keys::Tag::open_epoch, id);
        if (machine.open) {
          batch_.put_message(key, *machine.open);
        } else {
          batch_.erase(key);
        }
      }
      if (touched.aborted) {
        const auto key = keys::of_machine(keys::Tag::aborted, id);
        if (machine.aborted) {
          batch_.put_message(key, *machine.aborted);
        } else {
          batch_.erase(key);
        }
      }
    }
    for (const auto& [id, epochs] : epochs_) {
      for (const auto& [number, entry] : epochs) {
        const auto key = keys::epoch(id, EpochNumber(number));
        if (entry) {
          batch_.put_message(key, *entry);
        } else {
          batch_.erase(key);
        }
      }
    }
    batch_.put(keys::mark(), keys::encode_mark(mark_));
    const Counts after = TIDEMARK_TRY(batch_.finish());

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
  IndexBatch batch_;
  std::unordered_map<MachineId, IndexedMachine> machines_;
  MachineId last_id_;
  IndexedMachine* last_ = nullptr;
  std::unordered_map<MachineId, Touched> touched_;
  // By machine and number; nullptr: it goes.
  std::unordered_map<MachineId, std::map<std::uint64_t, std::shared_ptr<const pb::EpochEntry>>> epochs_;
  SegmentId segment_;  // of the record at hand
};

}  // namespace

Status Index::apply(std::span<const CommitInfo> commits) {
  if (commits.empty()) return {};
  // It may be this that fills the memory, which is then written out. Until then the index goes on without a byte of
  // space: what was acknowledged can be listed and read.
  if (!impl_->has_room()) TIDEMARK_TRY(impl_->check_space());
  return Applier(*impl_).apply(commits);
}

}  // namespace tidemark::storage
