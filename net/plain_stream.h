// A connected socket without TLS (a unix socket; TCP where that was asked for), with the manners of TlsStream: it
// pushes what comes into the space that its handler offers, queues what is to go, and belongs to the thread of its
// io_context. What it sends is not copied.
#pragma once

#include <asio/generic/stream_protocol.hpp>
#include <asio/io_context.hpp>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/status.h"
#include "net/tls_stream.h"

namespace tidemark::net {

class PlainStream {
 public:
  using Socket = asio::generic::stream_protocol::socket;

  // on_handshake is never called: there is none. on_writable comes whenever the queue has become empty.
  PlainStream(Socket socket, TlsStream::Handler& handler);
  ~PlainStream();

  void start();
  // Queues both; `owner` keeps the body's bytes and goes when they are sent.
  void write(std::string head, std::shared_ptr<const void> owner = nullptr, std::span<const std::byte> body = {});
  std::size_t queued() const;  // bytes
  void resume_reading();       // read_space() is asked again, from the loop
  void shutdown();             // sends what is queued, then closes; on_closed follows
  void close();                // at once; no on_closed follows
  // The socket, with nothing under way; null when something is queued or it is closed. Only destroy the stream then.
  std::optional<Socket> release();

  const TlsStream::Counters& counters() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tidemark::net
