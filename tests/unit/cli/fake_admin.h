// A small server that speaks just enough HTTP on a unix socket to stand where the admin API stands: for tests of the
// client alone. Each connection is served on a thread of its own; the handler must be thread-safe.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

namespace tidemark::cli {

class FakeAdmin {
 public:
  struct Request {
    std::string method;
    std::string target;                                            // as it came, still encoded
    std::optional<std::pair<std::uint64_t, std::uint64_t>> range;  // first and last byte
    std::string body{};
  };
  struct Response {
    int status = 200;
    std::string body{};
    std::string headers{};                   // further ones, each ending in \r\n
    std::optional<std::size_t> cut_after{};  // closes after so many bytes of the body
    bool hang = false;                       // after the body's first half, until the other end closes
    bool close_after = false;                // in order
  };
  using Handler = std::function<Response(const Request&)>;

  explicit FakeAdmin(Handler handler) : handler_(std::move(handler)) {
    char name[] = "/tmp/tidemark-cli-XXXXXX";
    TIDEMARK_CHECK(::mkdtemp(name) != nullptr);
    directory_ = name;
    listener_ = ::socket(AF_UNIX, SOCK_STREAM, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, socket().c_str());
    TIDEMARK_CHECK(::bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    TIDEMARK_CHECK(::listen(listener_, 16) == 0);
    acceptor_ = std::thread([this] { accept_all(); });
  }
  ~FakeAdmin() {
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : connections_) ::shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
    for (const int fd : connections_) ::close(fd);
    ::close(listener_);
    std::filesystem::remove_all(directory_);
  }

  std::string socket() const { return directory_ + "/admin.sock"; }
  const std::string& directory() const { return directory_; }
  std::vector<Request> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void accept_all() {
    for (;;) {
      const int fd = ::accept(listener_, nullptr, nullptr);
      if (fd < 0) return;
      const std::lock_guard lock(mutex_);
      connections_.push_back(fd);
      threads_.emplace_back([this, fd] { serve(fd); });
    }
  }

  void serve(int fd) {
    std::string received;
    const auto receive = [&] {
      char buffer[65536];
      const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
      if (n > 0) received.append(buffer, static_cast<std::size_t>(n));
      return n > 0;
    };
    for (bool open = true; open;) {
      std::size_t head;
      while ((head = received.find("\r\n\r\n")) == std::string::npos)
        if (!receive()) return;
      Request request;
      const std::string text = received.substr(0, head + 2);
      request.method = text.substr(0, text.find(' '));
      const std::size_t target = request.method.size() + 1;
      request.target = text.substr(target, text.find(' ', target) - target);
      if (const auto at = text.find("Range: bytes="); at != std::string::npos) {
        unsigned long long first, last;
        TIDEMARK_CHECK(std::sscanf(text.c_str() + at, "Range: bytes=%llu-%llu", &first, &last) == 2);
        request.range = {first, last};
      }
      std::size_t body_size = 0;
      if (const auto at = text.find("Content-Length: "); at != std::string::npos)
        body_size = std::stoul(text.substr(at + 16));
      received.erase(0, head + 4);
      while (received.size() < body_size)
        if (!receive()) return;
      request.body = received.substr(0, body_size);
      received.erase(0, body_size);
      {
        const std::lock_guard lock(mutex_);
        requests_.push_back(request);
      }
      const Response response = handler_(request);
      std::string answer = "HTTP/1.1 " + std::to_string(response.status) + " Text\r\n" + response.headers +
                           "Content-Length: " + std::to_string(response.body.size()) + "\r\n\r\n";
      if (response.cut_after) {
        answer += response.body.substr(0, *response.cut_after);
        open = false;
      } else if (response.hang) {
        answer += response.body.substr(0, response.body.size() / 2);
      } else {
        answer += response.body;
      }
      for (std::size_t sent = 0; sent < answer.size();) {
        const ssize_t n = ::send(fd, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
        if (n <= 0) return;
        sent += static_cast<std::size_t>(n);
      }
      if (response.hang)
        while (receive()) {
        }
      open = open && !response.hang && !response.close_after;
    }
    ::shutdown(fd, SHUT_RDWR);
  }

  Handler handler_;
  std::string directory_;
  int listener_ = -1;
  std::thread acceptor_;
  mutable std::mutex mutex_;
  std::vector<int> connections_;
  std::vector<std::thread> threads_;
  std::vector<Request> requests_;
};

}  // namespace tidemark::cli
