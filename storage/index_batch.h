// What a call of Index::apply() writes: deltas of records, the counts they change, and entries, gathered into batches
// of bounded size. Included by index*.cc only.
//
// Deltas of commits that are not visible yet may be written early; what readers go by is put last (storage/
// index_apply.cc). Belongs to the thread that applies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "storage/commit_info.h"
#include "storage/index_impl.h"

namespace tidemark::storage {

class IndexBatch {
 public:
  explicit IndexBatch(Index::Impl& index) : index_(index) {}

  // Where the deltas of a record go, and what is said of them.
  struct Place {
    VolumeId volume;
    Lsn lsn;
    EpochNumber epoch;
    SegmentId segment;
    bool of_clone = false;  // zeroes are written everywhere: what is not written shows what the clone was made of
  };
  // The blocks of one record: one key for each region that they touch.
  Status add_blocks(const Place& place, std::span<const BlockPlace> blocks);
  Status add_zeroes(const Place& place, std::uint64_t first_granule, std::uint64_t granules);
  // Deletes all that the volume has. What was there before this call is given up at once, in the batches that delete
  // it, so that a crash in between leaves counts that agree with what is left.
  Status delete_volume(VolumeId volume);

  // A segment is needed for so many things more.
  void count(SegmentId segment, std::int64_t references) { changes_.live[segment] += references; }

  void put(const keys::Key& key, std::string_view value);
  template <typename Message>
  void put_message(const keys::Key& key, const Message& message) {
    message.SerializeToString(&value_);
    put(key, value_);
  }
  void erase(const keys::Key& key);

  Status write();
  // Writes, if what was gathered is much.
  Status write_if_large() { return batch_.GetDataSize() > kBatchBytes ? write() : Status(); }
  // Writes the counts with what was gathered: the last call. What the counts are now.
  Result<Counts> finish();

  // Every key that begins with `prefix`, with its value.
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

 private:
  static constexpr std::size_t kBatchBytes = 1 << 20;

  struct Pending {
    std::uint32_t region;
    DeltaExtent extent;
    std::uint32_t order;  // in the record
  };
  struct Wide {  // the whole regions of a wide range of zeroes
    std::uint32_t first, end;
    std::uint32_t order;
  };

  // A record: its parts are gathered, in its order, then put.
  void begin_record();
  void add_zero_range(std::uint64_t first, std::uint64_t count, std::uint32_t order);
  Status put_record(const Place& place);
  Status put_wide(const Place& place);
  Status zero_regions(const Place& place, std::uint32_t first, std::uint32_t end);  // but those of regions_
  Status put_pending(const Place& place);
  Status put_delta(VolumeId volume, std::uint32_t region, const Delta& delta, std::string_view value);
  Status supersede(VolumeId volume, const keys::Key& key, Lsn lsn);
  void give_up(VolumeId volume, const Delta& delta);

  Index::Impl& index_;
  rocksdb::WriteBatch batch_;
  rocksdb::Status batch_status_;
  std::string value_;
  std::vector<Pending> pending_;
  std::vector<Wide> wide_;
  std::vector<std::uint32_t> regions_;  // of a record with a wide range: those that the rest of it writes
  Delta delta_;
  CountChanges changes_;
};

}  // namespace tidemark::storage
