// Reading deltas: of each region the newest record at or before the moment asked for comes first, and what it covers
// hides what is older. Records of aborted epochs are passed over as if they were not there.
#include <algorithm>
#include <array>
#include <limits>
#include <memory>

#include "base/no_blocking.h"
#include "base/planted.h"
#include "storage/extent_codec.h"
#include "storage/index_impl.h"

namespace tidemark::storage {

bool is_aborted(const pb::AbortedRanges* aborted, Lsn lsn) {
  if (aborted == nullptr || planted(Planted::aborted_shows_through)) return false;
  // Ranges are in order and do not overlap: find the first that ends at or after it.
  const auto& ranges = aborted->ranges();
  const auto found = std::lower_bound(ranges.begin(), ranges.end(), lsn.value(),
                                      [](const auto& range, std::uint64_t value) { return range.last_lsn() < value; });
  return found != ranges.end() && found->first_lsn() <= lsn.value();
}

namespace {

// One region, granule by granule: which extent shows.
class RegionOverlay {
 public:
  void start(std::uint32_t first, std::uint32_t end) {
    owner_.fill(kNobody);
    extents_.clear();
    first_ = first;
    end_ = end;
    missing_ = end - first;
  }
  bool complete() const { return missing_ == 0; }

  void put_under(const Delta& delta, std::uint64_t region_start) {
    for (auto extent = delta.extents.rbegin(); extent != delta.extents.rend(); ++extent) {
      const std::uint32_t from = std::max(extent->first, first_);
      const std::uint32_t to = std::min(extent->first + extent->count, end_);
      bool shows = false;
      for (std::uint32_t granule = from; granule < to; ++granule) {
        if (owner_[granule] != kNobody) continue;
        owner_[granule] = static_cast<std::uint16_t>(extents_.size());
        --missing_;
        shows = true;
      }
      if (!shows) continue;
      Extent& found = extents_.emplace_back();
      found.block_first_granule = region_start + extent->first;
      found.block_granules = extent->count;
      found.encoding = extent->encoding;
      found.segment = delta.segment;
      found.offset = extent->offset;
      found.stored_size = extent->stored_size;
      found.epoch = delta.epoch;
      found.sealed = extent->sealed;
    }
  }

  void emit(std::uint64_t region_start, std::vector<Extent>& to) const {
    for (std::uint32_t granule = first_; granule < end_;) {
      const std::uint16_t owner = owner_[granule];
      std::uint32_t next = granule + 1;
      while (next < end_ && owner_[next] == owner) ++next;
      if (owner != kNobody) {
        Extent& extent = to.emplace_back(extents_[owner]);
        extent.first_granule = region_start + granule;
        extent.granules = next - granule;
      }
      granule = next;
    }
  }

