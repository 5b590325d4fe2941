// Making a partition's index again from the log and the cold segments alone, while no server runs; and checking the one
// there is against them. Blocking; the caller holds the lock of the data directory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "storage/file.h"
#include "storage/index.h"
#include "storage/open_progress.h"

namespace tidemark::storage {

enum class RebuildMode : std::uint8_t {
  replace,  // the new one takes the place of the old one
  check,    // the new one is compared with the old one, and goes
};

struct RebuildReport {
  std::uint64_t commits = 0;  // read from the log
  std::uint64_t log_bytes = 0;
  std::uint64_t cold_segments = 0;
  std::uint64_t machines = 0;  // removed ones are not counted
  std::uint64_t epochs = 0;
  std::uint64_t damaged_blocks = 0;      // of which header and bytes do not agree; the index names them all the same
  std::vector<std::string> differences;  // check: what the index there is shows otherwise, or why it cannot be read
};

// The new index is made beside the old one, in unfinished_index(), and takes its place in one step when it is whole and
// durable. Killed before that, the old one is as it was, and what was begun goes at the next try or start. Disk space
// is needed for both.
// Code::corrupt: log or cold segments have a hole; Code::cancelled: called off. Nothing was changed then.
// `index_directory` empty: `index` in the partition's directory.
Result<RebuildReport> rebuild_index(FileSystem& files, const std::string& directory, PartitionId id,
                                    const std::string& server_id, const IndexOptions& options, RebuildMode mode,
                                    OpenProgress& progress, const std::string& index_directory = {});

std::string unfinished_index(const std::string& index_directory);

}  // namespace tidemark::storage
