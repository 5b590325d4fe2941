// Recovery: walks the log from the index's mark along the hash chain, hands every valid commit on, and decides what a
// break means.
//
// The chain of segments is found from its newest end: the segment header of the highest incarnation (of these, the
// highest id) names its predecessor and where that one's part ends, and so on back to the mark. Whatever no header
// reaches was superseded: where two commits claim an LSN, the newer incarnation's holds.
//
// D, the proven durable LSN, is the highest of: the mark's LSN and the durable LSN stated by every valid commit or
// segment header, beyond a break too (block by block over the rest of that segment and over later ones). A break at or
// below D is corruption: reported, fenced, nothing is truncated. Above D it is a torn tail: it was never
// acknowledged, and is dropped. A successor's header states D itself, not by where it begins: it may have been written
// while the last commits before it were still in flight.
//
// What is handed on above D had been written but perhaps not flushed: its files are synced before recovery returns.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "storage/commit_info.h"
#include "storage/file.h"
#include "storage/log.h"

namespace tidemark::storage {

struct DamagedBlock {  // found on the way, header chain intact: only these bytes are lost
  SegmentId segment;
  MachineId machine;
  DiskId disk;
  EpochNumber epoch;
  BlockPlace place;
};

struct RecoveryResult {
  LogTail tail;
  Incarnation incarnation_max;  // highest seen; opening raises it by one
  SegmentId segment_max;        // highest id seen in any file, 0 if none
  Lsn durable_lsn;              // D
  std::uint64_t commits = 0;
  std::uint64_t replayed_bytes = 0;
  std::uint64_t torn_bytes = 0;       // dropped above D, as far as headers tell
  std::vector<SegmentId> segments;    // that belong to the log, in order, from the oldest file there is
  std::vector<DamagedBlock> damaged;  // at or below D, at most 1024 listed
  Lsn walked_from;                    // the LSN that was looked for first: the mark's next, or where the log begins
};

struct RecoveryOptions {
  PartitionId partition;
  std::uint32_t salt = 0;
  LogMark mark;
  // For a walk from the log's begin: where that is (0: the oldest file there is), and the headers of segments that were
  // given back since, by id: the chain leads through them, what they held is passed over.
  SegmentId begin;
  std::vector<SegmentHeader> released;
};

// `sink` gets every commit after the mark in order; an error of it ends recovery. Blocking; reads each byte once.
// Code::corrupt with segment, offset and LSNs in the error when there is a break at or below D; the sink may have got
// the sound commits before it. Code::unsupported: a segment of a newer format. Nothing in the directory is changed.
Result<RecoveryResult> recover_log(FileSystem& files, const std::string& directory, const RecoveryOptions& options,
                                   const std::function<Status(CommitInfo&&)>& sink);

}  // namespace tidemark::storage
