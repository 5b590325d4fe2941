#include "server/unix_listener.h"

#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "server/admin_socket.h"
#include "server/logging.h"

namespace tidemark::server {

namespace {

constexpr auto kPause = std::chrono::milliseconds(200);

bool somebody_listens(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  path.copy(address.sun_path, path.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  const bool there = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN;
  ::close(fd);
  return there;
}

}  // namespace

struct UnixListener::Impl : std::enable_shared_from_this<UnixListener::Impl> {
  Impl(asio::io_context& context, std::string at, OnAccept then)
      : acceptor(context), timer(context), path(std::move(at)), on_accept(std::move(then)) {}

  asio::local::stream_protocol::acceptor acceptor;
  asio::steady_timer timer;
  const std::string path;
  OnAccept on_accept;
  bool in_trouble = false, stopped = false;

  void accept() {
    acceptor.async_accept(
        [self = shared_from_this()](const std::error_code& error, asio::local::stream_protocol::socket socket) {
          if (self->stopped) return;
          if (error) return self->pause(error);
          self->in_trouble = false;
          self->on_accept(std::move(socket));
          if (!self->stopped) self->accept();
        });
  }
  void pause(const std::error_code& error) {
    if (!std::exchange(in_trouble, true))
      spdlog::warn("accepting pauses{}{}", kv("socket", path), kv("why", error.message()));
    timer.expires_after(kPause);
    timer.async_wait([self = shared_from_this()](const std::error_code& cancelled) {
      if (!cancelled && !self->stopped) self->accept();
    });
  }
};

Result<std::unique_ptr<UnixListener>> UnixListener::listen(asio::io_context& context, const std::string& path,
                                                           OnAccept on_accept) {
  if (somebody_listens(path))
    return fail(Code::already_exists, path, "somebody listens on this socket", "name another one");
  const int descriptor = TIDEMARK_TRY(listen_unix(path));
  auto impl = std::make_shared<Impl>(context, path, std::move(on_accept));
  std::error_code error;
  impl->acceptor.assign(asio::local::stream_protocol(), descriptor, error);
  if (error) {
    ::close(descriptor);
    return fail(Code::io, path, error.message());
  }
  return std::unique_ptr<UnixListener>(new UnixListener(std::move(impl)));
}

UnixListener::~UnixListener() {
  impl_->stopped = true;
  std::error_code ignored;
  impl_->acceptor.close(ignored);
  impl_->timer.cancel();
  ::unlink(impl_->path.c_str());
}

void UnixListener::start() { impl_->accept(); }

}  // namespace tidemark::server
