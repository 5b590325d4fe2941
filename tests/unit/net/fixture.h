// What the tests of net/ share: an authority with its certificates, connected sockets, and a handler that records.
#pragma once

#include <gtest/gtest.h>

#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/crypto.h"
#include "base/random.h"
#include "net/certificates.h"
#include "net/tls_context.h"
#include "net/tls_stream.h"

namespace tidemark::net::test {

inline MachineId some_machine(std::uint8_t n) {
  std::array<std::byte, MachineId::kSize> bytes{};
  bytes.fill(std::byte{n});
  return MachineId(bytes);
}

inline WallMicros now_us() { return Clock::system().wall_us(); }
constexpr WallMicros kHourMicros = 3'600'000'000;

// An authority and what it issued.
struct Pki {
  KeyAndCertificate authority;
  KeyAndCertificate server;

  explicit Pki(const std::string& name = "test authority") {
    authority = make_authority(name, now_us()).value();
    server = issue_server(authority, {"127.0.0.1", "localhost"}, now_us()).value();
  }
  Credentials machine(const MachineId& id, WallMicros issued_us = now_us(),
                      std::chrono::seconds lifetime = kMachineLifetime) const {
    const auto request = make_request("test").value();
    return {issue_machine(authority, request.csr_pem, id, issued_us, lifetime).value(), request.key_pem,
            authority.certificate_pem};
  }
  Credentials server_credentials() const { return {server.certificate_pem, server.key_pem, authority.certificate_pem}; }
  std::shared_ptr<TlsContext> server_context(const TicketKeys& keys = TicketKeys::make()) const {
    return TlsContext::server(server_credentials(), keys).value();
  }
};

inline std::pair<asio::ip::tcp::socket, asio::ip::tcp::socket> connected_sockets(asio::io_context& first,
                                                                                 asio::io_context& second) {
  asio::ip::tcp::acceptor acceptor(first, {asio::ip::address_v4::loopback(), 0});
  asio::ip::tcp::socket a(first), b(second);
  a.connect(acceptor.local_endpoint());
  acceptor.accept(b);
  return {std::move(a), std::move(b)};
}

// Turns the loop until `condition` holds. The bound is for a broken build, not for a slow machine.
inline bool run_until(asio::io_context& io, const std::function<bool()>& condition,
                      std::chrono::seconds bound = std::chrono::seconds(60)) {
  const auto end = std::chrono::steady_clock::now() + bound;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    io.restart();
    io.run_one_for(std::chrono::milliseconds(20));
  }
  return true;
}

class Recorder final : public TlsStream::Handler {
 public:
  std::size_t space_size = 64 << 10;
  bool pause = false;
  bool keep = true;  // false: count only
  std::optional<Peer> peer;
  std::string received;
  std::uint64_t received_bytes = 0;
  int writable = 0, closed = 0, spaces = 0;
  std::optional<Error> error;
  std::function<void()> after_handshake, after_read, after_close, after_writable;

  void on_handshake(const Peer& who) override {
    peer = who;
    if (after_handshake) after_handshake();
  }
  std::span<std::byte> read_space() override {
    ++spaces;
    if (pause) return {};
    space_.resize(space_size);
    return space_;
  }
  void on_read(std::size_t size) override {
    received_bytes += size;
    if (keep) received.append(reinterpret_cast<const char*>(space_.data()), size);
    if (after_read) after_read();
  }
  void on_writable() override {
    ++writable;
    if (after_writable) after_writable();
  }
  void on_closed(const std::optional<Error>& why) override {
    ++closed;
    error = why;
    if (after_close) after_close();
  }
  std::string message() const { return error ? error->message() : "no error"; }

 private:
  std::vector<std::byte> space_;
};

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// A server's and a client's stream on one loop.
struct Pair {
  asio::io_context& io;
  ReceiveBuffer buffer;
  Recorder server_side, client_side;
  std::unique_ptr<TlsStream> server, client;

  Pair(asio::io_context& context, std::shared_ptr<TlsContext> server_context,
       std::shared_ptr<TlsContext> client_context)
      : io(context) {
    auto [a, b] = connected_sockets(io, io);
    client = std::make_unique<TlsStream>(std::move(a), std::move(client_context), buffer, client_side);
    server = std::make_unique<TlsStream>(std::move(b), std::move(server_context), buffer, server_side);
  }
  void start() {
    server->start();
    client->start();
  }
  bool handshake() {
    start();
    return run_until(
               io,
               [&] { return (server_side.peer && client_side.peer) || server_side.closed || client_side.closed; }) &&
           server_side.peer && client_side.peer;
  }
  bool both_closed() {
    return run_until(io, [&] { return server_side.closed && client_side.closed; });
  }
};

}  // namespace tidemark::net::test
