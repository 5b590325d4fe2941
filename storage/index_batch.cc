#include "storage/index_batch.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <ranges>

#include "storage/zero_range.h"

namespace tidemark::storage {
namespace {

constexpr DeltaExtent kWholeRegion{.first = 0, .count = limits::kRegionGranules, .encoding = wire::Encoding::zero};

}  // namespace

Status IndexBatch::add_blocks(const Place& place, std::span<const BlockPlace> blocks) {
  begin_record();
  for (std::uint32_t order = 0; order < blocks.size(); ++order) {
    const BlockPlace& block = blocks[order];
    if (block.encoding == wire::Encoding::zero) {
      add_zero_range(block.first_granule, block.granules, order);
      continue;
    }
    const std::uint64_t region = block.first_granule / limits::kRegionGranules;
    pending_.push_back({static_cast<std::uint32_t>(region),
                        {.first = static_cast<std::uint32_t>(block.first_granule % limits::kRegionGranules),
                         .count = block.granules,
                         .encoding = block.encoding,
                         .offset = block.offset,
                         .stored_size = block.stored_size,
                         .sealed = block.sealed},
                        order});
  }
  return put_record(place);
}

Status IndexBatch::add_zeroes(const Place& place, std::uint64_t first_granule, std::uint64_t granules) {
  begin_record();
  add_zero_range(first_granule, granules, 0);
  return put_record(place);
}

void IndexBatch::begin_record() {
  pending_.clear();
  wide_.clear();
}

void IndexBatch::add_zero_range(std::uint64_t first, std::uint64_t count, std::uint32_t order) {
  const ZeroRange range(first, count);
  range.narrow_parts(first, [&](std::uint32_t region, std::uint32_t from, std::uint32_t granules) {
    pending_.push_back({region, {.first = from, .count = granules, .encoding = wire::Encoding::zero}, order});
  });
  if (range.wide) {
    wide_.push_back(
        {static_cast<std::uint32_t>(range.first_whole), static_cast<std::uint32_t>(range.end_whole), order});
  }
}

Status IndexBatch::put_record(const Place& place) {
  if (!wide_.empty()) TIDEMARK_TRY(put_wide(place));
  return put_pending(place);
}

// A region and an LSN have one key. So where the rest of the record writes, a wide range joins it: the last one that is
// there, for it covers the region whole. Elsewhere all of them together are written, each region once.
Status IndexBatch::put_wide(const Place& place) {
  regions_.clear();
  for (const Pending& pending : pending_) regions_.push_back(pending.region);
  std::sort(regions_.begin(), regions_.end());
  regions_.erase(std::unique(regions_.begin(), regions_.end()), regions_.end());
  const auto index_of = [&](std::uint32_t region) {
    return static_cast<std::size_t>(std::lower_bound(regions_.begin(), regions_.end(), region) - regions_.begin());
  };
  // The next one that no later range covers; the links are shortened while they are followed.
  std::vector<std::size_t> next(regions_.size() + 1);
  std::iota(next.begin(), next.end(), std::size_t{0});
  const auto uncovered = [&](std::size_t i) {
    while (next[i] != i) i = next[i] = next[next[i]];
    return i;
  };
  for (const Wide& range : std::views::reverse(wide_)) {
    const std::size_t end = index_of(range.end);
    for (std::size_t i = uncovered(index_of(range.first)); i < end; i = uncovered(i)) {
      pending_.push_back({regions_[i], kWholeRegion, range.order});
      next[i] = i + 1;
    }
  }
  std::sort(wide_.begin(), wide_.end(), [](const Wide& a, const Wide& b) { return a.first < b.first; });
  for (std::size_t i = 0; i < wide_.size();) {
    Wide together = wide_[i];
    for (++i; i < wide_.size() && wide_[i].first <= together.end; ++i) {
      together.end = std::max(together.end, wide_[i].end);
    }
    TIDEMARK_TRY(zero_regions(place, together.first, together.end));
  }
  return {};
}

Status IndexBatch::zero_regions(const Place& place, std::uint32_t first, std::uint32_t end) {
  value_.clear();
  const Delta zeroes{.lsn = place.lsn, .epoch = place.epoch, .segment = place.segment, .extents = {kWholeRegion}};
  append_delta(zeroes, place.lsn, value_);
  const auto put_one = [&](std::uint32_t region) -> Status {
    if (std::binary_search(regions_.begin(), regions_.end(), region)) return {};
    TIDEMARK_TRY(put_delta(place.volume, region, zeroes, value_));
    return write_if_large();
  };
  if (place.of_clone) {
    for (std::uint32_t region = first; region < end; ++region) TIDEMARK_TRY(put_one(region));
    return {};
  }
  TIDEMARK_TRY(write());  // so that the scan sees what this call has put so far
  const std::string bound = after_prefix(keys::region(place.volume, end - 1).view());
  const rocksdb::Slice upper(bound);
  rocksdb::ReadOptions options;
  options.total_order_seek = true;
  options.iterate_upper_bound = &upper;
  const std::unique_ptr<rocksdb::Iterator> it(index_.db->NewIterator(options));
  it->Seek(slice(keys::region(place.volume, first)));
  while (it->Valid()) {
    keys::DeltaKey key;
    if (!keys::parse_delta(it->key().ToStringView(), key)) {
      return index_.damaged("the index has a delta with a damaged key");
    }
    TIDEMARK_TRY(put_one(key.region));
    it->Seek(slice(keys::region(place.volume, key.region + 1)));
  }
  return it->status().ok() ? Status() : Status(index_.error(it->status(), "be read"));
}

// One key per region of the record; within a region the extents stay in the record's order.
Status IndexBatch::put_pending(const Place& place) {
  const auto before = [](const Pending& a, const Pending& b) {
    return std::pair(a.region, a.order) < std::pair(b.region, b.order);
  };
  if (!std::is_sorted(pending_.begin(), pending_.end(), before)) std::sort(pending_.begin(), pending_.end(), before);
  delta_.lsn = place.lsn;
  delta_.epoch = place.epoch;
  delta_.segment = place.segment;
  for (std::size_t i = 0; i < pending_.size();) {
    const std::uint32_t region = pending_[i].region;
    delta_.extents.clear();
    for (; i < pending_.size() && pending_[i].region == region; ++i) delta_.extents.push_back(pending_[i].extent);
    value_.clear();
    append_delta(delta_, place.lsn, value_);
    TIDEMARK_TRY(put_delta(place.volume, region, delta_, value_));
  }
  return {};
}

Status IndexBatch::put_delta(VolumeId volume, std::uint32_t region, const Delta& delta, std::string_view value) {
  const auto key = keys::delta(volume, region, delta.lsn);
  if (index_.rebuilding) TIDEMARK_TRY(supersede(volume, key, delta.lsn));
  put(key, value);
  changes_.add(volume, delta, 1);
  return {};
}

// A rebuild begins with the cold segments. Where the log still has the record itself, that holds: it is whole.
Status IndexBatch::supersede(VolumeId volume, const keys::Key& key, Lsn lsn) {
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

Status IndexBatch::delete_volume(VolumeId volume) {
  Delta delta;
  Status status;
  TIDEMARK_TRY(
      for_each(keys::Key(keys::Tag::delta).u32(volume.value()).view(), [&](rocksdb::Slice key, rocksdb::Slice value) {
        keys::DeltaKey at;
        if (!status) return;
        if (!keys::parse_delta(key.ToStringView(), at)) {
          status = index_.damaged("the index has a delta with a damaged key");
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
        if (status) status = write_if_large();
      }));
  TIDEMARK_TRY(std::move(status));
  return write();
}

// True from now on, with what is written next, whatever becomes of this call.
void IndexBatch::give_up(VolumeId volume, const Delta& delta) {
  CountChanges gone;
  gone.add(volume, delta, -1);
  const Counts after = index_.after(gone);
  batch_status_ = batch_status_.ok() ? Index::Impl::put(after, batch_) : batch_status_;
  const std::unique_lock lock(index_.mutex);
  index_.take(after);
}

void IndexBatch::put(const keys::Key& key, std::string_view value) {
  // Keys and values are far below the batch's limits, so this cannot fail but for lack of memory.
  batch_status_ = batch_status_.ok() ? batch_.Put(slice(key), slice(value)) : batch_status_;
}

void IndexBatch::erase(const keys::Key& key) {
  batch_status_ = batch_status_.ok() ? batch_.Delete(slice(key)) : batch_status_;
}

Status IndexBatch::write() {
  if (!batch_status_.ok()) return index_.error(batch_status_, "gather changes");
  if (batch_.Count() == 0) return {};
  const rocksdb::Status status = index_.db->Write(write_options(), &batch_);
  if (!status.ok()) return index_.error(status, "be written");
  batch_.Clear();
  return {};
}

Result<Counts> IndexBatch::finish() {
  const Counts after = index_.after(changes_);
  batch_status_ = batch_status_.ok() ? Index::Impl::put(after, batch_) : batch_status_;
  TIDEMARK_TRY(write());
  return after;
}

}  // namespace tidemark::storage
