// Folds, moves and rebuilds: what changes the index other than a commit of the log.
#include <algorithm>
#include <mutex>

#include "base/check.h"
#include "base/marks.h"
#include "storage/epoch_progress.h"
#include "storage/index_impl.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kBatchBytes = 1 << 20;

}  // namespace

Status Index::Impl::take(std::string_view& from, const keys::DeltaKey& key, Delta& to) const {
  auto taken = take_delta(from, key.lsn, to);
  if (taken) return {};
  taken.error().object = directory + ", volume " + std::to_string(key.volume.value()) + ", region " +
                         std::to_string(key.region) + ", LSN " + std::to_string(key.lsn.value());
  return taken;
}

Result<RegionHistory> Index::history(const MachineId& machine, VolumeId volume, std::uint32_t region,
                                     Lsn through) const {
  RegionHistory history;
  const auto found = impl_->find(machine);
  const std::string bound = after_prefix(keys::region(volume, region).view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.iterate_upper_bound = &upper;
  options.prefix_same_as_start = true;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  Delta delta;
  for (it->Seek(slice(keys::delta(volume, region, through))); it->Valid(); it->Next()) {
    keys::DeltaKey key;
    if (!keys::parse_delta(it->key().ToStringView(), key)) {
      return impl_->damaged("the index has a delta with a damaged key");
    }
    history.keys.push_back(key.lsn);
    if (is_aborted(found ? found->aborted.get() : nullptr, key.lsn)) continue;
    for (std::string_view rest = it->value().ToStringView(); !rest.empty();) {
      TIDEMARK_TRY(impl_->take(rest, key, delta));
      append_versions(delta, history.versions);
    }
  }
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  return history;
}

Status Index::change(std::span<const RegionChange> changes, std::span<const SegmentId> added, bool last) {
  rocksdb::WriteBatch batch;
  CountChanges counts;
  rocksdb::Status status;
  const auto note = [&](const rocksdb::Status& one) {
    if (status.ok()) status = one;
  };
  for (const SegmentId segment : added) counts.live[segment] += 0;
  Delta delta;
  const auto count = [&](std::string_view value, const keys::DeltaKey& key, int sign) -> Status {
    for (std::string_view rest = value; !rest.empty();) {
      TIDEMARK_TRY(impl_->take(rest, key, delta));
      counts.add(key.volume, delta, sign);
    }
    return {};
  };
  std::string value;
  for (const RegionChange& change : changes) {
    const auto machine = impl_->machines.find(change.machine);  // changed by this thread only
    if (machine == impl_->machines.end() || machine->second.record->removed()) continue;
    for (const Lsn lsn : change.remove) {
      const auto key = keys::delta(change.volume, change.region, lsn);
      const rocksdb::Status got = impl_->db->Get(rocksdb::ReadOptions(), slice(key), &value);
      if (!got.ok()) return impl_->error(got, "find what a fold found");
      TIDEMARK_TRY(count(value, {change.volume, change.region, lsn}, -1));
      note(batch.Delete(slice(key)));
    }
    for (const RegionEntry& entry : change.put) {
      TIDEMARK_TRY(count(entry.value, {change.volume, change.region, entry.key}, 1));
      note(batch.Put(slice(keys::delta(change.volume, change.region, entry.key)), slice(entry.value)));
    }
  }
  const Counts after = impl_->after(counts);
  note(Impl::put(after, batch));
  std::set<VolumeId> volumes;
  for (const RegionChange& change : changes) volumes.insert(change.volume);
  const PlaceVersions::Change changing(impl_->places, std::move(volumes));
  if (status.ok()) status = impl_->db->Write(write_options(), &batch);
  if (!status.ok()) return impl_->error(status, "be written");
  const std::unique_lock lock(impl_->mutex);
  impl_->take(after);
  for (const auto& [segment, references] : after.live) {
    if (references != 0) std::erase(impl_->unreferenced, segment);
  }
  if (last) {
    for (const SegmentId segment : added) impl_->adding.erase(segment);
  } else {
    impl_->adding.insert(added.begin(), added.end());
  }
  return {};
}

Status Index::begin_rebuild(std::span<const pb::MachineRecord> machines, std::vector<MachineId> passed_over) {
  const rocksdb::Status status = impl_->db->Put(write_options(), slice(keys::Key(keys::Tag::rebuilding)), "");
  if (!status.ok()) return impl_->error(status, "be written");
  impl_->rebuilding = true;
  impl_->passed_over = std::move(passed_over);
  std::sort(impl_->passed_over.begin(), impl_->passed_over.end());
  const std::unique_lock lock(impl_->mutex);
  for (const pb::MachineRecord& record : machines) {
    IndexedMachine& machine = impl_->machines[TIDEMARK_TRY(machine_from_bytes(record.machine()))];
    machine.record = std::make_shared<pb::MachineRecord>(record);
    machine.homes = std::make_shared<pb::MachineHomes>();
  }
  return {};
}

// Records by their LSN, a key each: they are folded later, as others are.
Status Index::add_cold(SegmentId segment, std::span<const ColdExtent> extents) {
  std::vector<const ColdExtent*> sorted;
  for (const ColdExtent& extent : extents) sorted.push_back(&extent);
  const auto key_of = [](const ColdExtent& extent) { return std::tuple(extent.volume, extent.region, extent.lsn); };
  std::sort(sorted.begin(), sorted.end(), [&](const ColdExtent* a, const ColdExtent* b) {
    return std::pair(key_of(*a), a->extent.first) < std::pair(key_of(*b), b->extent.first);
  });
  rocksdb::WriteBatch batch;
  CountChanges counts;
  counts.live[segment] += 0;
  std::string value;
  Delta delta;
  for (std::size_t i = 0; i < sorted.size();) {
    const ColdExtent& first = *sorted[i];
    const keys::DeltaKey at{first.volume, first.region, first.lsn};
    const auto key = keys::delta(at.volume, at.region, at.lsn);
    delta = {.lsn = first.lsn, .epoch = first.epoch, .segment = segment, .extents = {}};
    for (; i < sorted.size() && key_of(*sorted[i]) == key_of(first); ++i) delta.extents.push_back(sorted[i]->extent);
    // The same record may have been moved in parts, and a crash may have left a part in two places.
    rocksdb::Status status = impl_->db->Get(rocksdb::ReadOptions(), slice(key), &value);
    if (!status.ok() && !status.IsNotFound()) return impl_->error(status, "be read");
    if (status.IsNotFound()) value.clear();
    Delta known;
    for (std::string_view rest = value; !rest.empty();) {
      TIDEMARK_TRY(impl_->take(rest, at, known));
      leave_mark(Mark::moved_twice);
      std::erase_if(delta.extents, [&](const DeltaExtent& extent) {
        return std::ranges::any_of(known.extents, [&](const DeltaExtent& other) {
          return other.first <= extent.first && extent.first + extent.count <= other.first + other.count;
        });
      });
    }
    if (delta.extents.empty()) continue;
    counts.add(at.volume, delta, 1);
    append_delta(delta, at.lsn, value);
    status = impl_->db->Put(write_options(), slice(key), value);
    if (!status.ok()) return impl_->error(status, "be written");
  }
  const Counts after = impl_->after(counts);
  rocksdb::Status status = Impl::put(after, batch);
  if (status.ok()) status = impl_->db->Write(write_options(), &batch);
  if (!status.ok()) return impl_->error(status, "be written");
  const std::unique_lock lock(impl_->mutex);
  impl_->take(after);
  return {};
}

// Blocks can be there without their epoch's begin only when the epoch ended, and the log tells how.
Status Index::Impl::check_ends() const {
  for (const auto& [id, epochs] : without_begin) {
    const auto machine = machines.find(id);
    if (machine == machines.end() || machine->second.record->removed()) continue;
    const auto& [record, open, newest, aborted, homes, removing] = machine->second;
    for (const auto& [epoch, lsn] : epochs) {
      const bool is_open = open && open->number() == epoch.value();
      if (is_open || (newest && newest->number() >= epoch.value()) || is_aborted(aborted.get(), lsn)) continue;
      return fail(Code::corrupt, "machine " + record->name(),
                  "the log has blocks of its epoch " + std::to_string(epoch.value()) +
                      ", and neither the epoch's begin nor its end: what was acknowledged is missing",
                  "restore the partition's directory from a copy; nothing of the log was changed");
    }
  }
  return {};
}

Status Index::end_rebuild() {
  TIDEMARK_TRY(impl_->check_ends());
  impl_->without_begin.clear();
  // Volumes that no machine has: of machines that were removed, from segments that were about to go.
  std::vector<VolumeId> known;
  for (const auto& [id, machine] : impl_->machines) {
    if (machine.record->removed()) continue;
    for (const pb::DiskRecord& disk : machine.record->disks()) known.push_back(VolumeId(disk.volume()));
  }
  std::sort(known.begin(), known.end());
  rocksdb::ReadOptions options;
  options.total_order_seek = true;
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  rocksdb::WriteBatch batch;
  rocksdb::Status status;
  CountChanges gone;
  Delta delta;
  keys::DeltaKey key;
  it->Seek(slice(keys::Key(keys::Tag::delta)));
  while (status.ok() && it->Valid() && keys::parse_delta(it->key().ToStringView(), key)) {
    if (std::binary_search(known.begin(), known.end(), key.volume)) {
      it->Seek(slice(keys::region(VolumeId(key.volume.value() + 1), 0)));
      continue;
    }
    for (std::string_view rest = it->value().ToStringView(); !rest.empty();) {
      TIDEMARK_TRY(impl_->take(rest, key, delta));
      gone.add(key.volume, delta, -1);
    }
    status = batch.Delete(it->key());
    if (status.ok() && batch.GetDataSize() > kBatchBytes) {
      status = impl_->db->Write(write_options(), &batch);
      batch.Clear();
    }
    it->Next();
  }
  if (status.ok()) status = it->status();
  const std::unique_lock lock(impl_->mutex);
  const Counts after = impl_->after(gone);
  impl_->take(after);
  if (status.ok()) status = Impl::put(after, batch);
  if (status.ok()) status = batch.Delete(slice(keys::Key(keys::Tag::rebuilding)));
  if (status.ok()) status = impl_->db->Write(write_options(), &batch);
  if (!status.ok()) return impl_->error(status, "be written");
  impl_->rebuilding = false;
  impl_->passed_over.clear();
  return {};
}

}  // namespace tidemark::storage
