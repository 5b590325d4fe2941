#include "server/nbd_clients.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <asio/ip/tcp.hpp>
#include <asio/local/stream_protocol.hpp>
#include <chrono>
#include <cstring>

#include "base/limits.h"
#include "server/admin_socket.h"
#include "server/nbd_connection.h"
#include "server/nbd_reads.h"
#include "server/shard.h"

namespace tidemark::server {

namespace {

constexpr auto kRetry = std::chrono::milliseconds(5);

std::string address_of(int descriptor, bool tcp) {
  if (!tcp) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return "unix";
    return "uid:" + std::to_string(peer.uid) + ",pid:" + std::to_string(peer.pid);
  }
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getpeername(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "gone";
  asio::ip::tcp::endpoint end;
  if (size > end.capacity()) return "unknown";
  std::memcpy(end.data(), &address, size);
  end.resize(size);
  return end.address().to_string() + ":" + std::to_string(end.port());
}

}  // namespace

NbdClients::NbdClients(Shard& shard)
    : shard_(shard), reads_(std::make_unique<NbdReads>(*this)), retry_timer_(shard.io()) {}
NbdClients::~NbdClients() = default;

void NbdClients::adopt(int descriptor, bool tcp, const NbdOrigin& origin, std::uint64_t id,
                       AdmissionCount::Ticket ticket) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  ::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  net::PlainStream::Socket socket(shard_.io());
  std::error_code error;
  socket.assign(asio::generic::stream_protocol(address.ss_family, tcp ? IPPROTO_TCP : 0), descriptor, error);
  if (error) {
    ::close(descriptor);
    return;
  }
  if (tcp) {  // the same as of agents: who vanished is found out
    const auto set = [&](int level, int name, int value) {
      static_cast<void>(::setsockopt(descriptor, level, name, &value, sizeof value));
    };
    set(IPPROTO_TCP, TCP_NODELAY, 1);
    set(SOL_SOCKET, SO_KEEPALIVE, 1);
    set(IPPROTO_TCP, TCP_KEEPIDLE, 60);
    set(IPPROTO_TCP, TCP_KEEPINTVL, 15);
    set(IPPROTO_TCP, TCP_KEEPCNT, 4);
    set(IPPROTO_TCP, TCP_USER_TIMEOUT, 60'000);
  }
  if (!tcp) enlarge_send_buffer(descriptor);
  auto connection = std::make_unique<NbdConnection>(*this, id, std::move(socket), address_of(descriptor, tcp), tcp,
                                                    origin, std::move(ticket));
  NbdConnection* const raw = connection.get();
  connections_[id] = std::move(connection);
  raw->start();
}

NbdConnection* NbdClients::find(std::uint64_t id) const {
  const auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : found->second.get();
}

void NbdClients::bury(NbdConnection& connection) {
  const auto found = connections_.find(connection.id());
  if (found == connections_.end()) return;
  dead_.push_back(std::move(found->second));
  connections_.erase(found);
}

void NbdClients::end_turn() {
  reads_->end_turn();
  dead_.clear();
}

void NbdClients::want_retry() {
  if (retry_armed_) return;
  retry_armed_ = true;
  retry_timer_.expires_after(kRetry);
  retry_timer_.async_wait([this](const std::error_code& error) {
    retry_armed_ = false;
    if (error) return;
    std::vector<std::uint64_t> ids;
    for (const auto& [id, connection] : connections_) ids.push_back(id);
    for (const auto id : ids)
      if (auto* const one = find(id)) one->retry();
  });
}

void NbdClients::tick() {
  if (shard_.index() == 0 && !shard_.node().stopping) shard_.node().nbd->tick();
  const auto now = shard_.now();
  std::vector<std::uint64_t> ids;
  ids.reserve(connections_.size());
  for (const auto& [id, connection] : connections_) ids.push_back(id);
  for (const auto id : ids)
    if (auto* const one = find(id)) one->tick(now);
}

void NbdClients::end_all(const Error& why) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, connection] : connections_) ids.push_back(id);
  for (const auto id : ids)
    if (auto* const one = find(id)) one->end(why);
}

void NbdClients::end_certificate(const std::string& serial, const Error& why) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, connection] : connections_)
    if (connection->certificate() == serial) ids.push_back(id);
  for (const auto id : ids)
    if (auto* const one = find(id)) one->end(why);
}

void NbdClients::end_origin(const std::string& socket, const Error& why) {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, connection] : connections_)
    if (connection->origin().socket == socket) ids.push_back(id);
  for (const auto id : ids)
    if (auto* const one = find(id)) one->end(why);
}

Result<std::shared_ptr<net::TlsContext>> NbdClients::tls() {
  if (!tls_) tls_ = TIDEMARK_TRY(net::TlsContext::exports(shard_.node().authority.server_credentials()));
  return tls_;
}

}  // namespace tidemark::server
