#include "server/nbd_connection.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <asio/ip/tcp.hpp>
#include <cstring>
#include <utility>

#include "server/logging.h"
#include "server/nbd_clients.h"
#include "server/shard.h"

namespace tidemark::server {

namespace {

constexpr std::size_t kTlsPiece = 256_KiB;

}  // namespace

NbdConnection::NbdConnection(NbdClients& clients, std::uint64_t id, net::PlainStream::Socket socket, std::string peer,
                             bool tcp, const NbdOrigin& origin, AdmissionCount::Ticket ticket)
    : clients_(clients),
      service_(*clients.shard().node().nbd),
      id_(id),
      origin_(origin),
      peer_(std::move(peer)),
      tcp_(tcp),
      ticket_(std::move(ticket)),
      plain_(std::make_unique<net::PlainStream>(std::move(socket), *this)),
      since_(clients.shard().now()),
      received_(since_),
      sent_(since_) {
  handshake_.emplace(origin.tls);
}

NbdConnection::~NbdConnection() = default;

std::string NbdConnection::client() const {
  return fmt::format("{}{} on {}", peer_, identity_.empty() ? "" : " (" + identity_ + ")", origin_.socket);
}

void NbdConnection::start() {
  send(handshake_->output());
  plain_->start();
}

// --- the stream ---

std::span<std::byte> NbdConnection::read_space() {
  if (ended_ || closing_ || waiting_ || wants_memory_ || starting_tls_) return {};
  if (payload_) return payload_->span().subspan(payload_filled_);
  if (begin_ == end_) begin_ = end_ = 0;
  if (begin_ != 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  return std::span(buffer_).subspan(end_);
}

void NbdConnection::on_read(std::size_t size) {
  received_ = clients_.shard().now();
  if (payload_) {
    payload_filled_ += size;
  } else {
    end_ += size;
  }
  in_read_ = true;
  process();
  in_read_ = false;
}

void NbdConnection::on_writable() {
  if (starting_tls_) return start_tls();
  if (tls_) pump();
  retry();
}

void NbdConnection::retry() {
  if (!wants_memory_ || ended_) return;
  wants_memory_ = false;
  process();
}

void NbdConnection::on_closed(const std::optional<Error>& error) {
  if (ended_) return;
  std::optional<Error> why = cause_ ? cause_ : error;
  if (!why && !disconnecting_ && !handshake_ && !closing_)
    why = Error{Code::unavailable, {}, "the client left without saying so", {}};
  over(why);
}

void NbdConnection::on_handshake(const net::Peer& peer) {
  identity_ = peer.client;
  serial_ = peer.certificate_serial;
  if (peer.client.empty()) {
    untrusted_ = Error{
        Code::permission_denied, "certificate",
        peer.has_certificate ? "it is not one that was issued to a client of exports" : "no certificate was shown",
        "`tidemarkd certificate client NAME --out DIR` on the server makes one"};
  } else if (clients_.shard().node().clients->is_revoked(serial_)) {
    untrusted_ = Error{Code::permission_denied, "certificate", "it was revoked",
                       "`tidemarkd certificate client NAME --out DIR` on the server makes another one"};
  }
  if (untrusted_) {
    service_.counters().refused.fetch_add(1, std::memory_order_relaxed);
    spdlog::info("nbd client refused{}{}{}{}", kv("peer", peer_), kv("socket", origin_.socket),
                 kv("client", identity_.empty() ? "-" : identity_), kv(*untrusted_));
  }
  process();
}

void NbdConnection::over(const std::optional<Error>& why) {
  if (ended_) return;
  ended_ = true;
  const bool served = export_ != nullptr;
  if (served) {
    service_.ended(export_->machine(), client());
    spdlog::info("nbd client left{}{}{}{}{}{}{}", kv("peer", peer_), kv("socket", origin_.socket),
                 kv("export", export_->info().name), kv("requests", requests_), kv("read", read_bytes_),
                 kv("written", written_bytes_), why ? kv(*why) : std::string());
    // What it wrote and did not flush is not lost with it.
    if (written_bytes_ != 0) export_->flush([](const Status&) {});
  } else if (why) {
    service_.counters().refused.fetch_add(1, std::memory_order_relaxed);
    spdlog::info("nbd client refused{}{}{}", kv("peer", peer_), kv("socket", origin_.socket), kv(*why));
  }
  plain_.reset();
  if (tls_) tls_->close();
  payload_.reset();
  out_.clear();
  clients_.bury(*this);
}

void NbdConnection::end(const Error& why) {
  if (ended_) return;
  cause_ = why;
  over(why);
}

void NbdConnection::close_when_sent() {
  closing_ = true;
  if (plain_) plain_->shutdown();
  if (tls_) pump();
}

void NbdConnection::send(std::string head, std::shared_ptr<NbdBuffer> owner, std::span<const std::byte> body) {
  if (ended_ || (head.empty() && body.empty())) return;
  if (plain_) return plain_->write(std::move(head), std::move(owner), body);
  out_bytes_ += head.size() + body.size();
  out_.emplace_back(std::move(head), std::move(owner), body);
  pump();
}

// Encrypting takes time: no more at once than others can wait for.
void NbdConnection::pump() {
  while (!out_.empty() && tls_->queued() < net::TlsStream::kSendHighWater) {
    auto& [head, owner, body] = out_.front();
    const auto piece = body.first(std::min(body.size(), kTlsPiece));
    tls_->write(std::as_bytes(std::span(head)), piece);
    out_bytes_ -= head.size() + piece.size();
    head.clear();
    body = body.subspan(piece.size());
    if (body.empty()) out_.pop_front();
  }
  if (closing_ && out_.empty() && tls_) tls_->shutdown();
}

void NbdConnection::tick(Time now) {
  if (ended_) return;
  if (handshake_ && now - since_ > kHandshakeMax) return end({Code::timed_out, {}, "the handshake took too long", {}});
  const bool in_midst = payload_ || discard_ != 0 || (!handshake_ && begin_ != end_);
  if (in_midst && !wants_memory_ && now - received_ > kStallMax)
    return end({Code::timed_out, {}, "a request was begun and not finished", {}});
  const std::uint64_t bytes = plain_ ? plain_->counters().bytes_sent : tls_ ? tls_->counters().bytes_sent : 0;
  const std::size_t queued = plain_ ? plain_->queued() : tls_ ? tls_->queued() + out_bytes_ : 0;
  if (queued == 0 || bytes != sent_bytes_seen_) sent_ = now;
  sent_bytes_seen_ = bytes;
  if (now - sent_ > kStallMax) return end({Code::timed_out, {}, "it does not take its answers", {}});
  if (!export_) return;
  if (const auto serving = export_->serving(); !serving) end(serving.error());
}

// --- the handshake ---

void NbdConnection::process() {
  if (processing_) return;
  processing_ = true;
  while (!ended_ && !closing_ && !waiting_ && !starting_tls_ && !wants_memory_)
    if (handshake_ ? !handshake() : !transmission()) break;
  hand_reads();
  processing_ = false;
  if (ended_ || closing_) return;
  if (wants_memory_) return clients_.want_retry();
  if (in_read_) return;  // the stream asks again by itself
  if (plain_) plain_->resume_reading();
  if (tls_) tls_->resume_reading();
}

bool NbdConnection::handshake() {
  std::span<const std::byte> bytes = input();
  const auto step = handshake_->step(bytes);
  begin_ = end_ - bytes.size();
  send(handshake_->output());
  switch (step) {
    case nbd::Handshake::Step::need_input: return false;
    case nbd::Handshake::Step::close: close_when_sent(); return false;
    case nbd::Handshake::Step::start_tls:
      if (begin_ != end_) {
        end({Code::protocol, {}, "it sent more before TLS began", {}});
        return false;
      }
      starting_tls_ = true;
      return false;
    case nbd::Handshake::Step::find: {
      if (untrusted_) {
        handshake_->refused(*untrusted_);
        send(handshake_->output());
        return true;
      }
      waiting_ = true;
      const bool asked = service_.find(handshake_->name(), origin_,
                                       [shard = &clients_.shard(), id = id_](Result<std::shared_ptr<NbdExport>> found) {
                                         shard->post([shard, id, found = std::move(found)]() mutable {
                                           if (auto* self = shard->nbd().find(id)) self->found(std::move(found));
                                         });
                                       });
      if (!asked) found(fail(Code::busy, handshake_->name(), "too many are asked for", "try again"));
      return asked;
    }
    case nbd::Handshake::Step::list: {
      if (untrusted_) {
        handshake_->refused(*untrusted_);
        send(handshake_->output());
        return true;
      }
      waiting_ = true;
      const bool asked =
          service_.list(origin_, [shard = &clients_.shard(), id = id_](Result<std::vector<nbd::ListedExport>> names) {
            shard->post([shard, id, names = std::move(names)]() mutable {
              if (auto* self = shard->nbd().find(id)) self->listed(std::move(names));
            });
          });
      if (!asked) listed(fail(Code::busy, "list", "too many are asked for", "try again"));
      return asked;
    }
  }
  return false;
}

void NbdConnection::start_tls() {
  auto socket = plain_->release();
  if (!socket) return end({Code::internal, {}, "the connection is not free", {}});
  const auto context = clients_.tls();
  if (!context) return end(context.error());
  std::error_code error;
  const bool v6 = socket->local_endpoint(error).data()->sa_family == AF_INET6;
  asio::ip::tcp::socket tcp(clients_.shard().io());
  const int descriptor = socket->release(error);
  if (!error) tcp.assign(v6 ? asio::ip::tcp::v6() : asio::ip::tcp::v4(), descriptor, error);
  if (error) return end({Code::io, {}, error.message(), {}});
  starting_tls_ = false;
  handshake_.emplace(nbd::Handshake::Tls::active);
  // The plain stream is in the midst of a call: it goes at the end of the turn.
  clients_.shard().later([old = std::shared_ptr<net::PlainStream>(std::move(plain_))] {});
  tls_ = std::make_unique<net::TlsStream>(std::move(tcp), *context, clients_.shard().receive_buffer(), *this);
  tls_->set_send_limits(net::TlsStream::kSendHighWater, 16_MiB);
  tls_->start();
}

void NbdConnection::found(Result<std::shared_ptr<NbdExport>> found) {
  if (ended_) return;
  waiting_ = false;
  bool begun = false;
  if (!found) {
    spdlog::info("nbd export refused{}{}{}{}", kv("peer", peer_), kv("socket", origin_.socket),
                 kv("export", handshake_->name()), kv(found.error()));
    service_.counters().refused.fetch_add(1, std::memory_order_relaxed);
    handshake_->refused(found.error());
  } else {
    begun = handshake_->found((*found)->info());
  }
  send(handshake_->output());
  if (begun) {
    export_ = std::move(*found);
    structured_ = handshake_->structured();
    allocation_ = handshake_->allocation();
    handshake_.reset();
    service_.began(export_->machine(), client());
    service_.counters().connections.fetch_add(1, std::memory_order_relaxed);
    spdlog::info("nbd client served{}{}{}{}", kv("peer", peer_), kv("socket", origin_.socket),
                 kv("export", export_->info().name), kv("client", identity_.empty() ? "-" : identity_));
  }
  process();
}

void NbdConnection::listed(Result<std::vector<nbd::ListedExport>> names) {
  if (ended_) return;
  waiting_ = false;
  if (names) {
    handshake_->listed(*names);
  } else {
    handshake_->refused(names.error());
  }
  send(handshake_->output());
  process();
}

}  // namespace tidemark::server
