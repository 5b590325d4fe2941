// States: handshaking -> open -> (draining ->) closed, or detached.
//
// draining: what is queued is sent, then the sending half is closed, then what the peer still sends is dropped until it
// closes too or a deadline passes. Closing a socket with unread bytes makes the kernel send a reset, and a reset can
// overtake our last words: the alert or Error frame that tells the peer why.
//
// Every entry from the event loop holds a shared pointer, and after each call of the handler the state is looked at
// anew, because the handler may have closed, detached or destroyed the stream.
#include "net/tls_stream.h"

#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/limits.h"
#include "net/openssl.h"
#include "net/tls_core.h"
#include "net/tls_error.h"

namespace tidemark::net {
namespace {

constexpr std::size_t kReceiveBufferMin = 64 << 10;
constexpr std::size_t kSendAtOnce = 128 << 10;  // more than this queued is not held back until the loop turns
constexpr auto kFlushDeadline = std::chrono::seconds(10);  // of shutdown(), for what is queued
constexpr auto kLinger = std::chrono::seconds(2);          // for the peer to close after we have
constexpr int kKeepaliveIdleSeconds = 60, kKeepaliveEverySeconds = 15, kKeepaliveCount = 4;
constexpr unsigned kUserTimeoutMillis = 60'000;  // sent and not acknowledged for so long: the peer is gone

using asio::ip::tcp;

void set_option(int fd, int level, int option, int value) {
  // Tuning only: a socket that refuses it still works.
  static_cast<void>(::setsockopt(fd, level, option, &value, sizeof value));
}

std::string address_of(const tcp::socket& socket) {
  std::error_code error;
  const tcp::endpoint end = socket.remote_endpoint(error);
  if (error) return "unknown peer";
  const std::string host = end.address().to_string();
  return (end.address().is_v6() ? "[" + host + "]" : host) + ":" + std::to_string(end.port());
}

}  // namespace

ReceiveBuffer::ReceiveBuffer(std::size_t size) : bytes_(std::max(size, kReceiveBufferMin)) {}

// What outlives a move between threads.
struct TlsStream::Detached::State {
  std::unique_ptr<TlsCore> core;
  tcp protocol = tcp::v4();
  int fd = -1;
  Peer peer;
  Counters counters;
  std::size_t high_water = kSendHighWater, hard_limit = kSendHardLimit;
  bool above_high_water = false, end_of_stream = false;
};

TlsStream::Detached::Detached(std::unique_ptr<State> state) : state_(std::move(state)) {}
TlsStream::Detached::~Detached() {
  if (state_->fd >= 0) ::close(state_->fd);
}

struct TlsStream::Impl : std::enable_shared_from_this<Impl> {
  enum class State : std::uint8_t { idle, handshaking, open, draining, closed, detached };

  Impl(tcp::socket connected, std::unique_ptr<TlsCore> tls, ReceiveBuffer& shared, Handler& handler_)
      : socket(std::move(connected)), core(std::move(tls)), buffer(shared), handler(&handler_) {}

  tcp::socket socket;
  std::unique_ptr<TlsCore> core;
  ReceiveBuffer& buffer;
  Handler* handler;
  Peer peer;
  Counters counters;
  std::unique_ptr<asio::steady_timer> deadline;  // while handshaking or draining
  std::optional<Error> reason;                   // for on_closed, while draining
  std::size_t high_water = kSendHighWater, hard_limit = kSendHardLimit;
  State state = State::idle;
  bool paused = false;      // the handler had no space
  bool processing = false;  // within process(): a flush follows
  bool waiting_readable = false, waiting_writable = false;
  bool flush_posted = false, resume_posted = false;
  bool above_high_water = false;
  bool end_of_stream = false;  // the peer closed its half; bytes before that may still wait
  bool send_failed = false;    // what the peer said before it cut the connection is still read
  bool half_closed = false;
  bool failing = false;    // a failure is posted
  bool heard_tls = false;  // the peer's first bytes looked like TLS

  bool alive() const { return state == State::handshaking || state == State::open; }

