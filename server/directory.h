// The data directory of a server.
//
//   server.json            superblock: format version, server id, number of partitions, when and as what it was made
//   lock                   held exclusively by the running server
//   tidemarkd.toml         configuration that `run` takes when none is named
//   audit.log              who did what to machines and points
//   seen-time              the newest time the server believed in
//   master.key             what volumes' keys are wrapped with, unless the configuration names another file
//   authority/             CA key and certificate, server key and certificate, tokens (mode 0700; files 0600)
//   partition-0000/ ...    one store each (storage/partition.h), unless it stands in a further directory
//
// Further data directories, one for each disk, hold partitions and nothing else:
//
//   data-directory.json    marker: whose this is and which; without it, nothing is served from there
//   lock                   held exclusively by the running server
//   partition-0004/ ...
//
// Blocking; not on a shard's thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/file.h"

namespace tidemark::server {

inline constexpr int kDirectoryFormat = 2;  // 1, as long as there are no further data directories
inline constexpr std::uint32_t kPartitionsMax = 64;

// A further data directory.
struct DataDirectory {
  std::string id;    // 32 hex digits
  std::string path;  // absolute
  std::vector<PartitionId> partitions;
  bool operator==(const DataDirectory&) const = default;
};

struct Superblock {
  int format = 1;
  std::string server_id;  // 32 hex digits
  std::string name;
  std::uint32_t partitions = 0;
  WallMicros created_us = 0;
  std::vector<std::string> addresses;  // host:port as agents reach it, the first goes into tokens; may be empty
  // How many partitions there were at first: a machine's id says by this number in which of them it lives, or else
  // names a later one itself (server/placement.h).
  std::uint32_t first_partitions = 0;
  std::vector<DataDirectory> directories;  // what is in none of these is in the main one
};

struct InitOptions {
  std::uint32_t partitions = 4;
  std::string name;                    // empty: the host's name
  std::vector<std::string> addresses;  // HOST:PORT
  // Where the partitions go, in turn; empty: all into the directory itself.
  std::vector<std::string> data_directories = {};
};

class Directory {
 public:
  explicit Directory(std::string path) : path_(std::move(path)) {}
  const std::string& path() const { return path_; }
  std::string superblock() const { return path_ + "/server.json"; }
  std::string lock() const { return path_ + "/lock"; }
  std::string config() const { return path_ + "/tidemarkd.toml"; }
  std::string admin_socket() const { return path_ + "/admin.sock"; }
  std::string nbd_socket() const { return path_ + "/nbd.sock"; }
  std::string authority() const { return path_ + "/authority"; }
  std::string audit() const { return path_ + "/audit.log"; }
  std::string seen_time() const { return path_ + "/seen-time"; }
  std::string master_key() const { return path_ + "/master.key"; }
  std::string clients() const { return authority() + "/clients"; }
  std::string tokens() const { return authority() + "/tokens.json"; }
  std::string partition(PartitionId id) const;

 private:
  std::string path_;
};

// Makes everything; server.json is written last, so that a directory without it was never finished.
// Code::already_exists when a directory exists and is not empty (but for `lost+found`).
Result<Superblock> create_directory(storage::FileSystem& files, const Directory& directory, const InitOptions& options,
                                    const Clock& clock);

// Code::not_found: no server.json; unsupported: of a newer version; corrupt: unreadable.
Result<Superblock> read_superblock(const Directory& directory);
Status write_superblock(const Directory& directory, const Superblock& superblock);

// In which directory a partition stands, by its path.
std::string home_of(const Directory& directory, const Superblock& superblock, PartitionId partition);
inline std::string partition_path(const Directory& directory, const Superblock& superblock, PartitionId partition) {
  return Directory(home_of(directory, superblock, partition)).partition(partition);
}

// The file `data-directory.json`.
struct DirectoryMarker {
  std::string server_id, directory_id;
  bool operator==(const DirectoryMarker&) const = default;
};
std::string marker_path(const std::string& directory);
// Reads past the kernel's cache. Code::not_found: there is none, with what that may mean; corrupt, unsupported; io.
Result<DirectoryMarker> read_marker(storage::FileSystem& files, const std::string& directory);

// Makes `partitions` further ones in a directory that is empty or does not exist. No server runs; the caller holds the
// lock. server.json is written last: a crash before leaves a directory that nobody knows. A directory that is known
// already, and was mounted elsewhere, is taken up under its new path instead (`partitions` 0).
Result<Superblock> add_directory(storage::FileSystem& files, const Directory& directory, const std::string& path,
                                 std::uint32_t partitions, const Clock& clock);

std::string host_name();

}  // namespace tidemark::server
