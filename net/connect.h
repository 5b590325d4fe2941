// From an address in words to a connected socket, without blocking: names are resolved on a thread of asio's own.
#pragma once

#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::net {

inline constexpr std::uint16_t kDefaultPort = 7443;

struct HostPort {
  std::string host;  // a name or an address, without brackets
  std::uint16_t port = 0;
  std::string to_string() const;  // "host:port", "[::1]:7443"
  bool operator==(const HostPort&) const = default;
};

// "host:port", "192.0.2.7:7443", "[2001:db8::7]:7443"; without a port `default_port` is taken. Port 0 is accepted.
Result<HostPort> parse_host_port(std::string_view text, std::uint16_t default_port = kDefaultPort);

// One attempt to connect. Belongs to the thread of its io_context.
class Connecting {
 public:
  // not_found: no such name. unavailable: refused, unreachable, or the name service does not answer; timed_out. Each
  // names the address. invalid_argument: the address makes no sense.
  using Done = std::function<void(Result<asio::ip::tcp::socket>)>;

  // Tries each address of the name in turn, all within `timeout`. `done` is called once, from the loop, unless this is
  // destroyed before; it may destroy this.
  Connecting(asio::io_context& context, const std::string& address, std::chrono::milliseconds timeout, Done done);
  ~Connecting();
  Connecting(const Connecting&) = delete;
  Connecting& operator=(const Connecting&) = delete;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tidemark::net
