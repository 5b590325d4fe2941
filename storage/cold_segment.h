// Cold segments: where blocks go that outlive the log. Files written once, from end to end, by the settler
// (storage/settler.h), and removed whole when nothing refers to them any more.
//
// Directory `cold` of the partition. Names: 00000000000000a7.segment, by number in hexadecimal; *.tmp are unfinished
// and removed when found. Bytes (docs/index_format.md has them with an example):
//
//   ColdHeader in 4 KiB | {BlockHeader, stored bytes} ... | zeroes to 4 KiB | ColdEntry x count | zeroes to 4 KiB |
//   ColdFooter in 4 KiB
//
// Blocks are ordered by volume and place, and lie as in the log, header and bytes side by side. The table lists every
// extent with its volume and LSN, zeroes too: with the log's records it is enough to make the index again. Header and
// footer are sealed with the partition's salt; the footer's hash covers the table.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/file.h"
#include "storage/index.h"
#include "storage/segment_kind.h"

namespace tidemark::storage {

struct ColdHeader {  // the first 64 bytes of the file
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t flags;  // zero
  std::uint32_t partition;
  std::uint32_t reserved0;
  std::uint64_t number;
  std::uint8_t reserved[36];
  std::uint32_t crc;  // CRC32C of the 60 bytes before, seeded with the salt
};
static_assert(sizeof(ColdHeader) == 64);

struct ColdEntry {
  std::uint32_t volume;
  std::uint32_t region;
  std::uint64_t lsn;
  std::uint64_t epoch;
  std::uint32_t offset;  // of the block's header in the file; 0 for zeroes
  std::uint32_t stored_size;
  std::uint16_t first;  // granule in the region
  std::uint16_t count;
  std::uint8_t encoding;
  std::uint8_t flags;  // wire::kSealedFlag
  std::uint8_t reserved[2];
};
static_assert(sizeof(ColdEntry) == 40);

struct ColdFooter {  // the last 4 KiB of the file begin with it
  std::uint32_t magic;
  std::uint32_t count;
  std::uint64_t number;
  std::uint64_t table_offset;
  std::uint64_t table_hash_low, table_hash_high;  // XXH3-128 of the table
  std::uint8_t reserved[20];
  std::uint32_t crc;
};
static_assert(sizeof(ColdFooter) == 64);

std::string cold_path(const std::string& cold_directory, SegmentId segment);

// Writes one. Blocking; nothing is durable, and the file has no name that counts, before finish() returned well.
class ColdWriter {
 public:
  static Result<std::unique_ptr<ColdWriter>> create(FileSystem& files, const std::string& cold_directory,
                                                    SegmentId segment, PartitionId partition, std::uint32_t salt);
  ~ColdWriter();  // an unfinished file is removed

  SegmentId segment() const { return segment_; }
  std::uint64_t size() const { return offset_; }  // bytes so far, without table
  std::size_t extents() const { return table_.size(); }

  // A whole block, header and stored bytes; the offset of the header in the file.
  Result<std::uint32_t> add_block(std::span<const std::byte> block);
  // Every extent that the file is to be referred to for, of blocks added before, or of zeroes.
  void add_extent(VolumeId volume, std::uint32_t region, Lsn lsn, EpochNumber epoch, const DeltaExtent& extent);
  // Table, footer, sync, rename, sync of the directory.
  Status finish();

 private:
  ColdWriter(FileSystem& files, std::string directory, SegmentId segment, PartitionId partition, std::uint32_t salt);
  Status append(std::span<const std::byte> bytes);
  Status pad();

  FileSystem& files_;
  const std::string directory_;
  const SegmentId segment_;
  const PartitionId partition_;
  const std::uint32_t salt_;
  std::unique_ptr<File> file_;
  std::string temporary_;
  AlignedBuffer buffer_;
  std::size_t buffered_ = 0;
  std::uint64_t offset_ = 0;  // of the next byte
  std::vector<ColdEntry> table_;
  bool finished_ = false;
};

// The table of a finished one. Code::corrupt when it is not what was written; any bytes are safe.
Result<std::vector<ColdExtent>> read_cold_table(File& file, SegmentId segment, PartitionId partition,
                                                std::uint32_t salt);

// Ids of the finished ones, in order. Removes what is unfinished.
Result<std::vector<SegmentId>> list_cold_segments(FileSystem& files, const std::string& cold_directory);

}  // namespace tidemark::storage
