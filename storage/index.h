// The index of a partition: RocksDB 7.8, one column family, no write-ahead log. Derived from the log, and made again
// from it when it is lost. docs/index_format.md specifies keys and values. Keys are big-endian:
//
//   01                                    the mark: LogMark; in the same WriteBatch as what it covers
//   02                                    there while a rebuild is not finished
//   03                                    the layout: kLayout of index.cc; another one is made again
//   10 | volume u32 | region u32 | ~lsn   deltas: one record's extents in one 1 MiB region, or several folded into one
//   20 | segment u64                      live references (absolute count): extents, and records that are still needed
//   21 | volume u32                       bytes of the blocks that the volume's deltas refer to: in the log, and cold
//   22 | segment u64                      of a log segment that was left as it is: its live references then
//   30 | machine 16 | ~epoch u64          EpochEntry of a committed epoch
//   31 | machine 16                       OpenEpochEntry, if one is open
//   32 | machine 16                       AbortedRanges
//   50 | machine 16                       MachineRecord
//   51 | machine 16                       MachineHomes: where the records stand that tell of it
//
// What destroys an Index without flush() loses what was not flushed, as a crash would: the mark tells where to go on.
//
// What changes it belongs to one thread (the indexer's, or recovery's); every reading call is thread-safe.
#pragma once

#include <bitset>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "storage/commit_info.h"
#include "storage/fold.h"
#include "storage/records.pb.h"

namespace tidemark::storage {

// Where the newest visible version of some granules stands.
struct Extent {
  std::uint64_t first_granule = 0;  // the part that is visible
  std::uint32_t granules = 0;
  // The block that holds it.
  std::uint64_t block_first_granule = 0;
  std::uint32_t block_granules = 0;
  wire::Encoding encoding{};
  SegmentId segment;
  std::uint32_t offset = 0;  // of the block's header in the segment
  std::uint32_t stored_size = 0;
  EpochNumber epoch;
  bool sealed = false;
};

// A block that the index refers to.
struct StoredExtent {
  std::uint32_t region = 0;
  Lsn key;  // of the key it stands under
  Lsn lsn;
  EpochNumber epoch;
  SegmentId segment;
  DeltaExtent extent;
};

// The history of one region up to some LSN.
struct RegionHistory {
  std::vector<Lsn> keys;          // all there are, newest first
  std::vector<Version> versions;  // of committed epochs, newest first
};

// Which granules of a region were written.
struct WrittenRegion {
  std::uint32_t region = 0;
  std::bitset<limits::kRegionGranules> granules;
};

// What a fold, or a move of blocks, makes of a region: some keys go, some come.
struct RegionChange {
  MachineId machine;
  VolumeId volume;
  std::uint32_t region = 0;
  std::vector<Lsn> remove;
  std::vector<RegionEntry> put;
};

// An extent as the table of a cold segment lists it.
struct ColdExtent {
  VolumeId volume;
  std::uint32_t region = 0;
  Lsn lsn;
  EpochNumber epoch;
  DeltaExtent extent;
  bool operator==(const ColdExtent&) const = default;
};

class PlaceVersions;  // storage/region_maps.h

struct IndexOptions {
  std::uint64_t cache_bytes = 64 << 20;
  std::uint64_t write_buffer_bytes = 64 << 20;
};

class Index {
 public:
  // Makes it when it does not exist. Code::corrupt: it can be rebuilt from the log (delete it and open again).
  static Result<std::unique_ptr<Index>> open(const std::string& directory, const IndexOptions& options);
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;
  static bool exists(const std::string& directory);
  // Removes one that is not open, whatever state it is in.
  static Status destroy(const std::string& directory);
  // Any thread. What was met that should not be there: it has to be made again.
  std::optional<Error> damage() const;

