#include "server/greeter.h"

#include <spdlog/spdlog.h>

#include "server/logging.h"
#include "server/shard.h"
#include "wire/frame.h"

namespace tidemark::server {

Greeter::Greeter(Shard& shard, asio::ip::tcp::socket socket, std::shared_ptr<net::TlsContext> tls,
                 AdmissionCount::Ticket handshake)
    : shard_(shard),
      handshake_(std::move(handshake)),
      stream_(std::make_unique<net::TlsStream>(std::move(socket), std::move(tls), shard.receive_buffer(), *this)),
      since_(shard.now()) {}

void Greeter::on_handshake(const net::Peer& peer) {
  ++shard_.counters().handshakes;
  if (peer.resumed) ++shard_.counters().handshakes_resumed;
  handshake_.release();
  Arrival arrival;
  arrival.peer = peer;
  arrival.since = since_;
  if (auto ticket = shard_.node().sessions.take()) {
    arrival.ticket = std::move(*ticket);
    arrival.counted = true;
  }
  const bool machine =
      arrival.counted && peer.alpn == wire::kAlpnMachine && peer.has_certificate && !peer.machine.is_nil();
  Shard& target = machine ? shard_.node().shard_for(peer.machine) : shard_;
  arrival.stream = stream_->detach();
  shard_.bury(*this);
  if (arrival.stream == nullptr) return;
  // A std::function wants to copy; the arrival cannot be.
  auto holder = std::make_shared<Arrival>(std::move(arrival));
  target.post([&target, holder] { target.adopt(std::move(*holder)); });
}

void Greeter::on_closed(const std::optional<Error>& error) {
  shard_.counters().refuse(Refusal::handshake_failed);
  if (error) spdlog::info("handshake failed{}{}", kv("peer", stream_->peer().address), kv(*error));
  shard_.bury(*this);
}

}  // namespace tidemark::server
