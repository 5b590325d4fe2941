// The NBD connections of one shard. On its thread.
#pragma once

#include <asio/steady_timer.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "net/plain_stream.h"
#include "net/tls_context.h"
#include "server/nbd_service.h"

namespace tidemark::server {

class NbdConnection;
class NbdReads;
class Shard;

class NbdClients {
 public:
  explicit NbdClients(Shard& shard);
  ~NbdClients();

  void adopt(int descriptor, bool tcp, const NbdOrigin& origin, std::uint64_t id, AdmissionCount::Ticket ticket);
  NbdConnection* find(std::uint64_t id) const;
  void bury(NbdConnection& connection);
  void want_retry();  // somebody waits for memory: NbdConnection::retry() soon
  void tick();        // about once a second: deadlines, exports that cannot be served any more
  void end_turn();
  void end_all(const Error& why);
  void end_certificate(const std::string& serial, const Error& why);
  void end_origin(const std::string& socket, const Error& why);
  bool empty() const { return connections_.empty(); }
  std::size_t size() const { return connections_.size(); }
  Shard& shard() const { return shard_; }
  NbdReads& reads() { return *reads_; }
  Result<std::shared_ptr<net::TlsContext>> tls();

 private:
  Shard& shard_;
  std::unordered_map<std::uint64_t, std::unique_ptr<NbdConnection>> connections_;
  std::vector<std::unique_ptr<NbdConnection>> dead_;
  const std::unique_ptr<NbdReads> reads_;
  std::shared_ptr<net::TlsContext> tls_;
  asio::steady_timer retry_timer_;
  bool retry_armed_ = false;
};

}  // namespace tidemark::server
