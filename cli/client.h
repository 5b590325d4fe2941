// The client of the admin API: HTTP/1.1 over the server's unix socket. Everything tidemark knows comes through here.
//
// An answer that is an error becomes the Error the server told; one that cannot be understood, a connection that cannot
// be made or breaks, becomes an Error that says so. Requests are made one after another, on one thread; stop() may be
// called by any.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::cli {

// The longest silence of the server in the middle of a request before it counts as gone.
inline constexpr auto kAnswerTimeout = std::chrono::seconds(120);

class AdminClient {
 public:
  explicit AdminClient(std::string socket_path);
  ~AdminClient();

  Result<nlohmann::json> get(const std::string& path);
  Result<nlohmann::json> post(const std::string& path, const nlohmann::json& body);
  Result<nlohmann::json> patch(const std::string& path, const nlohmann::json& body);
  Result<nlohmann::json> put(const std::string& path, const nlohmann::json& body);
  Result<nlohmann::json> remove(const std::string& path);  // null: there was nothing to say
  // /v1/health tells what does not serve in the body of a 503: here that is an answer too.
  Result<nlohmann::json> get_health();

  // Bytes of an answer as they come. An error of the receiver ends the request and is returned.
  using Receiver = std::function<Status(std::span<const std::byte>)>;
  struct Range {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;  // > 0
  };
  struct StreamRequest {
    std::string method = "GET";
    std::string path{};
    std::optional<Range> range{};          // answered with 206, or it is an error
    std::optional<std::uint64_t> epoch{};  // what the header Tidemark-Epoch must say
  };
  // Well only when the whole answer came. A receiver may have seen bytes of an answer that then failed.
  Status stream(const StreamRequest& request, const Receiver& receiver);

  // Ends the request in flight, and all later ones, with Code::cancelled.
  void stop();
  bool stopped() const;

  const std::string& socket_path() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One segment of a path: everything but unreserved characters percent-encoded.
std::string path_segment(std::string_view text);

// "/v1/machines/MACHINE" and what follows it.
std::string machine_path(std::string_view machine, std::string_view rest = {});

}  // namespace tidemark::cli
