// The master key file of a data directory: read at start, made and changed by `tidemarkd key`. Blocking.
//
// Rotation, step by step, each safe to be cut off and done again: rotate() puts a new key in front in the file; the
// next start wraps every volume's key anew, which rewrites no data (storage/partition_seal.cc); then retire() takes the
// older keys, which no partition names any more, out of the file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "server/config.h"
#include "server/directory.h"
#include "storage/file.h"
#include "storage/master_keys.h"

namespace tidemark::server {

std::string master_key_path(const Directory& directory, const Config& config);

// Code::permission_denied: others than its owner may read it. Code::not_found: there is no such file.
Result<storage::MasterKeys> read_master_keys(const std::string& path);

// What a start needs; null when nothing is encrypted or to be. An error names the file, the key that is missing and
// what needs it; nothing was changed.
Result<std::shared_ptr<const storage::MasterKeys>> load_master_keys(storage::FileSystem& files,
                                                                    const Directory& directory,
                                                                    const Superblock& superblock, const Config& config);

// The master keys that any partition needs, each with the partitions' names.
struct KeyNeed {
  storage::MasterKeyId id;
  std::vector<std::string> partitions;
};
Result<std::vector<KeyNeed>> master_keys_needed(storage::FileSystem& files, const Directory& directory,
                                                const Superblock& superblock);

// Makes the file. Code::already_exists, or that the store is encrypted with keys that a new file would not have.
Result<storage::MasterKeys> init_master_key(storage::FileSystem& files, const Directory& directory,
                                            const Superblock& superblock, const std::string& path, const Clock& clock);
Result<storage::MasterKeys> rotate_master_key(const std::string& path, const Clock& clock);
// Code::busy: an older one is needed still.
Result<storage::MasterKeys> retire_master_keys(storage::FileSystem& files, const Directory& directory,
                                               const Superblock& superblock, const std::string& path);

}  // namespace tidemark::server
