// The admin API: HTTP on a unix socket, docs/admin_api.md. Requests run on threads of their own, a fixed number;
// further ones wait in the kernel's queue. They reach the shards by messages and the store by its calls for any thread.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"

namespace tidemark::server {

struct Node;

class AdminServer {
 public:
  static constexpr int kThreads = 8;

  // Binds the socket (mode 0600) and serves. Whatever socket lies at `path` is replaced: the caller holds the lock of
  // the data directory.
  static Result<std::unique_ptr<AdminServer>> start(Node& node, const std::string& path);
  ~AdminServer();  // stop()
  // Streams that are under way are cut off (Node::stopping is set before). Removes the socket.
  void stop();

 private:
  struct Impl;
  explicit AdminServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::server
