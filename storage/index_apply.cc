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
#include "base/units.h"
#include "storage/epoch_progress.h"
#include "storage/extent_codec.h"
#include "storage/index_impl.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kBatchBytes = 1 << 20;
// A zero range of more regions than this is written only where the volume has something: elsewhere it reads as zeroes
// anyhow.
constexpr std::uint64_t kNarrowRegions = 4;

class Applier {
 public:
  explicit Applier(Index::Impl& index) : index_(index), mark_(index.mark) {}

  Status apply(std::span<const CommitInfo> commits) {
    for (const CommitInfo& commit : commits) {
      const bool gap = index_.gaps && commit.segment != mark_.segment && commit.first_lsn > mark_.lsn;
      if (mark_.segment != SegmentId() && commit.first_lsn != mark_.lsn.next() && !gap) {
        return fail(Code::corrupt, index_.directory,
                    "a commit with LSN " + std::to_string(commit.first_lsn.value()) +
                        " does not follow the index's mark " + std::to_string(mark_.lsn.value()));
      }
      live_count(commit.segment);  // a segment is known from its first commit on, even if nothing in it counts
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
    if (record.type == RecordType::machine) return machine(commit, record);
    if (passed_over(record.machine)) return {};
    IndexedMachine* machine = staged(record.machine);
    if (machine == nullptr) {
      return inconsistent(record,
                          "it is of machine " + record.machine.to_string() + ", which no record before it tells of");
    }
    if (machine->record->removed()) return {};  // what was on its way when the machine was removed
    count(*machine, record.machine, commit.segment);
    switch (record.type) {
      case RecordType::machine: break;
      case RecordType::epoch_begin: return begin(*machine, record);
      case RecordType::blocks: return blocks(*machine, commit, record);
      case RecordType::epoch_commit: return commit_epoch(*machine, record);
      case RecordType::epoch_abort: return abort_epoch(*machine, record);
    }
    return inconsistent(record, "its type is unknown");
  }

  Status machine(const CommitInfo& commit, const RecordInfo& record) {
    auto content = TIDEMARK_TRY(parse_record<pb::MachineRecord>(record));
    if (!content.removed() && passed_over(record.machine)) return {};
    IndexedMachine* known = staged(record.machine);
    if (known != nullptr && known->record->removed()) return {};
    IndexedMachine& machine = known != nullptr ? *known : machines_[record.machine];
    machine.record = std::make_shared<pb::MachineRecord>(std::move(content));
    touched_[record.machine].record = true;
    if (machine.record->removed()) TIDEMARK_TRY(remove(record.machine, machine));
    count(machine, record.machine, commit.segment);
    return {};
  }

  bool passed_over(const MachineId& machine) const {
    return index_.gaps && std::binary_search(index_.gaps->begin(), index_.gaps->end(), machine);
  }

  Status begin(IndexedMachine& machine, const RecordInfo& record) {
    const auto content = TIDEMARK_TRY(parse_record<pb::EpochBeginRecord>(record));
    const bool resumed = machine.open && machine.open->number() == content.number();
    if (machine.open && !resumed) abort_open(machine, record);
    // A disk that shrank and grows again holds zeroes in between, not what once was there.
    if (machine.newest) {
      for (const pb::DiskSizeRecord& disk : content.disks()) {
        for (const pb::DiskSizeRecord& before : machine.newest->disks()) {
          const auto volume = machine.volume(DiskId(disk.disk()));
          if (before.disk() != disk.disk() || before.size() <= disk.size() || !volume) continue;
          const std::uint64_t end = round_up(before.size(), limits::kGranuleSize) / limits::kGranuleSize;
          const std::uint64_t from = round_up(disk.size(), limits::kGranuleSize) / limits::kGranuleSize;
          pending_.clear();
          mine_.clear();
          note_zero_regions(from, end - from);
          TIDEMARK_TRY(zero_range(*volume, record.lsn, EpochNumber(content.number()), from, end - from));
          put_pending(*volume, record.lsn, EpochNumber(content.number()), SegmentId());
        }
      }
    }
    machine.open = std::make_shared<pb::OpenEpochEntry>(
        begin_epoch_entry(content, record.lsn, resumed ? machine.open.get() : nullptr));
    touched_[record.machine].open = true;
    return {};
  }

  Status blocks(IndexedMachine& machine, const CommitInfo& commit, const RecordInfo& record) {
    if (!machine.open) return inconsistent(record, "it has blocks, and no epoch is open");
    const auto volume = machine.volume(record.disk);
    if (!volume) return inconsistent(record, "it has blocks of a disk that no record before it tells of");
    if (std::size_t{record.first_block} + record.block_count > commit.blocks.size()) {
      return inconsistent(record, "its blocks are not there");
    }
    const std::span places = std::span(commit.blocks).subspan(record.first_block, record.block_count);
    const EpochNumber epoch(machine.open->number());
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
                             .stored_size = place.stored_size}});
      }
    }
    put_pending(*volume, record.lsn, epoch, commit.segment);
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
    if (!machine.open || machine.open->number() != content.number()) {
      return inconsistent(record, "it commits epoch " + std::to_string(content.number()) + ", which is not open");
    }
    machine.newest = std::make_shared<pb::EpochEntry>(commit_epoch_entry(*machine.open, content, record.lsn));
    machine.open.reset();
    touched_[record.machine].open = true;
    epochs_.emplace_back(record.machine, machine.newest);
    return {};
  }

  Status abort_epoch(IndexedMachine& machine, const RecordInfo& record) {
    const auto content = TIDEMARK_TRY(parse_record<pb::EpochAbortRecord>(record));
    if (!machine.open || machine.open->number() != content.number()) return {};
    abort_open(machine, record);
    return {};
  }

  // The open epoch ends with this record, and never was.
  void abort_open(IndexedMachine& machine, const RecordInfo& record) {
    auto aborted =
        machine.aborted ? std::make_shared<pb::AbortedRanges>(*machine.aborted) : std::make_shared<pb::AbortedRanges>();
    // The record that ends it may be the next one's begin, which must stay visible.
    const Lsn last = record.type == RecordType::epoch_begin ? Lsn(record.lsn.value() - 1) : record.lsn;
    // With nothing committed since the last one, the two are one: there are no more ranges than commits.
    const int ranges = aborted->ranges_size();
    if (ranges != 0 && (!machine.newest || machine.newest->commit_lsn() < aborted->ranges(ranges - 1).first_lsn())) {
      aborted->mutable_ranges(ranges - 1)->set_last_lsn(last.value());
    } else {
      pb::AbortedRanges::Range* range = aborted->add_ranges();
      range->set_first_lsn(machine.open->begin_lsn());
      range->set_last_lsn(last.value());
    }
    aborted->set_highest_epoch(std::max(aborted->highest_epoch(), machine.open->number()));
    machine.aborted = std::move(aborted);
    machine.open.reset();
    touched_[record.machine].open = true;
    touched_[record.machine].aborted = true;
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
    for (const pb::DiskRecord& disk : machine.record->disks()) {
      TIDEMARK_TRY(delete_prefix(keys::Key(keys::Tag::delta).u32(disk.volume()).view()));
    }
    TIDEMARK_TRY(delete_prefix(keys::of_machine(keys::Tag::epoch, id).view()));
    std::erase_if(epochs_, [&](const auto& epoch) { return epoch.first == id; });
    machine.open.reset();
    machine.newest.reset();
    machine.aborted.reset();
    touched_[id].open = touched_[id].aborted = true;

    // Its records no longer keep a segment: also those that this very call has counted, which are not written yet.
    std::map<SegmentId, std::uint64_t> references;
    const auto prefix = keys::of_machine(keys::Tag::machine_live, id);
    TIDEMARK_TRY(for_each(prefix.view(), [&](rocksdb::Slice key, rocksdb::Slice value) {
      if (key.size() == prefix.view().size() + 8 && value.size() == 8) {
        references[SegmentId(keys::read_big_endian(key.ToStringView().substr(prefix.view().size())))] =
            keys::read_big_endian(value.ToStringView());
      }
    }));
    for (auto& [key, value] : machine_live_) {
      if (key.first != id || value == 0) continue;
      references[key.second] = value;
    }
    for (const auto& [segment, held] : references) {
      std::uint64_t& live = live_count(segment);
      live -= std::min(live, held);
      machine_live_[{id, segment}] = 0;
    }
    machine.counted_segment = SegmentId();
    machine.counted = 0;
    return {};
  }

  // --- deltas ---
  struct Pending {
    std::uint32_t region;
    DeltaExtent extent;
    std::uint32_t order = 0;  // in the record
  };

  struct ZeroRange {
    std::uint64_t end = 0;                         // granule
    std::uint64_t first_whole = 0, end_whole = 0;  // regions
    bool wide = false;

    ZeroRange(std::uint64_t first, std::uint64_t count)
        : end(first + count),
          first_whole(round_up(first, limits::kRegionGranules) / limits::kRegionGranules),
          end_whole(end / limits::kRegionGranules),
          wide(end_whole > first_whole && end_whole - first_whole > kNarrowRegions) {}

    // Calls visit(region, first granule in it, count) for each region; the whole ones of a wide range are one call
    // of wide_part().
    template <typename Visit, typename Wide>
    Status parts(std::uint64_t first, Visit visit, Wide wide_part) const {
      for (std::uint64_t at = first; at < end;) {
        const std::uint64_t region = at / limits::kRegionGranules;
        if (wide && region == first_whole) {
          TIDEMARK_TRY(wide_part());
          at = end_whole * limits::kRegionGranules;
          continue;
        }
        const std::uint64_t next = std::min(end, (region + 1) * limits::kRegionGranules);
        visit(static_cast<std::uint32_t>(region), static_cast<std::uint32_t>(at % limits::kRegionGranules),
              static_cast<std::uint32_t>(next - at));
        at = next;
      }
      return {};
    }
  };

  // Makes mine_, when the record has a wide range: the regions that the rest of the record writes. There the wide range
  // joins the other extents in pending_, because a region and an LSN have one key.
  void note_regions(std::span<const BlockPlace> places) {
    mine_.clear();
    const auto zero = [](const BlockPlace& place) { return place.encoding == wire::Encoding::zero; };
    const bool any_wide = std::any_of(places.begin(), places.end(), [&](const BlockPlace& place) {
      return zero(place) && ZeroRange(place.first_granule, place.granules).wide;
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
        ZeroRange(first, count)
            .parts(
                first, [&](std::uint32_t region, std::uint32_t, std::uint32_t) { mine_.push_back(region); },
                [] { return Status(); });
    TIDEMARK_CHECK(noted.has_value());
  }

  Status zero_range(VolumeId volume, Lsn lsn, EpochNumber epoch, std::uint64_t first, std::uint64_t count) {
    const ZeroRange range(first, count);
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
    encode_delta({.epoch = epoch, .segment = SegmentId(), .extents = {kWhole}}, value_);
    it->Seek(slice(keys::region(volume, static_cast<std::uint32_t>(first))));
    while (it->Valid()) {
      keys::DeltaKey key;
      if (!keys::parse_delta(it->key().ToStringView(), key)) {
        return fail(Code::corrupt, index_.directory, "the index has a delta with a damaged key");
      }
      if (!std::binary_search(mine_.begin(), mine_.end(), key.region)) {
        put(keys::delta(volume, key.region, lsn), value_);
        if (batch_.GetDataSize() > kBatchBytes) TIDEMARK_TRY(write_batch());
      }
      it->Seek(slice(keys::region(volume, key.region + 1)));
    }
    return it->status().ok() ? Status() : Status(index_.error(it->status(), "be read"));
  }

  // One key per region of the record; within a region the extents stay in the record's order.
  void put_pending(VolumeId volume, Lsn lsn, EpochNumber epoch, SegmentId segment) {
    const auto by_region = [](const Pending& a, const Pending& b) { return a.region < b.region; };
    if (!std::is_sorted(pending_.begin(), pending_.end(), by_region)) {
      for (std::uint32_t i = 0; i < pending_.size(); ++i) pending_[i].order = i;
      std::sort(pending_.begin(), pending_.end(), [](const Pending& a, const Pending& b) {
        return std::pair(a.region, a.order) < std::pair(b.region, b.order);
      });
    }
    delta_.epoch = epoch;
    delta_.segment = segment;
    for (std::size_t i = 0; i < pending_.size();) {
      const std::uint32_t region = pending_[i].region;
      delta_.extents.clear();
      for (; i < pending_.size() && pending_[i].region == region; ++i) delta_.extents.push_back(pending_[i].extent);
      encode_delta(delta_, value_);
      put(keys::delta(volume, region, lsn), value_);
    }
  }

  // --- counts ---
  std::uint64_t& live_count(SegmentId segment) {
    const auto [entry, fresh] = live_totals_.try_emplace(segment, 0);
    if (fresh) {
      const auto known = index_.live.find(segment);
      if (known != index_.live.end()) entry->second = known->second;
    }
    return entry->second;
  }

  // `machine` is staged, and the record is in `segment`.
  void count(IndexedMachine& machine, const MachineId& id, SegmentId segment) {
    if (machine.counted_segment != segment) {
      machine.counted_segment = segment;
      machine.counted = 0;
      std::string value;
      // Absent in all but the first call after a start.
      const rocksdb::Status status =
          index_.db->Get(rocksdb::ReadOptions(), slice(keys::machine_live(id, segment)), &value);
      if (status.ok()) {
        machine.counted = keys::read_big_endian(value);
      } else if (!status.IsNotFound()) {
        batch_status_ = status;  // stops this call before anything is written
      }
    }
    machine_live_[{id, segment}] = ++machine.counted;
    ++live_count(segment);
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

  Status delete_prefix(std::string_view prefix) {
    Status written;
    TIDEMARK_TRY(for_each(prefix, [&](rocksdb::Slice key, rocksdb::Slice) {
      batch_status_ = batch_status_.ok() ? batch_.Delete(key) : batch_status_;
      if (written && batch_.GetDataSize() > kBatchBytes) written = write_batch();
    }));
    TIDEMARK_TRY(std::move(written));
    return write_batch();
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
    for (const auto& [id, entry] : epochs_) put_message(keys::epoch(id, EpochNumber(entry->number())), *entry);
    for (const auto& [key, value] : machine_live_) {
      const auto at = keys::machine_live(key.first, key.second);
      if (value != 0) {
        put_count(at, value);
      } else {
        batch_status_ = batch_status_.ok() ? batch_.Delete(slice(at)) : batch_status_;
      }
    }
    for (const auto& [segment, value] : live_totals_) put_count(keys::live(segment), value);
    put(keys::mark(), keys::encode_mark(mark_));
    TIDEMARK_TRY(write_batch());

    const std::unique_lock lock(index_.mutex);
    for (auto& [id, machine] : machines_) index_.machines[id] = std::move(machine);
    for (const auto& [segment, value] : live_totals_) index_.live[segment] = value;
    index_.mark = mark_;
    return {};
  }

  void put_count(const keys::Key& key, std::uint64_t value) {
    put(key, keys::Key(keys::Tag::mark).u64(value).view().substr(1));
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
    bool record = false, open = false, aborted = false;
  };

  Index::Impl& index_;
  LogMark mark_;
  rocksdb::WriteBatch batch_;
  rocksdb::Status batch_status_;
  std::string value_;
  std::vector<Pending> pending_;
  std::vector<std::uint32_t> mine_;
  Delta delta_;
  std::unordered_map<MachineId, IndexedMachine> machines_;
  MachineId last_id_;
  IndexedMachine* last_ = nullptr;
  std::unordered_map<MachineId, Touched> touched_;
  std::vector<std::pair<MachineId, std::shared_ptr<const pb::EpochEntry>>> epochs_;
  std::map<std::pair<MachineId, SegmentId>, std::uint64_t> machine_live_;
  std::map<SegmentId, std::uint64_t> live_totals_;
};

}  // namespace

void Index::expect_gaps(std::vector<MachineId> removed) {
  std::sort(removed.begin(), removed.end());
  impl_->gaps = std::move(removed);
}

Status Index::apply(std::span<const CommitInfo> commits) {
  if (commits.empty()) return {};
  return Applier(*impl_).apply(commits);
}

}  // namespace tidemark::storage
