// Recovery: walks the log from the index's mark along the hash chain, hands every valid commit on, and decides what a
// break means.
//
// D, the proven durable LSN, is the highest of: the mark's LSN, the durable LSN stated by every valid commit or segment header found
// (beyond a break too, sector by sector over the in-flight window and in later segments), and the base of a successor segment. A
// break at or below D is corruption: reported, fenced, nothing is truncated. Above D it is a torn tail: it was never
// acknowledged, and is dropped. Where two commits claim an LSN, the newer incarnation's holds.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "storage/commit_info.h"
#include "storage/file.h"
#include "storage/log.h"

namespace tidemark::storage {

struct DamagedBlock {   // found on the way, header chain intact: only these bytes are lost
  SegmentId segment;
  MachineId machine;
  DiskId disk;
  EpochNumber epoch;
  BlockPlace place;
};

struct RecoveryResult {
  LogTail tail;
  Incarnation incarnation_max;       // highest seen; opening raises it by one
  SegmentId segment_max;             // highest id seen in any file, 0 if none
  Lsn durable_lsn;                   // D
  std::uint64_t commits = 0;
  std::uint64_t replayed_bytes = 0;
  std::uint64_t torn_bytes = 0;      // dropped above D
  std::vector<SegmentId> segments;   // that belong to the log, in order, from the oldest file there is
  std::vector<DamagedBlock> damaged; // at or below D, at most 1024 listed
};

struct RecoveryOptions {
  PartitionId partition;
  std::uint32_t salt = 0;
  LogMark mark;
};

// `sink` gets every commit after the mark in order; an error of it ends recovery. Blocking. Code::corrupt with segment,
// offset and LSNs in the error when there is a break at or below D.
Result<RecoveryResult> recover_log(FileSystem& files, const std::string& directory, const RecoveryOptions& options,
                                   const std::function<Status(CommitInfo&&)>& sink);

}  // namespace tidemark::storage
