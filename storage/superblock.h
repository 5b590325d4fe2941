// The superblock: the file `partition` of a partition's directory, which says what this is and whose. Text of a few
// lines, the last of them a checksum of the others; replaced whole and atomically. docs/index_format.md shows one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "storage/file.h"
#include "storage/master_keys.h"

namespace tidemark::storage {

// 2: encrypted, with the master keys that it needs. 1 otherwise, so that older programs can go on with it.
inline constexpr std::uint32_t kPartitionFormat = 2;

struct Superblock {
  PartitionId partition;
  std::uint32_t salt = 0;                // secret: seeds the checksums of the log's headers
  std::string server_id;                 // printable, without quotes
  std::vector<MasterKeyId> master_keys;  // those that any volume's key may be wrapped with, of format 2 on
  bool operator==(const Superblock&) const = default;
};

std::string encode_superblock(const Superblock& superblock);
// Any bytes. Code::corrupt when they are damaged, Code::unsupported when they are of a newer format. `path` is for the
// error.
Result<Superblock> decode_superblock(std::string_view text, const std::string& path);

// Durable when it returns well.
Status write_superblock(FileSystem& files, const std::string& directory, const Superblock& superblock);
Result<Superblock> read_superblock(FileSystem& files, const std::string& directory);

// It is of this partition of this server.
Status check_superblock(const Superblock& superblock, const std::string& directory, PartitionId id,
                        const std::string& server_id);

}  // namespace tidemark::storage
