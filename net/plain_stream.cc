#include "net/plain_stream.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <asio/post.hpp>
#include <cerrno>
#include <deque>
#include <utility>

namespace tidemark::net {

namespace {

constexpr std::size_t kTurnMax = 2 << 20;  // bytes received before others have their turn
constexpr std::size_t kGather = 64;

struct Piece {
  std::string head;
  std::shared_ptr<const void> owner;
  std::span<const std::byte> body;
  std::size_t size() const { return head.size() + body.size(); }
};

}  // namespace

struct PlainStream::Impl : std::enable_shared_from_this<PlainStream::Impl> {
  Impl(Socket connected, TlsStream::Handler& of) : socket(std::move(connected)), handler(&of) {}

  Socket socket;
  TlsStream::Handler* handler;  // null: closed
  std::deque<Piece> queue;
  std::size_t sent = 0;  // of the first piece
  std::size_t queued = 0;
  bool reading = false, writing = false, flushing = false, ending = false;
  TlsStream::Counters counters;

  void read();
  void receive();
  void flush();
  void send();
  void closed(const std::optional<Error>& error);
};

void PlainStream::Impl::closed(const std::optional<Error>& error) {
  TlsStream::Handler* const told = std::exchange(handler, nullptr);
  std::error_code ignored;
  socket.close(ignored);
  queue.clear();
  queued = 0;
  if (told != nullptr) told->on_closed(error);
}

void PlainStream::Impl::read() {
  if (reading || handler == nullptr) return;
  reading = true;
  socket.async_wait(Socket::wait_read, [self = shared_from_this()](const std::error_code& error) {
    self->reading = false;
    if (!error) self->receive();
  });
}

void PlainStream::Impl::receive() {
  for (std::size_t turn = 0; handler != nullptr && turn < kTurnMax;) {
    const auto space = handler->read_space();
    if (handler == nullptr || space.empty()) return;
    const auto n = ::recv(socket.native_handle(), space.data(), space.size(), MSG_DONTWAIT);
    if (n == 0) return closed(std::nullopt);
    if (n < 0) {
      if (errno == EAGAIN || errno == EINTR) break;
      return closed(fail_errno(errno, {}, "receive").error());
    }
    counters.bytes_received += static_cast<std::uint64_t>(n);
    turn += static_cast<std::size_t>(n);
    handler->on_read(static_cast<std::size_t>(n));
    // A short one: there is no more for now.
    if (static_cast<std::size_t>(n) < space.size()) break;
  }
  read();
}

// What is written within one call of the handler goes out together.
void PlainStream::Impl::flush() {
  if (flushing || writing) return;
  flushing = true;
  asio::post(socket.get_executor(), [self = shared_from_this()] {
    self->flushing = false;
    self->send();
  });
}

void PlainStream::Impl::send() {
  if (writing) return;
  while (handler != nullptr && !queue.empty()) {
    std::array<iovec, kGather> parts;
    std::size_t count = 0, skip = sent;
    const auto add = [&](const void* data, std::size_t size) {
      const std::size_t n = std::min(skip, size);
      skip -= n;
      if (size > n) parts[count++] = {const_cast<char*>(static_cast<const char*>(data)) + n, size - n};
    };
    for (const Piece& piece : queue) {
      if (count + 2 > parts.size()) break;
      add(piece.head.data(), piece.head.size());
      add(piece.body.data(), piece.body.size());
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const auto n = ::sendmsg(socket.native_handle(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      writing = true;
      socket.async_wait(Socket::wait_write, [self = shared_from_this()](const std::error_code& error) {
        self->writing = false;
        if (!error) self->send();
      });
      return;
    }
    if (n < 0) return closed(fail_errno(errno, {}, "send").error());
    counters.bytes_sent += static_cast<std::uint64_t>(n);
    queued -= static_cast<std::size_t>(n);
    for (sent += static_cast<std::size_t>(n); !queue.empty() && sent >= queue.front().size(); queue.pop_front())
      sent -= queue.front().size();
  }
  if (handler == nullptr) return;
  if (ending) return closed(std::nullopt);
  handler->on_writable();
}

PlainStream::PlainStream(Socket socket, TlsStream::Handler& handler)
    : impl_(std::make_shared<Impl>(std::move(socket), handler)) {}
PlainStream::~PlainStream() { close(); }

void PlainStream::start() { impl_->read(); }

void PlainStream::write(std::string head, std::shared_ptr<const void> owner, std::span<const std::byte> body) {
  if (impl_->handler == nullptr || impl_->ending) return;
  impl_->queued += head.size() + body.size();
  impl_->queue.push_back({std::move(head), std::move(owner), body});
  impl_->flush();
}

std::size_t PlainStream::queued() const { return impl_->queued; }

void PlainStream::resume_reading() {
  if (impl_->reading || impl_->handler == nullptr) return;
  impl_->reading = true;
  asio::post(impl_->socket.get_executor(), [self = impl_] {
    self->reading = false;
    if (self->handler != nullptr) self->receive();
  });
}

void PlainStream::shutdown() {
  impl_->ending = true;
  impl_->flush();
}

void PlainStream::close() {
  impl_->handler = nullptr;
  impl_->closed(std::nullopt);
}

std::optional<PlainStream::Socket> PlainStream::release() {
  if (impl_->handler == nullptr || impl_->queued != 0) return std::nullopt;
  impl_->handler = nullptr;
  std::error_code ignored;
  impl_->socket.cancel(ignored);
  return std::move(impl_->socket);
}

const TlsStream::Counters& PlainStream::counters() const { return impl_->counters; }

}  // namespace tidemark::net