  void prepare_socket() {
    const int fd = socket.native_handle();
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveIdleSeconds);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveEverySeconds);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveCount);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(kUserTimeoutMillis));
  }

  template <typename Function>
  void post(const Function& function) {
    asio::post(socket.get_executor(), [self = shared_from_this(), function] { function(*self); });
  }

  void set_deadline(std::chrono::steady_clock::duration after) {
    deadline = std::make_unique<asio::steady_timer>(socket.get_executor(), after);
    deadline->async_wait([self = shared_from_this()](const std::error_code& error) {
      if (!error) self->on_deadline();
    });
  }

  void on_deadline() {
    if (state == State::handshaking) {
      finish(
          Error{Code::timed_out, peer.address,
                "did not finish the TLS handshake within " + std::to_string(limits::kHandshakeDeadlineSeconds) + " s",
                "check the network between the two"});
    } else if (state == State::draining) {
      finish(reason);
    }
  }

  // ---- The end ----

  void release() {
    deadline.reset();
    std::error_code ignored;  // nothing can be done about a socket that does not close
    socket.close(ignored);
    core.reset();
  }

  // Closes and tells the handler, from the loop.
  void finish(const std::optional<Error>& error) {
    if (state == State::closed || state == State::detached) return;
    state = State::closed;
    release();
    std::exchange(handler, nullptr)->on_closed(error);
  }

  // Ends with an error after what is queued (an alert, perhaps) had its chance to arrive.
  void fail_with(Error error) {
    if (!alive()) return;
    if (core->queue.size() == 0 || send_failed) return finish(std::move(error));
    reason = std::move(error);
    drain(kLinger);
  }

  // The same from within a call of the handler's code, which must not be called back there.
  void fail_later(Error error) {
    if (failing) return;
    failing = true;
    post([error = std::move(error)](Impl& self) { self.finish(error); });
  }

  void drain(std::chrono::steady_clock::duration after) {
    state = State::draining;
    paused = false;
    set_deadline(half_closed ? kLinger : after);
    flush();
    wait_readable();
  }

  void close_half_when_sent() {
    if (state != State::draining || half_closed || core->queue.size() != 0) return;
    half_closed = true;
    if (end_of_stream) return finish(reason);
    ::shutdown(socket.native_handle(), SHUT_WR);
    set_deadline(kLinger);
  }

  // While draining: whatever comes is dropped, until the peer closes.
  void drop_received() {
    const std::span<std::byte> space = buffer.span();
    const ssize_t got = ::recv(socket.native_handle(), space.data(), space.size(), MSG_DONTWAIT);
    if (got > 0) counters.bytes_received += static_cast<std::uint64_t>(got);
    if (got < 0 && errno != EAGAIN && errno != EINTR) return finish(reason);
    if (got == 0) {
      end_of_stream = true;
      if (core->queue.size() == 0) return finish(reason);
      return;  // the peer closed its half only: it still gets what is queued
    }
    wait_readable();
  }

  // ---- Sending ----

  void schedule_flush() {
    if (processing || flush_posted) return;
    flush_posted = true;
    post([](Impl& self) {
      self.flush_posted = false;
      self.flush();
    });
  }

  // Sends what the socket takes.
  void send_some() {
    while (core->queue.size() != 0 && !waiting_writable && !send_failed) {
      const std::span<const std::byte> bytes = core->queue.front();
      const ssize_t sent = ::send(socket.native_handle(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent >= 0) {
        counters.bytes_sent += static_cast<std::uint64_t>(sent);
        core->queue.pop(static_cast<std::size_t>(sent));
        continue;
      }
      if (errno == EINTR) continue;
      if (errno == EAGAIN) {
        waiting_writable = true;
        socket.async_wait(tcp::socket::wait_write, [self = shared_from_this()](const std::error_code& error) {
          self->waiting_writable = false;
          if (!error) self->flush();
        });
        return;
      }
      // The peer may have said why before it cut the connection: reading finds that, and then the cut.
      send_failed = true;
      core->queue.clear();
      if (paused) fail_later(network_error(errno, peer.address, "send"));
    }
  }

  void flush() {
    if (!alive() && state != State::draining) return;
    send_some();
    close_half_when_sent();
    if (state == State::open && above_high_water && core->queue.size() == 0) {
      above_high_water = false;
      handler->on_writable();
    }
  }

  bool write(std::span<const std::byte> head, std::span<const std::byte> body) {
    if (state != State::open || failing) return false;
    if (!core->write(head) || !core->write(body)) {
      fail_later(tls_error(core->ssl(), peer.address));
      return false;
    }
    if (core->queue.size() > kSendAtOnce) send_some();
    if (send_failed) {
      core->queue.clear();  // on_closed is under way
      return false;
    }
    const std::size_t size = core->queue.size();
    if (size > hard_limit) {
      fail_later(Error{Code::busy, peer.address,
                       "does not take what is sent to it: " + std::to_string(size >> 10) + " KiB are waiting",
                       "check the network and the load of the other end"});
      return false;
    }
    if (size > high_water) above_high_water = true;
    schedule_flush();
    return !above_high_water;
  }

  // ---- Receiving ----

  void wait_readable() {
    const bool wanted = (state == State::draining || (alive() && !paused && !failing)) && !end_of_stream;
    if (!wanted || waiting_readable) return;
    waiting_readable = true;
    socket.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const std::error_code& error) {
      self->waiting_readable = false;
      if (!error) self->on_readable();
    });
  }

  void on_readable() {
    if (state == State::draining) return drop_received();
    if (!alive() || paused || failing) return;
    const std::span<std::byte> space = buffer.span();
    const std::size_t before = core->kept().size();  // less than a record, as all whole ones were read
    TIDEMARK_CHECK(before < space.size());
    const ssize_t got = ::recv(socket.native_handle(), space.data() + before, space.size() - before, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return wait_readable();
    if (got < 0) return finish(network_error(errno, peer.address, "receive"));
    if (got == 0) {
      end_of_stream = true;
      return process_kept();
    }
    counters.bytes_received += static_cast<std::uint64_t>(got);
    core->take_kept(space.first(before));
    core->offer(space.first(before + static_cast<std::size_t>(got)));
    process();
  }

  void process_kept() {
    core->offer_kept();
    process();
  }

  // Goes through the input that was offered, as far as the handler has space.
  void process() {
    processing = true;
    std::optional<Error> error;
    if (state == State::handshaking) error = handshake();
    while (state == State::open && !failing && !error && core->readable()) {
      const std::span<std::byte> space = handler->read_space();
      if (state != State::open) break;
      if (space.empty()) {
        paused = true;
        break;
      }
      std::size_t filled = 0;
      while (filled < space.size() && core->readable()) {
        std::size_t size = 0;
        const TlsCore::Outcome outcome = core->read(space.subspan(filled), size);
        filled += size;
        if (outcome == TlsCore::Outcome::failed) error = tls_error(core->ssl(), peer.address);
        if (error || outcome == TlsCore::Outcome::closed_by_peer) break;
      }
      if (filled != 0) handler->on_read(filled);
    }
    processing = false;
    if (!core) return;  // closed or detached meanwhile
    core->keep_rest();
    if (!alive() || failing) return;
    if (error) return fail_with(std::move(*error));
    if ((SSL_get_shutdown(core->ssl()) & SSL_RECEIVED_SHUTDOWN) != 0) {
      core->say_goodbye();
      send_some();
      return finish(std::nullopt);
    }
    if (end_of_stream && !paused) return finish(cut());
    flush();
    wait_readable();
  }

  Error cut() const {
    if (state == State::handshaking && counters.bytes_received == 0) {
      return {Code::unavailable, peer.address, "closed the connection before the TLS handshake",
              "the server may be at a limit; the agent tries again"};
    }
    return {Code::unavailable,
            peer.address,
            state == State::handshaking ? "cut the connection in the TLS handshake" : "cut the connection",
            {}};
  }

  std::optional<Error> handshake() {
    if (!heard_tls && core->input_is_foreign()) return not_tls(peer.address);
    heard_tls = counters.bytes_received != 0;
    switch (core->handshake()) {
      case TlsCore::Outcome::done: break;
      case TlsCore::Outcome::wants_input: return std::nullopt;
      case TlsCore::Outcome::closed_by_peer: return cut();
      case TlsCore::Outcome::failed: return tls_error(core->ssl(), peer.address);
    }
    SSL* const ssl = core->ssl();
    const unsigned char* alpn = nullptr;
    unsigned int alpn_size = 0;
    SSL_get0_alpn_selected(ssl, &alpn, &alpn_size);
    peer.alpn.assign(reinterpret_cast<const char*>(alpn), alpn_size);
    if (!core->is_server() && peer.alpn != core->context().alpn()) {
      return Error{Code::unsupported, peer.address, "does not speak our protocol over TLS (no common ALPN name)",
                   "check the address"};
    }
    peer.resumed = SSL_session_reused(ssl) == 1;
    if (const X509* certificate = SSL_get0_peer_certificate(ssl); certificate != nullptr) {
      const CertificateInfo info = describe(*certificate);
      peer.has_certificate = true;
      peer.machine = info.machine;
      peer.client = info.client;
      peer.certificate_serial = info.serial;
      peer.certificate_expires_us = info.not_after_us;
      // A resumed session skips OpenSSL's checks of the certificate; time has passed since they were made.
      if (core->is_server() && peer.resumed && info.not_after_us <= Clock::system().wall_us()) {
        return certificate_expired(peer.address, true, info.not_after_us);
      }
    }
    state = State::open;
    deadline.reset();
    handler->on_handshake(peer);
    return std::nullopt;
  }
};

