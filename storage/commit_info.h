// What one durable commit of the log holds, without its data: passed from the log to the index, and made again by
// recovery. Plain values, moved between threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "storage/log_format.h"
#include "wire/block.h"

namespace tidemark::storage {

struct BlockPlace {
  std::uint64_t first_granule = 0;
  std::uint32_t granules = 0;
  std::uint32_t stored_size = 0;
  std::uint32_t offset = 0;  // of the block's header within its segment (segments are below 4 GiB)
  wire::Encoding encoding{};
  bool sealed = false;
  bool operator==(const BlockPlace&) const = default;
  // As it was sent.
  std::uint32_t sent_size() const { return stored_size - (sealed ? wire::kSealedOverhead : 0); }
};

struct RecordInfo {
  Lsn lsn;
  RecordType type{};
  MachineId machine;
  DiskId disk;
  EpochNumber epoch;              // of blocks
  std::uint32_t first_block = 0;  // in CommitInfo::blocks
  std::uint32_t block_count = 0;
  // Of the blocks' hashes; in a sealed record the sealed sum of the epoch's so far.
  Hash128 sum;
  bool sealed = false;
  std::uint32_t payload_size = 0;
  std::string control;  // the payload of every type but blocks
  bool operator==(const RecordInfo&) const = default;
};

struct CommitInfo {
  SegmentId segment;
  std::uint64_t offset = 0;
  std::uint32_t size = 0;
  Lsn first_lsn;
  Lsn last_lsn;                // first_lsn - 1 for an empty commit
  std::uint64_t checksum = 0;  // commit_checksum: the chain goes on from it
  WallMicros arrival_us = 0;
  std::vector<RecordInfo> records;
  std::vector<BlockPlace> blocks;
  bool operator==(const CommitInfo&) const = default;
};

// Up to where the index has applied the log. The next commit to apply is at `offset` of `segment`, or the first one of
// its successor when nothing valid is there.
struct LogMark {
  SegmentId segment;  // 0: nothing was ever applied; begin with the first segment there is
  std::uint64_t offset = 0;
  Lsn lsn;                     // last applied
  std::uint64_t checksum = 0;  // of the last commit applied
  bool operator==(const LogMark&) const = default;
};

}  // namespace tidemark::storage
