// What the index refers to, block by block: for the checker.
#include <memory>

#include "storage/index_impl.h"

namespace tidemark::storage {

namespace {

std::unexpected<Error> bad_key(const Index::Impl& impl) {
  return impl.damaged("the index has a delta with a damaged key");
}

// Hidden within its own delta, an extent is still referred to: it is listed like the others.
void add_blocks(const keys::DeltaKey& key, const Delta& delta, std::vector<StoredExtent>& to) {
  for (const DeltaExtent& extent : delta.extents) {
    if (extent.encoding == wire::Encoding::zero) continue;
    to.push_back({.region = key.region,
                  .key = key.lsn,
                  .lsn = delta.lsn,
                  .epoch = delta.epoch,
                  .segment = delta.segment,
                  .extent = extent});
  }
}

}  // namespace

Result<std::vector<StoredExtent>> Index::stored(const MachineId& machine, VolumeId volume,
                                                const std::optional<StoredPlace>& after,
                                                std::size_t extents_max) const {
  std::vector<StoredExtent> found;
  const auto owner = impl_->find(machine);
  if (!owner || owner->removing || owner->record->removed()) return found;
  const std::string bound = after_prefix(keys::Key(keys::Tag::delta).u32(volume.value()).view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.iterate_upper_bound = &upper;
  options.total_order_seek = true;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  // Older keys of a region come behind newer ones; below LSN 0 there is none.
  if (after && after->key != Lsn()) {
    it->Seek(slice(keys::delta(volume, after->region, Lsn(after->key.value() - 1))));
  } else {
    it->Seek(slice(keys::region(volume, after ? after->region + 1 : 0)));
  }
  Delta delta;
  for (; it->Valid() && found.size() < extents_max; it->Next()) {
    keys::DeltaKey key;
    if (!keys::parse_delta(it->key().ToStringView(), key)) return bad_key(*impl_);
    if (is_aborted(owner->aborted.get(), key.lsn)) continue;
    for (std::string_view rest = it->value().ToStringView(); !rest.empty();) {
      TIDEMARK_TRY(impl_->take(rest, key, delta));
      add_blocks(key, delta, found);
    }
  }
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  return found;
}

Result<std::vector<Delta>> Index::deltas_at(VolumeId volume, std::uint32_t region, Lsn lsn) const {
  std::vector<Delta> deltas;
  std::string value;
  const rocksdb::Status got = impl_->db->Get(rocksdb::ReadOptions(), slice(keys::delta(volume, region, lsn)), &value);
  if (got.IsNotFound()) return deltas;
  if (!got.ok()) return impl_->error(got, "be read");
  for (std::string_view rest = value; !rest.empty();) {
    TIDEMARK_TRY(impl_->take(rest, {volume, region, lsn}, deltas.emplace_back()));
  }
  return deltas;
}

Result<std::optional<StoredExtent>> Index::find_stored(const MachineId& machine, VolumeId volume, std::uint32_t region,
                                                       SegmentId segment, std::uint32_t offset) const {
  const auto owner = impl_->find(machine);
  if (!owner || owner->removing || owner->record->removed()) return std::nullopt;
  const std::string bound = after_prefix(keys::region(volume, region).view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.iterate_upper_bound = &upper;
  options.prefix_same_as_start = true;
  options.fill_cache = false;
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  std::vector<StoredExtent> blocks;
  Delta delta;
  for (it->Seek(slice(keys::region(volume, region))); it->Valid(); it->Next()) {
    keys::DeltaKey key;
    if (!keys::parse_delta(it->key().ToStringView(), key)) return bad_key(*impl_);
    if (is_aborted(owner->aborted.get(), key.lsn)) continue;
    for (std::string_view rest = it->value().ToStringView(); !rest.empty();) {
      TIDEMARK_TRY(impl_->take(rest, key, delta));
      if (delta.segment != segment) continue;
      blocks.clear();
      add_blocks(key, delta, blocks);
      for (const StoredExtent& block : blocks) {
        if (block.extent.offset == offset) return block;
      }
    }
  }
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  return std::nullopt;
}

}  // namespace tidemark::storage
