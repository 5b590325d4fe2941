// A listening unix socket on a shard's loop. Belongs to the thread of its io_context, but for the constructor.
#pragma once

#include <asio/io_context.hpp>
#include <asio/local/stream_protocol.hpp>
#include <asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"

namespace tidemark::server {

class UnixListener {
 public:
  using OnAccept = std::function<void(asio::local::stream_protocol::socket)>;

  // Code::already_exists: somebody listens there. A socket of a server that died is taken over.
  static Result<std::unique_ptr<UnixListener>> listen(asio::io_context& context, const std::string& path,
                                                      OnAccept on_accept);
  ~UnixListener();  // closes it, and removes its name
  void start();

 private:
  struct Impl;
  explicit UnixListener(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<Impl> impl_;
};

}  // namespace tidemark::server
