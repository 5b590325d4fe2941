// The index of a partition: RocksDB 7.8, one column family, no write-ahead log. Derived from the log, and made again
// from it when it is lost. docs/index_format.md specifies keys and values. Keys are big-endian:
//
//   01                                    the mark: LogMark; in the same WriteBatch as what it covers
//   10 | volume u32 | region u32 | ~lsn   a delta: one record's extents in one 1 MiB region
//   20 | segment u64                      live references into it (absolute count): records of machines not removed
//   21 | machine 16 | segment u64         how many of them are this machine's
//   30 | machine 16 | ~epoch u64          EpochEntry of a committed epoch
//   31 | machine 16                       OpenEpochEntry, if one is open
//   32 | machine 16                       AbortedRanges
//   50 | machine 16                       MachineRecord
//
// What destroys an Index without flush() loses what was not flushed, as a crash would: the mark tells where to go on.
//
// apply(), flush(), resume() and forget_segment() belong to one thread (the indexer's, or recovery's); every reading
// call is thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "storage/commit_info.h"
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
};

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

  LogMark mark() const;            // applied, maybe not yet persisted
  LogMark persisted_mark() const;  // survives a crash
  // All of them or none, as far as readers and the mark can tell. Commits that do not follow the mark, or name what no
  // record before them tells of, are Code::corrupt. After a failure the same commits may be applied again.
  Status apply(std::span<const CommitInfo> commits);
  // For a rebuild from a log of which segments were given back: LSNs may be missing between segments, and records of
  // these machines are passed over, but for those of their removal.
  void expect_gaps(std::vector<MachineId> removed);
  Status flush();  // what was applied is durable when it returns well
  // After an error of apply() or flush(): asks RocksDB to go on (its own background work stopped with it).
  Status resume();

  std::vector<pb::MachineRecord> machines() const;  // removed ones too
  std::optional<pb::MachineRecord> machine(const MachineId& machine) const;
  // The highest epoch number of the machine that was ever begun; 0: none.
  EpochNumber highest_epoch(const MachineId& machine) const;
  std::optional<pb::OpenEpochEntry> open_epoch(const MachineId& machine) const;
  std::optional<pb::EpochEntry> newest_epoch(const MachineId& machine) const;  // fuzzy ones too
  Result<std::optional<pb::EpochEntry>> epoch(const MachineId& machine, EpochNumber number) const;
  // Newest first. `limit` 0: all. Fuzzy epochs are left out unless asked for.
  Result<std::vector<pb::EpochEntry>> epochs(const MachineId& machine, std::size_t limit, bool with_fuzzy) const;

  // The visible extents of [first, first + count) granules as of `as_of`, in order, not overlapping; what no extent
  // covers was never written and reads as zeroes. `as_of` is the LSN of a commit of this machine. Code::not_found when
  // the machine was removed.
  Result<std::vector<Extent>> lookup(const MachineId& machine, VolumeId volume, Lsn as_of, std::uint64_t first_granule,
                                     std::uint64_t count) const;
  // Every region of a volume that has any version, in order: lets a reader skip what is empty.
  Result<std::vector<std::uint32_t>> regions(VolumeId volume, std::uint32_t from, std::size_t limit) const;

  Result<std::uint64_t> live_references(SegmentId segment) const;
  // Segments wholly below the persisted mark that nothing refers to any more, in order.
  std::vector<SegmentId> unreferenced_segments() const;
  bool knows_segment(SegmentId segment) const;  // a commit in it was applied, and it was not forgotten since
  // The oldest segment with a commit in it that is none of these; nullopt: there is none.
  std::optional<SegmentId> oldest_segment_but(const std::vector<SegmentId>& these) const;
  Status forget_segment(SegmentId segment);  // it was given back: its count goes
  struct Usage {
    std::uint64_t deltas = 0;  // estimated keys
    std::uint64_t disk_bytes = 0;
    std::uint64_t memory_bytes = 0;
    std::uint64_t segments = 0;  // of the log, from the first commit in them until they are given back
  };
  Usage usage() const;

  struct Impl;  // storage/index_impl.h

 private:
  explicit Index(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::storage
