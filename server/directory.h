// The data directory of a server.
//
//   server.json            superblock: format version, server id, number of partitions, when and as what it was made
//   lock                   held exclusively by the running server
//   tidemarkd.toml         configuration that `run` takes when none is named
//   audit.log              who did what to machines and points
//   seen-time              the newest time the server believed in
//   authority/             CA key and certificate, server key and certificate, tokens (mode 0700; files 0600)
//   partition-0000/ ...    one store each (storage/partition.h)
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

inline constexpr int kDirectoryFormat = 1;
inline constexpr std::uint32_t kPartitionsMax = 64;

struct Superblock {
  int format = kDirectoryFormat;
  std::string server_id;  // 32 hex digits
  std::string name;
  std::uint32_t partitions = 0;
  WallMicros created_us = 0;
  std::vector<std::string> addresses;  // host:port as agents reach it, the first goes into tokens; may be empty
};

struct InitOptions {
  std::uint32_t partitions = 4;
  std::string name;                    // empty: the host's name
  std::vector<std::string> addresses;  // HOST:PORT
};

class Directory {
 public:
  explicit Directory(std::string path) : path_(std::move(path)) {}
  const std::string& path() const { return path_; }
  std::string superblock() const { return path_ + "/server.json"; }
  std::string lock() const { return path_ + "/lock"; }
  std::string config() const { return path_ + "/tidemarkd.toml"; }
  std::string admin_socket() const { return path_ + "/admin.sock"; }
  std::string authority() const { return path_ + "/authority"; }
  std::string audit() const { return path_ + "/audit.log"; }
  std::string seen_time() const { return path_ + "/seen-time"; }
  std::string tokens() const { return authority() + "/tokens.json"; }
  std::string partition(PartitionId id) const;

 private:
  std::string path_;
};

// Makes everything; server.json is written last, so that a directory without it was never finished.
// Code::already_exists when the directory exists and is not empty.
Result<Superblock> create_directory(storage::FileSystem& files, const Directory& directory, const InitOptions& options,
                                    const Clock& clock);

// Code::not_found: no server.json; unsupported: of a newer version; corrupt: unreadable.
Result<Superblock> read_superblock(const Directory& directory);
Status write_superblock(const Directory& directory, const Superblock& superblock);

std::string host_name();

}  // namespace tidemark::server
