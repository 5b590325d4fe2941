// The bytes of the log. docs/log_format.md specifies them with a worked example.
//
// A partition's log is a chain of segments, files of one fixed size, pre-written with zeroes and recycled. A segment
// begins with a header block of 4 KiB; commits follow, each one contiguous direct write, a multiple of 4 KiB:
//
//   CommitHeader (128 bytes) | RecordEntry x record_count | payload x record_count | zeroes up to the next 4 KiB
//
// Every record has an LSN: header.first_lsn + its place in the table. The header's CRC is seeded with the partition's
// secret salt, so that no stored data can pose as a header. `headers_hash` covers the table, each control payload
// whole, and of each blocks payload only its block headers: the stored bytes have their own hash there, and a second
// pass over them would cost a fifth of the server's CPU.
#pragma once

#include <cstdint>

#include "base/checksum.h"
#include "base/ids.h"
#include "base/limits.h"

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
};

struct CommitHeader {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t flags;               // zero
  std::uint32_t partition;
  std::uint32_t record_count;        // 0: an empty commit that carries the durable LSN out
  std::uint64_t segment;
  std::uint64_t incarnation;
  std::uint64_t offset;              // its own, within the segment
  std::uint64_t first_lsn;           // of its first record; of the next record to come when it has none
  std::uint64_t durable_lsn;         // everything up to this was durable when this was submitted
  std::uint64_t previous_checksum;   // commit_checksum of the commit before, across segments; 0 for the very first
  std::uint64_t headers_hash_low;
  std::uint64_t headers_hash_high;
  std::int64_t arrival_us;           // server's wall clock when it was closed
  std::uint32_t size;                // of the whole commit, a multiple of 4 KiB
  std::uint32_t payload_size;        // of all payloads
  std::uint8_t reserved[28];         // zero
  std::uint32_t crc;                 // CRC32C of the 124 bytes before, seeded with the salt
};
static_assert(sizeof(CommitHeader) == 128);
static_assert(offsetof(CommitHeader, crc) == 124);

struct RecordEntry {
  std::uint8_t machine[16];
  std::uint32_t payload_size;
  std::uint32_t disk;                // of blocks; else 0
  std::uint8_t type;
  std::uint8_t reserved[7];          // zero
};
static_assert(sizeof(RecordEntry) == 32);

struct SegmentHeader {               // the first 128 bytes of a segment; the rest of its 4 KiB is zero
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t flags;               // zero
  std::uint32_t partition;
  std::uint32_t reserved0;
  std::uint64_t segment;
  std::uint64_t incarnation;
  std::uint64_t size;                // of the file
  std::uint64_t first_lsn;           // of the first record that goes here
  std::uint64_t predecessor;         // segment id; 0 for the first
  std::uint64_t predecessor_end;     // offset where its chain ends
  std::uint64_t predecessor_checksum;  // commit_checksum of its last commit: the chain goes on from it
  std::uint64_t durable_lsn;         // everything up to this was durable when this header was written
  std::uint8_t reserved1[44];        // zero
  std::uint32_t crc;                 // CRC32C of the 124 bytes before, seeded with the salt
};
static_assert(sizeof(SegmentHeader) == 128);

// The chain's link: XXH3-64 of the 128 bytes of the header, its CRC included.
std::uint64_t commit_checksum(const CommitHeader& header);

}  // namespace tidemark::storage
