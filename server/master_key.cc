#include "server/master_key.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "server/private_file.h"
#include "storage/partition.h"

namespace tidemark::server {

using storage::MasterKeyId;
using storage::MasterKeys;

std::string master_key_path(const Directory& directory, const Config& config) {
  return config.storage.master_key_file.empty() ? directory.master_key() : config.storage.master_key_file;
}

Result<MasterKeys> read_master_keys(const std::string& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return fail_errno(errno, path, "look at the master key file");
  if (!S_ISREG(info.st_mode)) return fail(Code::invalid_argument, path, "the master key file is not a file");
  if ((info.st_mode & 077) != 0) {
    return fail(
        Code::permission_denied, path,
        fmt::format("the master key file has mode {:04o}: others than its owner may use it", info.st_mode & 07777),
        "chmod 0600 " + path + ", and think about who may have read it");
  }
  const std::string text = TIDEMARK_TRY(read_private_file(path));
  return MasterKeys::parse(text, path);
}

Result<std::vector<KeyNeed>> master_keys_needed(storage::FileSystem& files, const Directory& directory,
                                                const Superblock& superblock) {
  std::vector<KeyNeed> needs;
  for (std::uint32_t i = 0; i < superblock.partitions; ++i) {
    const std::string partition = partition_path(directory, superblock, PartitionId(i));
    // A partition that cannot say what it needs is fenced when it is opened, and the others are served.
    const auto ids = storage::Partition::master_keys_needed(files, partition);
    if (!ids) continue;
    for (const MasterKeyId id : *ids) {
      auto known = std::ranges::find(needs, id, &KeyNeed::id);
      if (known == needs.end()) known = needs.insert(needs.end(), KeyNeed{.id = id, .partitions = {}});
      known->partitions.push_back(std::filesystem::path(partition).filename().string());
    }
  }
  return needs;
}

namespace {

std::vector<MasterKeyId> ids_of(const std::vector<KeyNeed>& needs) {
  std::vector<MasterKeyId> ids;
  for (const KeyNeed& need : needs) ids.push_back(need.id);
  return ids;
}

}  // namespace

Result<std::shared_ptr<const MasterKeys>> load_master_keys(storage::FileSystem& files, const Directory& directory,
                                                           const Superblock& superblock, const Config& config) {
  const auto needs = TIDEMARK_TRY(master_keys_needed(files, directory, superblock));
  if (needs.empty() && !config.storage.encryption) return nullptr;
  const std::string path = master_key_path(directory, config);
  auto keys = read_master_keys(path);
  if (!keys && keys.error().code == Code::not_found) {
    if (!needs.empty()) return std::unexpected(storage::no_master_key_file(path, ids_of(needs), directory.path()));
    return fail(Code::not_found, path, "encryption is on, and the master key file is missing",
                "make one with `tidemarkd key init --data " + directory.path() + "`");
  }
  if (!keys) return std::unexpected(std::move(keys).error());
  TIDEMARK_TRY(keys->need(ids_of(needs), directory.path()));
  return std::make_shared<const MasterKeys>(std::move(*keys));
}

Result<MasterKeys> init_master_key(storage::FileSystem& files, const Directory& directory, const Superblock& superblock,
                                   const std::string& path, const Clock& clock) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) {
    return fail(Code::already_exists, path, "there is a master key file already",
                "`tidemarkd key rotate` adds a new key to it");
  }
  const auto needs = TIDEMARK_TRY(master_keys_needed(files, directory, superblock));
  if (!needs.empty()) return std::unexpected(storage::no_master_key_file(path, ids_of(needs), directory.path()));
  MasterKeys keys = MasterKeys(path).with_new_key(clock.wall_us());
  TIDEMARK_TRY(write_private_file(path, keys.text()));
  return keys;
}

Result<MasterKeys> rotate_master_key(const std::string& path, const Clock& clock) {
  MasterKeys keys = TIDEMARK_TRY(read_master_keys(path)).with_new_key(clock.wall_us());
  TIDEMARK_TRY(write_private_file(path, keys.text()));
  return keys;
}

Result<MasterKeys> retire_master_keys(storage::FileSystem& files, const Directory& directory,
                                      const Superblock& superblock, const std::string& path) {
  const MasterKeys keys = TIDEMARK_TRY(read_master_keys(path));
  for (std::uint32_t i = 0; i < superblock.partitions; ++i) {
    // Of each it must be known.
    const std::string partition = partition_path(directory, superblock, PartitionId(i));
    for (const MasterKeyId id : TIDEMARK_TRY(storage::Partition::master_keys_needed(files, partition))) {
      if (id == keys.current().id) continue;
      return fail(Code::busy, "master key " + to_string(id), partition + " has volumes' keys that are wrapped with it",
                  "start tidemarkd with this key file: it wraps them anew and says so; then try again");
    }
  }
  MasterKeys current = keys.current_only();
  if (keys.keys().size() > 1) TIDEMARK_TRY(write_private_file(path, current.text()));
  return current;
}

}  // namespace tidemark::server
