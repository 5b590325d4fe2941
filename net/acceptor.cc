#include "net/acceptor.h"

#include <sys/socket.h>
#include <unistd.h>

#include <asio/ip/v6_only.hpp>
#include <asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <utility>

#include "net/connect.h"

namespace tidemark::net {
namespace {

using asio::ip::tcp;

std::string to_string(const tcp::endpoint& end) { return HostPort{end.address().to_string(), end.port()}.to_string(); }

bool ran_out(int error_number) {
  return error_number == EMFILE || error_number == ENFILE || error_number == ENOBUFS || error_number == ENOMEM;
}

// The connection died before it was accepted: of no concern to the others.
bool died_waiting(int error_number) {
  switch (error_number) {
    case ECONNABORTED:
    case EINTR:
    case EAGAIN:
    case EPROTO:
    case ENETDOWN:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENONET:
    case ENOPROTOOPT:
    case EPERM: return true;  // a firewall refuses it
    default: return false;
  }
}

}  // namespace

struct Acceptor::Impl : std::enable_shared_from_this<Impl> {
  explicit Impl(asio::io_context& context) : acceptor(context), timer(context) {}

  tcp::acceptor acceptor;
  asio::steady_timer timer;
  OnAccept on_accept;
  OnTrouble on_trouble;
  std::function<bool()> room;
  tcp::endpoint bound;
  bool in_trouble = false;
  bool stopped = false;

  void accept() {
    if (room && !room()) return accept_in(kRoomMillis);
    acceptor.async_accept([self = shared_from_this()](const std::error_code& error, tcp::socket socket) {
      if (self->stopped) return;
      if (error && died_waiting(error.value())) return self->accept();
      if (error) return self->pause(error.value());
      self->in_trouble = false;
      self->on_accept(std::move(socket));
      if (!self->stopped) self->accept();
    });
  }

  void accept_in(int milliseconds) {
    timer.expires_after(std::chrono::milliseconds(milliseconds));
    timer.async_wait([self = shared_from_this()](const std::error_code& error) {
      if (!error && !self->stopped) self->accept();
    });
  }

  void pause(int error_number) {
    accept_in(kPauseMillis);
    if (std::exchange(in_trouble, true)) return;
    Error trouble = fail_errno(error_number, to_string(bound), "accept a connection").error();
    if (ran_out(error_number)) {
      trouble.code = Code::busy;
      trouble.remedy = "raise the limit of open files (LimitNOFILE) or lower the limit of sessions";
    }
    on_trouble(trouble);
  }
};

Acceptor::Acceptor(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Acceptor::~Acceptor() {
  impl_->stopped = true;
  impl_->timer.cancel();
  std::error_code ignored;  // nothing can be done about it
  impl_->acceptor.close(ignored);
}

Result<std::unique_ptr<Acceptor>> Acceptor::listen(asio::io_context& context, const std::string& address,
                                                   OnAccept on_accept, OnTrouble on_trouble, const Options& options) {
  const HostPort parsed = TIDEMARK_TRY(parse_host_port(address));
  std::error_code error;
  const auto ip = asio::ip::make_address(parsed.host, error);
  if (error) {
    return fail(Code::invalid_argument, address, "is not an IP address to listen at",
                "write 0.0.0.0:7443 or [::]:7443");
  }
  auto impl = std::make_shared<Impl>(context);
  const tcp::endpoint endpoint(ip, parsed.port);
  tcp::acceptor& acceptor = impl->acceptor;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  const int yes = 1;
  if (!error && options.reuse_port &&
      ::setsockopt(acceptor.native_handle(), SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes) != 0) {
    error.assign(errno, std::generic_category());
  }
  if (!error && endpoint.protocol() == tcp::v6()) acceptor.set_option(asio::ip::v6_only(false), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(options.backlog, error);
  if (!error) impl->bound = acceptor.local_endpoint(error);
  if (error) {
    auto failed = fail_errno(error.value(), address, "listen");
    if (error.value() == EADDRINUSE) {
      failed.error().code = Code::busy;
      failed.error().remedy = "another program listens there: stop it or choose another port";
    } else if (error.value() == EADDRNOTAVAIL) {
      failed.error().code = Code::invalid_argument;
      failed.error().remedy = "this machine does not have that address";
    } else if (error.value() == EACCES) {
      failed.error().remedy = "ports below 1024 need CAP_NET_BIND_SERVICE";
    }
    return failed;
  }
  impl->on_accept = std::move(on_accept);
  impl->on_trouble = std::move(on_trouble);
  impl->room = options.room;
  impl->accept();
  return std::unique_ptr<Acceptor>(new Acceptor(std::move(impl)));
}

std::string Acceptor::address() const { return to_string(impl_->bound); }
std::uint16_t Acceptor::port() const { return impl_->bound.port(); }

Result<tcp::socket> move_socket(tcp::socket socket, asio::io_context& to) {
  std::error_code error;
  const auto protocol = socket.local_endpoint(error).protocol();
  if (error) return fail_errno(error.value(), "connection", "find its address");
  const int fd = socket.release(error);
  if (error) return fail_errno(error.value(), "connection", "take it from its thread");
  tcp::socket moved(to);
  moved.assign(protocol, fd, error);
  if (error) {
    ::close(fd);
    return fail_errno(error.value(), "connection", "hand it to its thread");
  }
  return moved;
}

}  // namespace tidemark::net
