// A connection before anything is known of it: its TLS handshake. Once that is done, the connection moves to the shard
// of the machine that its certificate names; one that wants to enrol stays here. On one shard's thread.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "net/tls_stream.h"
#include "server/admission.h"

namespace tidemark::server {

class Shard;

class Greeter final : public net::TlsStream::Handler {
 public:
  Greeter(Shard& shard, asio::ip::tcp::socket socket, std::shared_ptr<net::TlsContext> tls,
          AdmissionCount::Ticket handshake);
  void start() { stream_->start(); }
  void drop() { stream_->close(); }

 private:
  void on_handshake(const net::Peer& peer) override;
  std::span<std::byte> read_space() override { return {}; }
  void on_read(std::size_t) override {}
  void on_writable() override {}
  void on_closed(const std::optional<Error>& error) override;

  Shard& shard_;
  AdmissionCount::Ticket handshake_;
  std::unique_ptr<net::TlsStream> stream_;
  const std::chrono::steady_clock::time_point since_;
};

}  // namespace tidemark::server
