#include "storage/index_counts.h"

#include <algorithm>
#include <mutex>

#include "base/check.h"
#include "base/planted.h"
#include "storage/index_impl.h"
#include "storage/segment_kind.h"

namespace tidemark::storage {

namespace {

std::uint64_t changed(std::uint64_t before, std::int64_t by) {
  TIDEMARK_CHECK(by >= 0 || before >= static_cast<std::uint64_t>(-by));
  return before + static_cast<std::uint64_t>(by);
}

StoredBytes changed(const StoredBytes& before, const ByPlace<std::int64_t>& by) {
  return {.log = changed(before.log, by.log), .cold = changed(before.cold, by.cold)};
}

template <typename Key, typename Count>
Count count_of(const std::map<Key, Count>& counts, Key key) {
  const auto found = counts.find(key);
  return found == counts.end() ? Count() : found->second;
}

std::string describe(SegmentId segment) {
  return (is_cold(segment) ? "cold segment " : "segment ") + std::to_string(cold_number(segment));
}
std::string describe(VolumeId volume) { return "volume " + std::to_string(volume.value()); }

std::string text_of(std::uint64_t count) { return std::to_string(count); }
std::string text_of(const StoredBytes& bytes) {
  return std::to_string(bytes.log) + " bytes in the log and " + std::to_string(bytes.cold) + " cold";
}

// The first count that is not what it should be; empty: there is none.
template <typename Key, typename Count>
std::string difference(const std::map<Key, Count>& kept, const std::map<Key, Count>& found) {
  std::string text;
  const auto compare = [&](Key key) {
    const Count is = count_of(kept, key), should = count_of(found, key);
    if (text.empty() && is != should)
      text = "of " + describe(key) + " it counts " + text_of(is) + ", and there are " + text_of(should);
  };
  for (const auto& [key, value] : kept) compare(key);
  for (const auto& [key, value] : found) compare(key);
  return text;
}

}  // namespace

std::uint64_t stored_bytes(const Delta& delta) {
  std::uint64_t bytes = 0;
  for (const DeltaExtent& extent : delta.extents) {
    if (extent.encoding != wire::Encoding::zero) bytes += limits::kBlockHeaderSize + extent.stored_size;
  }
  return bytes;
}

void CountChanges::add(VolumeId volume, const Delta& delta, int sign) {
  auto references = static_cast<std::int64_t>(delta.extents.size());
  if (planted(Planted::live_count_off_by_one) && sign < 0 && references > 1) --references;
  live[delta.segment] += sign * references;
  auto& bytes = stored[volume];
  (is_cold(delta.segment) ? bytes.cold : bytes.log) += sign * static_cast<std::int64_t>(stored_bytes(delta));
}

Counts Index::Impl::after(const CountChanges& changes) const {
  Counts counts;
  for (const auto& [segment, by] : changes.live) counts.live[segment] = changed(count_of(live, segment), by);
  for (const auto& [volume, by] : changes.stored) counts.stored[volume] = changed(count_of(stored, volume), by);
  return counts;
}

rocksdb::Status Index::Impl::put(const Counts& counts, rocksdb::WriteBatch& batch) {
  rocksdb::Status status;
  for (const auto& [segment, references] : counts.live) {
    if (status.ok()) status = batch.Put(slice(keys::live(segment)), keys::encode_count(references));
  }
  for (const auto& [volume, bytes] : counts.stored) {
    if (!status.ok()) break;
    status = bytes.total() != 0 ? batch.Put(slice(keys::stored(volume)),
                                            keys::encode_count(bytes.log) + keys::encode_count(bytes.cold))
                                : batch.Delete(slice(keys::stored(volume)));
  }
  return status;
}

void Index::Impl::take(const Counts& counts) {
  for (const auto& [segment, references] : counts.live) live[segment] = references;
  for (const auto& [volume, bytes] : counts.stored) {
    if (bytes.total() != 0) {
      stored[volume] = bytes;
    } else {
      stored.erase(volume);
    }
  }
}

std::uint64_t Index::stored_bytes(VolumeId volume) const {
  const std::shared_lock lock(impl_->mutex);
  return count_of(impl_->stored, volume).total();
}

std::vector<Index::MachineSpace> Index::space() const {
  std::vector<MachineSpace> all;
  const std::shared_lock lock(impl_->mutex);
  all.reserve(impl_->machines.size());
  for (const auto& [id, machine] : impl_->machines) {
    if (machine.record->removed()) continue;
    MachineSpace& space = all.emplace_back(MachineSpace{.machine = id});
    for (const pb::DiskRecord& disk : machine.record->disks()) {
      space.logical_bytes += disk.size();
      const StoredBytes bytes = count_of(impl_->stored, VolumeId(disk.volume()));
      space.stored_bytes += bytes.total();
      space.cold_bytes += bytes.cold;
    }
  }
  return all;
}

std::vector<std::uint64_t> Index::table_bytes(std::span<const MachineId> machines) const {
  std::vector<std::uint64_t> all(machines.size());
  rocksdb::SizeApproximationOptions options;
  options.include_memtables = true;
  for (std::size_t i = 0; i < machines.size(); ++i) {
    const auto machine = impl_->find(machines[i]);
    if (!machine) continue;
    for (const pb::DiskRecord& disk : machine->record->disks()) {
      const keys::Key begin = keys::Key(keys::Tag::delta).u32(disk.volume());
      const std::string end = after_prefix(begin.view());
      const rocksdb::Range range(slice(begin), end);
      std::uint64_t bytes = 0;
      const rocksdb::Status asked =
          impl_->db->GetApproximateSizes(options, impl_->db->DefaultColumnFamily(), &range, 1, &bytes);
      if (asked.ok()) all[i] += bytes;
    }
  }
  return all;
}

// Counts everything again, from the keys themselves.
Result<Counts> Index::Impl::recount() const {
  Counts counts;
  rocksdb::ReadOptions options;
  options.total_order_seek = true;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(options));
  const auto need = [&](std::uint64_t segment) {
    if (segment != 0) ++counts.live[SegmentId(segment)];
  };
  Delta delta;
  keys::DeltaKey key;
  for (it->Seek(slice(keys::Key(keys::Tag::delta))); it->Valid(); it->Next()) {
    if (!keys::parse_delta(it->key().ToStringView(), key)) break;
    for (std::string_view rest = it->value().ToStringView(); !rest.empty();) {
      TIDEMARK_TRY(take(rest, key, delta));
      counts.live[delta.segment] += delta.extents.size();
      auto& bytes = counts.stored[key.volume];
      (is_cold(delta.segment) ? bytes.cold : bytes.log) += storage::stored_bytes(delta);
    }
  }
  pb::EpochEntry entry;
  for (it->Seek(slice(keys::Key(keys::Tag::epoch))); it->Valid(); it->Next()) {
    if (static_cast<std::uint8_t>(it->key()[0]) != static_cast<std::uint8_t>(keys::Tag::epoch)) break;
    if (!entry.ParseFromArray(it->value().data(), static_cast<int>(it->value().size())))
      return damaged("an epoch in the index cannot be parsed");
    need(entry.home());
  }
  if (!it->status().ok()) return error(it->status(), "be read");
  for (const auto& [id, machine] : machines) {
    need(machine.homes->record());
    need(machine.homes->history());
    if (machine.open) need(machine.open->home());
    for (int i = 0; machine.aborted && i < machine.aborted->ranges_size(); ++i) need(machine.aborted->ranges(i).home());
  }
  return counts;
}

Status Index::check_counts() const {
  const Counts found = TIDEMARK_TRY(impl_->recount());
  std::string wrong = difference(impl_->live, found.live);
  if (wrong.empty()) wrong = difference(impl_->stored, found.stored);
  if (wrong.empty()) return {};
  return fail(Code::corrupt, impl_->directory, "the index's counts are wrong: " + wrong,
              "delete the index with the server stopped: it is made again");
}

}  // namespace tidemark::storage