  LogMark mark() const;            // applied, maybe not yet persisted
  LogMark persisted_mark() const;  // survives a crash
  // All of them or none, as far as readers and the mark can tell. Commits that do not follow the mark, or name what no
  // record before them tells of, are Code::corrupt. After a failure the same commits may be applied again.
  Status apply(std::span<const CommitInfo> commits);
  Status flush();  // what was applied is durable when it returns well
  // After an error of apply() or flush(): asks RocksDB to go on (its own background work stopped with it).
  Status resume();

  // --- a rebuild from the log and the cold segments, in an index that is empty ---
  // Order: begin_rebuild, add_cold for each segment, apply for the log from its begin, end_rebuild. Parts of the log
  // may be gone: LSNs may be missing between segments; `machines` has the newest record of each, wherever it stands;
  // records of `passed_over` (sorted) are passed over but for those of their removal. A rebuild that does not come to
  // its end leaves an index that open() refuses as Code::corrupt.
  Status begin_rebuild(std::span<const pb::MachineRecord> machines, std::vector<MachineId> passed_over);
  Status add_cold(SegmentId segment, std::span<const ColdExtent> extents);
  Status end_rebuild();

  // --- folding and moving ---
  // Everything of a region up to `through`, which must be the LSN of a commit of this machine or older than it.
  Result<RegionHistory> history(const MachineId& machine, VolumeId volume, std::uint32_t region, Lsn through) const;
  // All or nothing, with the references that go and come. Changes of machines that were removed in the meantime are
  // passed over. `added`: segments that become known with it; until the call that is `last` they are not taken for
  // unreferenced, so that changes may come in pieces.
  Status change(std::span<const RegionChange> changes, std::span<const SegmentId> added, bool last = true);

  std::vector<pb::MachineRecord> machines() const;  // removed ones too
  std::optional<pb::MachineRecord> machine(const MachineId& machine) const;
  // The highest epoch number of the machine that was ever begun; 0: none.
  EpochNumber highest_epoch(const MachineId& machine) const;
  std::optional<pb::OpenEpochEntry> open_epoch(const MachineId& machine) const;
  std::optional<pb::EpochEntry> newest_epoch(const MachineId& machine) const;  // fuzzy ones too
  Result<std::optional<pb::EpochEntry>> epoch(const MachineId& machine, EpochNumber number) const;
  // Newest first. `limit` 0: all. Fuzzy epochs are left out unless asked for.
  Result<std::vector<pb::EpochEntry>> epochs(const MachineId& machine, std::size_t limit, bool with_fuzzy) const {
    return epochs(machine, limit, with_fuzzy, EpochNumber(UINT64_MAX));
  }
  Result<std::vector<pb::EpochEntry>> epochs(const MachineId& machine, std::size_t limit, bool with_fuzzy,
                                             EpochNumber through) const;
  // The oldest committed epoch, fuzzy or not, that is not older than this one: the first to see what was written in it.
  Result<std::optional<pb::EpochEntry>> first_to_see(const MachineId& machine, EpochNumber epoch) const;

  // The visible extents of [first, first + count) granules as of `as_of`, in order, not overlapping; what no extent
  // covers was never written and reads as zeroes. `as_of` is the LSN of a commit of this machine. Code::not_found when
  // the machine was removed.
  Result<std::vector<Extent>> lookup(const MachineId& machine, VolumeId volume, Lsn as_of, std::uint64_t first_granule,
                                     std::uint64_t count) const;
  // Of the volume: as long as it stays the same, what lookup() said before stands where it did.
  const PlaceVersions& places() const;
  // Every region of a volume that has any version, in order: lets a reader skip what is empty.
  Result<std::vector<std::uint32_t>> regions(VolumeId volume, std::uint32_t from, std::size_t limit) const;

  // The first region from `from` on in which committed records with LSNs beyond `after` and up to `upto` wrote
  // anything, and which granules they wrote. Both are LSNs of commits of this machine, `after` may be Lsn(). Nothing:
  // there is none any more.
  Result<std::optional<WrittenRegion>> written(const MachineId& machine, VolumeId volume, Lsn after, Lsn upto,
                                               std::uint32_t from) const;

