// Requests of the transmission phase, and the replies to them, as bytes. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"
#include "nbd/handshake.h"
#include "nbd/protocol.h"

namespace tidemark::nbd {

inline constexpr std::size_t kRequestSize = 28;

struct Request {
  std::uint16_t flags = 0;
  Command command{};
  std::uint64_t cookie = 0;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;

  bool has(std::uint16_t flag) const { return (flags & flag) != 0; }
  std::size_t payload() const { return command == Command::write ? length : 0; }  // bytes that follow it
};

// Code::protocol: these bytes are no request, and there is no way to find the next one.
Result<Request> parse_request(std::span<const std::byte, kRequestSize> bytes);

struct Refused {
  Errno error{};
  std::string_view why;
};
// What is wrong with asking this of such an export; nullopt: nothing.
std::optional<Refused> check_request(const Request& request, const ExportInfo& info, bool structured, bool allocation);

// Heads of replies; the data that belongs to one follows it.
std::string simple_reply(const Request& request, Errno error);
std::string data_chunk(const Request& request, std::uint64_t offset, std::size_t size, bool done);
std::string hole_chunk(const Request& request, std::uint64_t offset, std::uint32_t size, bool done);
std::string done_chunk(const Request& request);
// With the place of the trouble for reads. The text is cut to what the protocol allows.
std::string error_chunk(const Request& request, Errno error, std::string_view why);

struct StatusExtent {
  std::uint32_t length = 0;
  std::uint32_t flags = 0;
};
std::string status_chunk(const Request& request, std::span<const StatusExtent> extents);

}  // namespace tidemark::nbd