TlsStream::TlsStream(tcp::socket socket, std::shared_ptr<TlsContext> context, ReceiveBuffer& buffer, Handler& handler)
    : impl_(std::make_shared<Impl>(std::move(socket), std::make_unique<TlsCore>(std::move(context)), buffer, handler)) {
  impl_->peer.address = address_of(impl_->socket);
  impl_->prepare_socket();
}

TlsStream::TlsStream(std::unique_ptr<Detached> detached, asio::io_context& context, ReceiveBuffer& buffer,
                     Handler& handler) {
  TIDEMARK_CHECK(detached != nullptr);
  Detached::State& from = *detached->state_;
  tcp::socket socket(context);
  std::error_code error;
  socket.assign(from.protocol, from.fd, error);
  if (!error) from.fd = -1;  // the socket owns it now
  impl_ = std::make_shared<Impl>(std::move(socket), std::move(from.core), buffer, handler);
  impl_->peer = std::move(from.peer);
  impl_->counters = from.counters;
  impl_->high_water = from.high_water;
  impl_->hard_limit = from.hard_limit;
  impl_->above_high_water = from.above_high_water;
  impl_->end_of_stream = from.end_of_stream;
  impl_->state = Impl::State::open;
  if (error) {
    impl_->fail_later(network_error(error.value(), impl_->peer.address, "take it over from another thread"));
  } else {
    impl_->post([](Impl& self) {
      if (self.state == Impl::State::open) self.process_kept();
    });
  }
}

