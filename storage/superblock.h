// The superblock: the file `partition` of a partition's directory, which says what this is and whose. Text of a few
// lines, the last of them a checksum of the others; replaced whole and atomically. docs/index_format.md shows one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "base/status.h"
#include "storage/file.h"

namespace tidemark::storage {

inline constexpr std::uint32_t kPartitionFormat = 1;

struct Superblock {
  PartitionId partition;
  std::uint32_t salt = 0;  // secret: seeds the checksums of the log's headers
  std::string server_id;   // printable, without quotes
  bool operator==(const Superblock&) const = default;
};

std::string encode_superblock(const Superblock& superblock);
// Any bytes. Code::corrupt when they are damaged, Code::unsupported when they are of a newer format. `path` is for the
// error.
Result<Superblock> decode_superblock(std::string_view text, const std::string& path);

// Durable when it returns well.
Status write_superblock(FileSystem& files, const std::string& directory, const Superblock& superblock);
Result<Superblock> read_superblock(FileSystem& files, const std::string& directory);

}  // namespace tidemark::storage