 private:
  static constexpr std::uint16_t kNobody = std::numeric_limits<std::uint16_t>::max();
  std::array<std::uint16_t, limits::kRegionGranules> owner_;
  std::vector<Extent> extents_;  // each owns at least one granule, so there are at most 256
  std::uint32_t first_ = 0, end_ = 0, missing_ = 0;
};

}  // namespace

Result<std::vector<Extent>> Index::lookup(const MachineId& machine, VolumeId volume, Lsn as_of,
                                          std::uint64_t first_granule, std::uint64_t count) const {
  std::vector<Extent> extents;
  if (count == 0) return extents;
  const auto found = impl_->find(machine);
  const std::uint64_t end_granule = first_granule + count;
  const auto first_region = static_cast<std::uint32_t>(first_granule / limits::kRegionGranules);
  const auto last_region = static_cast<std::uint32_t>((end_granule - 1) / limits::kRegionGranules);

  const std::string bound = after_prefix(keys::region(volume, last_region).view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.iterate_upper_bound = &upper;
  // Within one region the filter spares the tables that do not have it.
  if (first_region == last_region) {
    options.prefix_same_as_start = true;
  } else {
    options.total_order_seek = true;
  }
  about_to_block("look up extents");
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  RegionOverlay overlay;
  Delta delta;
  it->Seek(slice(keys::delta(volume, first_region, as_of)));
  while (it->Valid()) {
    keys::DeltaKey key;
    if (!keys::parse_delta(it->key().ToStringView(), key)) {
      return impl_->damaged("the index has a delta with a damaged key");
    }
    if (key.lsn > as_of) {  // came from the region before: this one's newer records are passed over
      it->Seek(slice(keys::delta(volume, key.region, as_of)));
      continue;
    }
    const std::uint32_t region = key.region;
    const std::uint64_t region_start = std::uint64_t{region} * limits::kRegionGranules;
    overlay.start(
        static_cast<std::uint32_t>(std::max(first_granule, region_start) - region_start),
        static_cast<std::uint32_t>(std::min(end_granule, region_start + limits::kRegionGranules) - region_start));
    for (;;) {
      if (!is_aborted(found ? found->aborted.get() : nullptr, key.lsn)) {
        for (std::string_view rest = it->value().ToStringView(); !rest.empty() && !overlay.complete();) {
          TIDEMARK_TRY(impl_->take(rest, key, delta));
          overlay.put_under(delta, region_start);
        }
        if (overlay.complete()) break;
      }
      it->Next();
      if (!it->Valid()) break;
      if (!keys::parse_delta(it->key().ToStringView(), key)) {
        return impl_->damaged("the index has a delta with a damaged key");
      }
      if (key.region != region) break;
    }
    overlay.emit(region_start, extents);
    if (!it->Valid() || region == last_region) break;
    if (key.region == region) it->Seek(slice(keys::delta(volume, region + 1, as_of)));
  }
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  // Asked last: what removes a machine says so before it takes the first key away.
  const auto still = impl_->find(machine);
  if (!still || still->removing || still->record->removed()) {
    return fail(Code::not_found, "machine " + machine.to_string(), "it was removed, and its volumes with it");
  }
  return extents;
}

const PlaceVersions& Index::places() const { return impl_->places; }

Result<std::vector<std::uint32_t>> Index::regions(VolumeId volume, std::uint32_t from, std::size_t limit) const {
  std::vector<std::uint32_t> regions;
  const auto prefix = keys::Key(keys::Tag::delta).u32(volume.value());
  const std::string bound = after_prefix(prefix.view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.total_order_seek = true;
  options.iterate_upper_bound = &upper;
  about_to_block("look up extents");
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  it->Seek(slice(keys::region(volume, from)));
  while (it->Valid() && regions.size() < limit) {
    keys::DeltaKey key;
    if (!keys::parse_delta(it->key().ToStringView(), key)) {
      return impl_->damaged("the index has a delta with a damaged key");
    }
    regions.push_back(key.region);
    it->Seek(slice(keys::region(volume, key.region + 1)));
  }
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  return regions;
}

Result<std::optional<WrittenRegion>> Index::written(const MachineId& machine, VolumeId volume, Lsn after, Lsn upto,
                                                    std::uint32_t from) const {
  const auto found = impl_->find(machine);
  const auto prefix = keys::Key(keys::Tag::delta).u32(volume.value());
  const std::string bound = after_prefix(prefix.view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.total_order_seek = true;
  options.iterate_upper_bound = &upper;
  about_to_block("look up extents");
  const std::unique_ptr<rocksdb::Iterator> it(impl_->db->NewIterator(options));
  WrittenRegion written;
  Delta delta;
  it->Seek(slice(keys::delta(volume, from, upto)));
  while (it->Valid()) {
    keys::DeltaKey key;
    if (!keys::parse_delta(it->key().ToStringView(), key)) {
      return impl_->damaged("the index has a delta with a damaged key");
    }
    if (key.region != written.region && written.granules.any()) break;
    written.region = key.region;
    if (key.lsn > upto) {
      it->Seek(slice(keys::delta(volume, key.region, upto)));
      continue;
    }
    if (key.lsn <= after) {  // and so are all that follow in this region
      if (written.granules.any()) break;
      it->Seek(slice(keys::delta(volume, key.region + 1, upto)));
      continue;
    }
    if (!is_aborted(found ? found->aborted.get() : nullptr, key.lsn)) {
      for (std::string_view rest = it->value().ToStringView(); !rest.empty();) {
        TIDEMARK_TRY(impl_->take(rest, key, delta));
        if (delta.lsn <= after) break;
        for (const DeltaExtent& extent : delta.extents)
          for (std::uint32_t i = 0; i < extent.count; ++i) written.granules.set(extent.first + i);
      }
    }
    it->Next();
  }
  if (!it->status().ok()) return impl_->error(it->status(), "be read");
  const auto still = impl_->find(machine);
  if (!still || still->removing || still->record->removed()) {
    return fail(Code::not_found, "machine " + machine.to_string(), "it was removed, and its volumes with it");
  }
  if (written.granules.none()) return std::nullopt;
  return written;
}

}  // namespace tidemark::storage