TlsStream::~TlsStream() { close(); }

void TlsStream::start() {
  TIDEMARK_CHECK(impl_->state == Impl::State::idle);
  impl_->state = Impl::State::handshaking;
  impl_->set_deadline(std::chrono::seconds(limits::kHandshakeDeadlineSeconds));
  impl_->post([](Impl& self) {
    if (self.state == Impl::State::handshaking) self.process_kept();
  });
}

bool TlsStream::write(std::span<const std::byte> bytes) { return impl_->write(bytes, {}); }
bool TlsStream::write(std::span<const std::byte> head, std::span<const std::byte> body) {
  return impl_->write(head, body);
}
std::size_t TlsStream::queued() const { return impl_->core ? impl_->core->queue.size() : 0; }

void TlsStream::set_send_limits(std::size_t high_water, std::size_t hard_limit) {
  impl_->high_water = high_water;
  impl_->hard_limit = hard_limit;
}

void TlsStream::resume_reading() {
  if (impl_->state != Impl::State::open || !impl_->paused || impl_->resume_posted) return;
  impl_->resume_posted = true;
  impl_->post([](Impl& self) {
    self.resume_posted = false;
    if (self.state != Impl::State::open || !self.paused) return;
    self.paused = false;
    self.process_kept();
  });
}

void TlsStream::shutdown() {
  if (impl_->state == Impl::State::idle) impl_->state = Impl::State::handshaking;
  if (!impl_->alive() || impl_->failing) return;
  impl_->core->say_goodbye();
  impl_->state = Impl::State::draining;
  impl_->post([](Impl& self) {
    if (self.state == Impl::State::draining) self.drain(kFlushDeadline);
  });
}

void TlsStream::close() {
  if (impl_->state == Impl::State::closed || impl_->state == Impl::State::detached) return;
  if (impl_->alive()) impl_->send_some();  // a last chance for what is queued
  impl_->state = Impl::State::closed;
  impl_->handler = nullptr;
  impl_->release();
}

void TlsStream::rekey() {
  if (impl_->state != Impl::State::open || impl_->failing) return;
  if (!impl_->core->rekey()) impl_->fail_later(tls_error(impl_->core->ssl(), impl_->peer.address));
  impl_->schedule_flush();
}

const Peer& TlsStream::peer() const { return impl_->peer; }
const TlsStream::Counters& TlsStream::counters() const { return impl_->counters; }

std::unique_ptr<TlsStream::Detached> TlsStream::detach() {
  Impl& impl = *impl_;
  if (impl.state != Impl::State::open || impl.failing) return nullptr;
  auto detached = std::make_unique<Detached::State>();
  if (impl.processing) impl.core->keep_rest();
  std::error_code error;
  const auto local = impl.socket.local_endpoint(error);
  if (!error) detached->protocol = local.protocol();
  const int fd = impl.socket.release(error);
  if (error) {
    impl.fail_later(network_error(error.value(), impl.peer.address, "hand it to another thread"));
    return nullptr;
  }
  detached->fd = fd;
  detached->core = std::move(impl.core);
  detached->peer = impl.peer;
  detached->counters = impl.counters;
  detached->high_water = impl.high_water;
  detached->hard_limit = impl.hard_limit;
  detached->above_high_water = impl.above_high_water;
  detached->end_of_stream = impl.end_of_stream;
  impl.state = Impl::State::detached;
  impl.handler = nullptr;
  impl.deadline.reset();
  return std::unique_ptr<Detached>(new Detached(std::move(detached)));
}

}  // namespace tidemark::net
