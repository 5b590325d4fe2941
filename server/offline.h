// What tidemarkd does to a data directory that no server serves: rebuilding indexes, adding directories. Prints what it
// does on stdout, progress on stderr.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::server {

struct RebuildRequest {
  std::vector<std::uint32_t> partitions;  // empty: all
  bool check = false;                     // compare only
  std::string config;                     // for the size of the index' cache; empty: the data directory's
};
// False: done, and some partition could not be rebuilt, or its index is not what the log tells.
Result<bool> rebuild_indexes(const std::string& data, const RebuildRequest& request);

Status add_data_directory(const std::string& data, const std::string& path, std::uint32_t partitions);

}  // namespace tidemark::server
