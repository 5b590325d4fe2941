// The bytes of the log. docs/log_format.md specifies them with a worked example.
//
// A partition's log is a chain of segments, files of one fixed size, pre-written with zeroes and recycled. A segment
// begins with a header block of 4 KiB; commits follow, each one contiguous direct write, a multiple of 4 KiB:
//
//   CommitHeader (128 bytes) | payload x record_count | zeroes up to 8 | RecordEntry x record_count | zeroes up to 4
//   KiB
//
// The table stands behind the payloads, so that a payload can be copied to its final place before it is known how many
// records a commit will have. Every record has an LSN: header.first_lsn + its place in the table. The header's CRC is
// seeded with the partition's secret salt, so that no stored data can pose as a header. `headers_hash` covers, record
// by record, each control payload whole and of each blocks payload only its block headers, then the table: the stored
// bytes have their own hash there, and a second pass over them would cost a fifth of the server's CPU. Sealed blocks
// are checked as others are: their hash is over what is stored, so that nothing here needs a key.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/checksum.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "base/units.h"

namespace tidemark::storage {

inline constexpr std::uint32_t kCommitMagic = 0x434d4454;   // "TDMC" in memory
inline constexpr std::uint32_t kSegmentMagic = 0x534d4454;  // "TDMS" in memory
inline constexpr std::uint16_t kLogVersion = 1;

enum class RecordType : std::uint8_t {
  machine = 1,       // MachineRecord
  epoch_begin = 2,   // EpochBeginRecord
  blocks = 3,        // a blocks payload of wire/block.h
  epoch_commit = 4,  // EpochCommitRecord
  epoch_abort = 5,   // EpochAbortRecord
  history = 6,       // HistoryRecord
};

struct CommitHeader {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t flags;  // zero
  std::uint32_t partition;
  std::uint32_t record_count;  // 0: an empty commit that carries the durable LSN out
  std::uint64_t segment;
  std::uint64_t incarnation;
  std::uint64_t offset;             // its own, within the segment
  std::uint64_t first_lsn;          // of its first record; of the next record to come when it has none
  std::uint64_t durable_lsn;        // everything up to this was durable when this was submitted
  std::uint64_t previous_checksum;  // commit_checksum of the commit before, across segments; 0 for the very first
  std::uint64_t headers_hash_low;
  std::uint64_t headers_hash_high;
  std::int64_t arrival_us;     // server's wall clock when it was closed
  std::uint32_t size;          // of the whole commit, a multiple of 4 KiB
  std::uint32_t payload_size;  // of all payloads
  std::uint8_t reserved[28];   // zero
  std::uint32_t crc;           // CRC32C of the 124 bytes before, seeded with the salt
};
static_assert(sizeof(CommitHeader) == 128);
static_assert(offsetof(CommitHeader, crc) == 124);

// Of a machine whose volumes are encrypted: kSealedSumSize bytes stand before the blocks, the sum of the hashes that
// all blocks of the epoch had before they were sealed, this record's included, itself sealed (storage/sealing.h).
inline constexpr std::uint8_t kSealedRecord = 1;
inline constexpr std::size_t kSealedSumSize = 16;

struct RecordEntry {
  std::uint8_t machine[16];
  std::uint32_t payload_size;
  std::uint32_t disk;  // of blocks; else 0
  std::uint8_t type;
  std::uint8_t flags;        // kSealedRecord
  std::uint8_t reserved[6];  // zero
};
static_assert(sizeof(RecordEntry) == 32 && sizeof(Hash128) == kSealedSumSize);

struct SegmentHeader {  // the first 128 bytes of a segment; the rest of its 4 KiB is zero
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t flags;  // zero
  std::uint32_t partition;
  std::uint32_t reserved0;
  std::uint64_t segment;
  std::uint64_t incarnation;
  std::uint64_t size;                  // of the file
  std::uint64_t first_lsn;             // of the first record that goes here
  std::uint64_t predecessor;           // segment id; 0 for the first
  std::uint64_t predecessor_end;       // offset where its chain ends
  std::uint64_t predecessor_checksum;  // commit_checksum of its last commit: the chain goes on from it
  std::uint64_t durable_lsn;           // everything up to this was durable when this header was written
  std::uint8_t reserved1[44];          // zero
  std::uint32_t crc;                   // CRC32C of the 124 bytes before, seeded with the salt
};
static_assert(sizeof(SegmentHeader) == 128);

struct CommitInfo;  // storage/commit_info.h
struct RecordInfo;

// Where the record table of a commit with so much payload begins, and how long the commit is in all.
constexpr std::uint64_t table_offset(std::uint64_t payload_size) {
  return round_up(sizeof(CommitHeader) + payload_size, alignof(CommitHeader));
}
constexpr std::uint64_t commit_size(std::uint64_t payload_size, std::uint64_t record_count) {
  return round_up(table_offset(payload_size) + record_count * sizeof(RecordEntry), limits::kIoAlignment);
}

// The chain's link: XXH3-64 of the 128 bytes of the header, its CRC included.
std::uint64_t commit_checksum(const CommitHeader& header);

// Sets the CRC, the last thing to do to a header.
void seal(CommitHeader& header, std::uint32_t salt);
void seal(SegmentHeader& header, std::uint32_t salt);

// What a commit must state about itself to be believed at its place.
struct CommitExpectation {
  PartitionId partition;
  std::uint32_t salt = 0;
  SegmentId segment;
  Incarnation incarnation;
  std::uint64_t offset = 0;
  struct Chain {
    Lsn next_lsn;
    std::uint64_t previous_checksum = 0;
  };
  std::optional<Chain> chain;  // not known beyond a break
};

// The header at the front of `bytes` (at least 128; else it is no header). Checked: magic, CRC, version, every
// expectation, the sizes' relations. Code::corrupt says what is wrong; Code::unsupported: sealed by a newer format.
Result<CommitHeader> parse_commit_header(std::span<const std::byte> bytes, const CommitExpectation& expected);

struct ParsedCommit {
  CommitHeader header{};
  struct Damage {
    std::uint32_t record = 0;  // in CommitInfo::records
    std::uint32_t block = 0;   // in CommitInfo::blocks
  };
  std::vector<Damage> damaged;  // blocks whose stored bytes do not match their hash; everything else is sound
};

// A whole commit, `bytes` beginning with its header and holding at least header.size bytes. Any input is safe. On
// success `info` is what the log made of it when it was appended. Code::corrupt also when the table, a control payload
// or a block header is not what was written.
Result<ParsedCommit> parse_commit(std::span<const std::byte> bytes, const CommitExpectation& expected,
                                  CommitInfo& info);

// A segment's header from the file's first bytes. Code::not_found: none of this partition and this id (zeroes, torn, or
// of the segment's former life); Code::corrupt: it names another partition; Code::unsupported: a newer format. Without
// `segment` any id will do.
Result<SegmentHeader> parse_segment_header(std::span<const std::byte> bytes, PartitionId partition, std::uint32_t salt,
                                           std::optional<SegmentId> segment);

// Walks one record's payload: adds its blocks to `info` (places relative to `payload_offset`, within the segment) and
// feeds `headers` with what the headers' hash covers. An error, with `info` unchanged, when a blocks payload is
// malformed or its blocks are not all of one epoch and of `record.disk`. Shared by the log and by recovery.
Status add_record(RecordInfo record, std::span<const std::byte> payload, std::uint64_t payload_offset, CommitInfo& info,
                  Xxh3Stream& headers);

}  // namespace tidemark::storage