  // --- what is stored, for who checks it: blocks of data of committed epochs and of the one that is open ---
  // Of a volume, by region, newer keys first; about `extents_max` of them. `after`: region and key of the last one of
  // the call before. Empty: that was all. Zeroes, and what belongs to aborted epochs, are left out.
  struct StoredPlace {
    std::uint32_t region = 0;
    Lsn key;
  };
  Result<std::vector<StoredExtent>> stored(const MachineId& machine, VolumeId volume,
                                           const std::optional<StoredPlace>& after, std::size_t extents_max) const;
  // What still stands under the key of one record in a region; nothing when that was folded away.
  Result<std::vector<Delta>> deltas_at(VolumeId volume, std::uint32_t region, Lsn lsn) const;
  // The block at this place, if anything of this region refers to it.
  Result<std::optional<StoredExtent>> find_stored(const MachineId& machine, VolumeId volume, std::uint32_t region,
                                                  SegmentId segment, std::uint32_t offset) const;

  Result<std::uint64_t> live_references(SegmentId segment) const;
  // Segments that nothing refers to any more, durably so, in order; of the log's, those wholly below the persisted
  // mark.
  std::vector<SegmentId> unreferenced_segments() const;
  // Live references by segment, in order: of the log, then cold ones.
  std::vector<std::pair<SegmentId, std::uint64_t>> segments() const;
  // What tells of machines that removal or carrying forward must look after.
  std::optional<pb::MachineHomes> homes(const MachineId& machine) const;
  std::optional<pb::AbortedRanges> aborted(const MachineId& machine) const;
  bool knows_segment(SegmentId segment) const;  // a commit in it was applied, and it was not forgotten since
  // The oldest segment with a commit in it that is none of these; nullopt: there is none.
  // Of the log; the next one there is behind `segment`, but none of `these`.
  std::optional<SegmentId> segment_behind_but(SegmentId segment, const std::vector<SegmentId>& these) const;
  std::optional<SegmentId> oldest_segment_but(const std::vector<SegmentId>& these) const;
  Status forget_segment(SegmentId segment);  // it was given back: its count goes
  // How many references a segment of the log had when it was found worth leaving where it is. Lost with the index.
  Status note_kept(SegmentId segment, std::uint64_t references);
  std::optional<std::uint64_t> kept_with(SegmentId segment) const;
  // --- space ---
  // Bytes of the blocks that the volume's deltas refer to, header and stored bytes of each: exact. With what an open
  // epoch has so far, and what was overwritten or aborted until it is folded away.
  std::uint64_t stored_bytes(VolumeId volume) const;
  struct MachineSpace {
    MachineId machine;
    std::uint64_t logical_bytes = 0;  // of all disks it has
    std::uint64_t stored_bytes = 0;
    std::uint64_t cold_bytes = 0;  // of the stored ones; the rest is in the log
  };
  std::vector<MachineSpace> space() const;  // of every machine that is not removed
  // About what the deltas of each take in the index, by RocksDB's estimate: in steps of a block of its tables, so that
  // a small machine may have 0. May read from them.
  std::vector<std::uint64_t> table_bytes(std::span<const MachineId> machines) const;
  // Counts everything again, and compares. Code::corrupt: which count is wrong. On the thread that changes it; reads
  // the whole index.
  Status check_counts() const;
  struct Usage {
    std::uint64_t deltas = 0;  // estimated keys
    std::uint64_t disk_bytes = 0;
    std::uint64_t memory_bytes = 0;
    std::uint64_t segments = 0;  // of the log, from the first commit in them until they are given back
    std::uint64_t cold_segments = 0;
    std::uint64_t stored_bytes = 0;   // of all volumes
    std::uint64_t written_bytes = 0;  // to its tables, since it was opened
  };
  Usage usage() const;

  struct Impl;  // storage/index_impl.h

 private:
  explicit Index(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::storage
