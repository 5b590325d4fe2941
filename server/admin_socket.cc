#include "server/admin_socket.h"

#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <vector>

namespace tidemark::server {
namespace {

constexpr int kBacklog = 128;
constexpr auto kStopCheck =
    std::chrono::milliseconds(100);  // how often a connection that waits looks whether all stops

bool ready(int descriptor, short events, std::chrono::milliseconds timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd poll{.fd = descriptor, .events = events, .revents = 0};
    const int n = ::poll(&poll, 1, static_cast<int>(std::max<std::int64_t>(left.count(), 0)));
    if (n >= 0 || errno != EINTR) return n > 0;
  }
}

class UnixStream final : public httplib::Stream {
 public:
  UnixStream(int descriptor, std::chrono::milliseconds read_timeout, std::chrono::milliseconds write_timeout)
      : descriptor_(descriptor), read_timeout_(read_timeout), write_timeout_(write_timeout) {
    ucred peer{};
    socklen_t size = sizeof peer;
    // A peer that is not known is nobody, not root.
    if (::getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0) {
      uid_ = peer.uid;
      pid_ = peer.pid;
    }
  }
  bool buffered() const { return begin_ < end_; }

  bool is_readable() const override { return buffered() || ready(descriptor_, POLLIN, read_timeout_); }
  bool is_writable() const override { return ready(descriptor_, POLLOUT, write_timeout_); }
  ssize_t read(char* to, std::size_t size) override {
    if (!buffered()) {
      if (!is_readable()) return -1;
      begin_ = end_ = 0;
      const ssize_t n = receive();
      if (n <= 0) return n;
      end_ = static_cast<std::size_t>(n);
    }
    const std::size_t n = std::min(size, end_ - begin_);
    std::memcpy(to, buffer_.data() + begin_, n);
    begin_ += n;
    return static_cast<ssize_t>(n);
  }
  ssize_t write(const char* from, std::size_t size) override {
    if (!is_writable()) return -1;
    while (true) {
      const ssize_t n = ::send(descriptor_, from, size, MSG_NOSIGNAL);
      if (n >= 0 || errno != EINTR) return n;
    }
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    ip = std::to_string(uid_);
    port = pid_;
  }
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return descriptor_; }

 private:
  ssize_t receive() {
    while (true) {
      const ssize_t n = ::recv(descriptor_, buffer_.data(), buffer_.size(), 0);
      if (n >= 0 || errno != EINTR) return n;
    }
  }

  const int descriptor_;
  const std::chrono::milliseconds read_timeout_, write_timeout_;
  unsigned uid_ = std::numeric_limits<unsigned>::max();
  int pid_ = 0;
  std::array<char, 16 << 10> buffer_;
  std::size_t begin_ = 0, end_ = 0;
};

}  // namespace

Result<int> listen_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return fail(Code::invalid_argument, path,
                "is too long for a unix socket: at most " + std::to_string(sizeof address.sun_path - 1) + " characters",
                "name a shorter one as server.admin_socket in the configuration");
  path.copy(address.sun_path, path.size());
  struct stat info{};
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode))
      return fail(Code::already_exists, path, "is there and is not a socket", "name another admin_socket");
    ::unlink(path.c_str());  // of a server that died
  }
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail_errno(errno, path, "make a socket");
  // The mode is right from the start: fchmod on the unbound socket decides what bind() makes.
  if (::fchmod(fd, 0600) != 0 || ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(fd, kBacklog) != 0) {
    const int error = errno;
    ::close(fd);
    return fail_errno(error, path, "listen on");
  }
  return fd;
}

void enlarge_send_buffer(int descriptor) {
  const int size = 1 << 20;
  if (::setsockopt(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) != 0)
    static_cast<void>(::setsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
}

bool UnixHttpServer::process_and_close_socket(int descriptor) {
  enlarge_send_buffer(descriptor);
  UnixStream stream(descriptor, std::chrono::seconds(read_timeout_sec_), std::chrono::seconds(write_timeout_sec_));
  const auto next_request = [&] {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(keep_alive_timeout_sec_);
    while (!stream.buffered()) {
      if (svr_sock_ == INVALID_SOCKET || std::chrono::steady_clock::now() >= end) return false;
      if (ready(descriptor, POLLIN, kStopCheck)) return true;
    }
    return true;
  };
  bool good = true;
  for (std::size_t left = keep_alive_max_count_; left > 0 && next_request(); --left) {
    bool closed = false;
    good = process_request(stream, left == 1, closed, nullptr);
    if (!good || closed) break;
  }
  ::shutdown(descriptor, SHUT_RDWR);
  ::close(descriptor);
  return good;
}

std::string Peer::name() const {
  std::vector<char> buffer(16 << 10);
  passwd entry{};
  passwd* found = nullptr;
  if (::getpwuid_r(uid, &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) return found->pw_name;
  return "uid " + std::to_string(uid);
}

Peer peer_of(const httplib::Request& request) {
  Peer peer;
  try {
    peer.uid = static_cast<unsigned>(std::stoul(request.remote_addr));
  } catch (const std::exception&) {  // not of our stream
    peer.uid = std::numeric_limits<unsigned>::max();
  }
  peer.pid = request.remote_port;
  return peer;
}

}  // namespace tidemark::server
