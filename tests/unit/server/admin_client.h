// A client of the admin API over its unix socket, as small as tests need it.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cctype>
#include <nlohmann/json.hpp>
#include <string>

namespace tidemark::server {

struct AdminAnswer {
  int status = 0;
  std::string head, body;
  nlohmann::json json() const { return nlohmann::json::parse(body, nullptr, false); }
};

inline AdminAnswer admin(const std::string& socket, const std::string& method, const std::string& target,
                         const std::string& body = {}, const std::string& headers = {}) {
  AdminAnswer answer;
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    ::close(fd);
    return answer;
  }
  const std::string request = method + " " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + headers +
                              "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  EXPECT_EQ(::send(fd, request.data(), request.size(), MSG_NOSIGNAL), static_cast<ssize_t>(request.size()));
  std::string all;
  char buffer[65536];
  for (ssize_t n; (n = ::recv(fd, buffer, sizeof buffer, 0)) > 0;) all.append(buffer, static_cast<std::size_t>(n));
  ::close(fd);
  const auto end = all.find("\r\n\r\n");
  if (end == std::string::npos) return answer;
  answer.head = all.substr(0, end);
  answer.body = all.substr(end + 4);
  answer.status = std::stoi(answer.head.substr(9, 3));
  if (answer.head.find("Transfer-Encoding: chunked") != std::string::npos) {
    std::string plain;
    for (std::size_t at = 0; at < answer.body.size();) {
      const std::size_t line = answer.body.find("\r\n", at);
      const std::size_t size = std::stoul(answer.body.substr(at, line - at), nullptr, 16);
      if (size == 0) break;
      plain += answer.body.substr(line + 2, size);
      at = line + 2 + size + 2;
    }
    answer.body = plain;
  }
  return answer;
}

}  // namespace tidemark::server
