// A running tidemarkd: opens a data directory, starts the shards, the acceptor and the admin API, and stops them again.
//
// Order of starting: lock, superblock, authority, data directories, shards, acceptor, admin API; meanwhile the
// partitions are opened, each on a thread of its own. Order of stopping: data directories' watch, acceptor, admin API,
// workers, goodbye to the sessions, partitions, lock.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "server/config.h"
#include "storage/file.h"

namespace tidemark::server {

struct Node;

class Server {
 public:
  // Serves when it returns well. Partitions that cannot be opened do not count, nor those that take long: it waits ten
  // seconds for them at most, one when an index is made again. /v1/health tells of them.
  static Result<std::unique_ptr<Server>> start(const std::string& data, const Config& config,
                                               storage::FileSystem& files, const Clock& clock);
  ~Server();  // stop()
  // Says goodbye, makes durable what was received, closes. Sessions get at most `grace` to read their goodbye.
  void stop(std::chrono::milliseconds grace = std::chrono::seconds(3));

  const std::string& address() const;  // HOST:PORT, with the port that was chosen
  const std::string& admin_socket() const;
  Node& node();

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::server
