// A listening TCP socket. Belongs to the thread of its io_context.
#pragma once

#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/status.h"

namespace tidemark::net {

class Acceptor {
 public:
  // From the loop, once per connection. May destroy the acceptor.
  using OnAccept = std::function<void(asio::ip::tcp::socket)>;
  // From the loop, once per spell of trouble: descriptors or memory ran out (Code::busy) or the system fails otherwise
  // (Code::io). Accepting pauses for kPause and is tried again; connections wait in the kernel's queue meanwhile.
  using OnTrouble = std::function<void(const Error&)>;
  static constexpr int kPauseMillis = 200, kRoomMillis = 2;

  struct Options {
    bool reuse_port = false;  // several acceptors on one address, one a thread; the kernel spreads connections
    int backlog = 4096;
    // From the loop, before each connection; false: asked again after kRoomMillis, and connections wait meanwhile.
    std::function<bool()> room{};
  };

  // Binds and listens at once. `address` is an IP address with a port, as parse_host_port reads it ("0.0.0.0:7443",
  // "[::]:7443" for both families); port 0 takes a free one. A port that lingers from a server that died is taken.
  static Result<std::unique_ptr<Acceptor>> listen(asio::io_context& context, const std::string& address,
                                                  OnAccept on_accept, OnTrouble on_trouble, const Options& options);
  static Result<std::unique_ptr<Acceptor>> listen(asio::io_context& context, const std::string& address,
                                                  OnAccept on_accept, OnTrouble on_trouble) {
    return listen(context, address, std::move(on_accept), std::move(on_trouble), Options());
  }
  ~Acceptor();  // closes the socket; nothing is called any more

  std::string address() const;  // with the port that was taken
  std::uint16_t port() const;

 private:
  struct Impl;
  explicit Acceptor(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

// Moves a connected socket with nothing under way to another thread's io_context; runs on the socket's own thread.
Result<asio::ip::tcp::socket> move_socket(asio::ip::tcp::socket socket, asio::io_context& to);

}  // namespace tidemark::net
