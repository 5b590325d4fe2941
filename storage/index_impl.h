// What an Index is made of. Included by index*.cc only.
#pragma once

#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "storage/extent_codec.h"
#include "storage/index.h"
#include "storage/index_counts.h"
#include "storage/index_keys.h"
#include "storage/region_maps.h"

namespace tidemark::storage {

// A machine as the index has it, kept in memory. The parts are shared and never changed: an update makes new ones, so
// that staging a change costs little and a reader keeps what it took.
struct IndexedMachine {
  std::shared_ptr<const pb::MachineRecord> record;
  std::shared_ptr<const pb::OpenEpochEntry> open;
  std::shared_ptr<const pb::EpochEntry> newest;
  std::shared_ptr<const pb::AbortedRanges> aborted;
  std::shared_ptr<const pb::MachineHomes> homes;  // never absent
  bool removing = false;                          // its keys are going away: readers must not believe what they find

  std::optional<VolumeId> volume(DiskId disk) const {
    for (const pb::DiskRecord& known : record->disks()) {
      if (known.disk() == disk.value()) return VolumeId(known.volume());
    }
    return std::nullopt;
  }
};

struct Index::Impl {
  std::string directory;
  std::unique_ptr<rocksdb::DB> db;
  bool rebuilding = false;             // from a log and cold segments of which parts may be gone
  std::vector<MachineId> passed_over;  // of a rebuild: removed machines, in order
  // Of a rebuild: epochs with blocks whose begin was not met, with the last of these, until their end is met.
  std::unordered_map<MachineId, std::map<EpochNumber, Lsn>> without_begin;

  // Guards what follows. Changed by apply() and flush() only, after RocksDB has taken the same change.
  mutable std::shared_mutex mutex;
  std::unordered_map<MachineId, IndexedMachine> machines;
  std::map<SegmentId, std::uint64_t> live;
  std::map<VolumeId, StoredBytes> stored;  // never 0
  std::map<SegmentId, std::uint64_t> kept;
  std::vector<SegmentId> unreferenced;  // as of the last flush
  std::set<SegmentId> adding;           // what refers to them is on its way
  LogMark mark;
  LogMark persisted;

  std::optional<IndexedMachine> find(const MachineId& machine) const;
  // Code::no_space: what is in memory would not fit the file system. RocksDB is not asked to try: each try leaves
  // it failed, until it has found the space itself.
  Status check_space() const;
  // Whether the memory takes another batch without being written out.
  bool has_room() const;
  std::uint64_t write_buffer_bytes = 0;
  PlaceVersions places;
  Status load();
  Status check_ends() const;  // of a rebuild
  // The next delta of a key's value; the error says which key it is.
  Status take(std::string_view& from, const keys::DeltaKey& key, Delta& to) const;
  std::unexpected<Error> error(const rocksdb::Status& status, std::string_view doing) const;
  template <typename Message>
  Result<std::shared_ptr<const Message>> parse(rocksdb::Slice bytes) const;  // storage/index.cc
  // Code::corrupt, and remembered.
  std::unexpected<Error> damaged(std::string what) const;
  mutable std::mutex damage_mutex;
  mutable std::optional<Error> damage;  // the first that was met

  // What the counts that change become; into a batch; and, with the mutex, in memory, once that is written.
  Counts after(const CountChanges& changes) const;
  static rocksdb::Status put(const Counts& counts, rocksdb::WriteBatch& batch);
  void take(const Counts& counts);
  Result<Counts> recount() const;
};

inline rocksdb::Slice slice(std::string_view bytes) { return {bytes.data(), bytes.size()}; }
inline rocksdb::Slice slice(const keys::Key& key) { return slice(key.view()); }

// The write-ahead log is off: the log of the partition is the truth.
inline rocksdb::WriteOptions write_options() {
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  return options;
}

// True for a record of an epoch that never was.
bool is_aborted(const pb::AbortedRanges* aborted, Lsn lsn);

// Exclusive bound of the keys that begin with `key`.
std::string after_prefix(std::string_view key);

}  // namespace tidemark::storage
