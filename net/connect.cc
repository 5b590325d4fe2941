#include "net/connect.h"

#include <algorithm>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <charconv>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "net/tls_error.h"

namespace tidemark::net {
namespace {

using asio::ip::tcp;

constexpr std::size_t kHostSizeMax = 253;
constexpr std::size_t kAddressesMax = 8;  // of one name that are tried

Error resolve_error(const std::error_code& error, const HostPort& address) {
  if (error == asio::error::host_not_found || error == asio::error::no_data) {
    return {Code::not_found, address.to_string(), "no such name: " + address.host,
            "check the spelling and the name service"};
  }
  return {Code::unavailable, address.to_string(), "cannot resolve " + address.host + ": " + error.message(),
          "check the name service"};
}

}  // namespace

std::string HostPort::to_string() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<HostPort> parse_host_port(std::string_view text, std::uint16_t default_port) {
  const auto bad = [&](const char* what) {
    return fail(Code::invalid_argument, std::string(text.substr(0, kHostSizeMax)), what,
                "write host:port, 192.0.2.7:7443 or [2001:db8::7]:7443");
  };
  HostPort result{{}, default_port};
  std::string_view port;
  bool has_port = false;
  if (text.starts_with('[')) {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return bad("the bracket is not closed");
    result.host = text.substr(1, end - 1);
    const std::string_view rest = text.substr(end + 1);
    if (!rest.empty() && !rest.starts_with(':')) return bad("is not an address");
    has_port = !rest.empty();
    if (has_port) port = rest.substr(1);
  } else {
    const std::size_t colon = text.find(':');
    if (colon != text.rfind(':')) return bad("an IPv6 address needs brackets");
    result.host = text.substr(0, colon);
    has_port = colon != std::string_view::npos;
    if (has_port) port = text.substr(colon + 1);
  }
  if (result.host.empty()) return bad("the host is missing");
  if (result.host.size() > kHostSizeMax) return bad("the host's name is too long");
  if (!std::ranges::all_of(result.host, [](char c) { return c > ' ' && c < 0x7f && c != '/' && c != '@'; })) {
    return bad("the host holds a character that does not belong there");
  }
  if (has_port) {
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), result.port);
    if (error != std::errc() || end != port.data() + port.size())
      return bad("the port is not a number from 0 to 65535");
  }
  return result;
}

struct Connecting::Impl : std::enable_shared_from_this<Impl> {
  Impl(asio::io_context& context, Done done_)
      : resolver(context), socket(context), timer(context), done(std::move(done_)) {}

  tcp::resolver resolver;
  tcp::socket socket;
  asio::steady_timer timer;
  Done done;  // empty when it was called or is not wanted any more
  HostPort address;
  std::vector<tcp::endpoint> endpoints;
  std::size_t next = 0;
  std::optional<Error> last_error;

  void finish(Result<tcp::socket> result) {
    if (!done) return;
    stop();
    std::exchange(done, nullptr)(std::move(result));
  }

  void stop() {
    resolver.cancel();
    timer.cancel();
  }

  void start(std::chrono::milliseconds timeout) {
    timer.expires_after(timeout);
    timer.async_wait([self = shared_from_this(), timeout](const std::error_code& error) {
      if (!error) self->on_timeout(timeout);
    });
    resolver.async_resolve(
        address.host, std::to_string(address.port), tcp::resolver::numeric_service,
        [self = shared_from_this()](const std::error_code& error, const tcp::resolver::results_type& found) {
          if (!self->done) return;
          if (error) return self->finish(std::unexpected(resolve_error(error, self->address)));
          for (const auto& entry : found) {
            if (self->endpoints.size() < kAddressesMax) self->endpoints.push_back(entry.endpoint());
          }
          self->try_next();
        });
  }

  void on_timeout(std::chrono::milliseconds timeout) {
    if (!done) return;
    std::error_code ignored;  // it was never connected
    socket.close(ignored);
    const std::string what = endpoints.empty() ? "the name service did not answer within " : "did not answer within ";
    finish(fail(Code::timed_out, where(), what + std::to_string(timeout.count()) + " ms",
                "check the address, the network and its firewalls"));
  }

  // "staging.example:7443 (192.0.2.7)"; the address once when the name is one.
  std::string where() const {
    if (next == 0 || next > endpoints.size()) return address.to_string();
    const std::string ip = endpoints[next - 1].address().to_string();
    return ip == address.host ? address.to_string() : address.to_string() + " (" + ip + ")";
  }

  void try_next() {
    if (!done) return;
    if (next == endpoints.size()) {
      if (!last_error) last_error = Error{Code::not_found, address.to_string(), "the name has no address", {}};
      return finish(std::unexpected(*last_error));
    }
    const tcp::endpoint endpoint = endpoints[next++];
    std::error_code ignored;  // the socket of the attempt before
    socket.close(ignored);
    socket.async_connect(endpoint, [self = shared_from_this()](const std::error_code& error) {
      if (!self->done) return;
      if (!error) return self->finish(std::move(self->socket));
      self->last_error = network_error(error.value(), self->where(), "connect");
      self->try_next();
    });
  }
};

Connecting::Connecting(asio::io_context& context, const std::string& address, std::chrono::milliseconds timeout,
                       Done done)
    : impl_(std::make_shared<Impl>(context, std::move(done))) {
  auto parsed = parse_host_port(address);
  if (!parsed) {
    asio::post(context, [self = impl_, error = parsed.error()] { self->finish(std::unexpected(error)); });
    return;
  }
  impl_->address = *std::move(parsed);
  impl_->start(timeout);
}

Connecting::~Connecting() {
  impl_->done = nullptr;
  impl_->stop();
  std::error_code ignored;
  impl_->socket.close(ignored);
}

}  // namespace tidemark::net
