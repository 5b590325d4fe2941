// The Range header of HTTP (RFC 9110, section 14), as far as it concerns us: one range of bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/status.h"

namespace tidemark::server {

struct HttpRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool operator==(const HttpRange&) const = default;
};

// What of `size` bytes is asked for. Nothing: the header is empty, of another unit, malformed or asks for several
// ranges, which the RFC lets a server ignore; the whole is sent. Code::invalid_argument: nothing of it exists (416).
Result<std::optional<HttpRange>> parse_http_range(std::string_view header, std::uint64_t size);

}  // namespace tidemark::server
