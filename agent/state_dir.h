// The agent's state directory: key.pem (0600), certificate.pem, ca.pem, agent.toml, memory, status.json, lock.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <string>

#include "agent/file_descriptor.h"
#include "base/ids.h"
#include "base/status.h"
#include "net/tls_context.h"

namespace tidemark::agent {

class StateDir {
 public:
  explicit StateDir(std::filesystem::path path) : path_(std::move(path)) {}
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path key() const { return path_ / "key.pem"; }
  std::filesystem::path certificate() const { return path_ / "certificate.pem"; }
  std::filesystem::path ca() const { return path_ / "ca.pem"; }
  std::filesystem::path config() const { return path_ / "agent.toml"; }
  std::filesystem::path memory() const { return path_ / "memory"; }
  std::filesystem::path status() const { return path_ / "status.json"; }

  // Makes it, for root (or whoever runs the agent) only, unless it is there.
  Status create() const;
  bool enrolled() const;
  // Key, certificate and authority. Errors name the file, and what to do about it.
  Result<net::Credentials> credentials() const;
  // The machine that the certificate names.
  Result<MachineId> machine() const;

 private:
  std::filesystem::path path_;
};

// Held by the one process that syncs. Ends with the process, whatever ends it.
class StateLock {
 public:
  // busy, naming the holder, when another process has it.
  static Result<StateLock> take(const StateDir& dir);
  // The process that wrote its number last, which may be gone; 0: none.
  static pid_t holder(const StateDir& dir);
  // Whether somebody holds it now.
  static bool held(const StateDir& dir);

 private:
  explicit StateLock(FileDescriptor fd) : fd_(std::move(fd)) {}
  FileDescriptor fd_;
};

}  // namespace tidemark::agent
