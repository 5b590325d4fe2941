#include "server/http_range.h"

#include <algorithm>
#include <charconv>
#include <string>

namespace tidemark::server {
namespace {

// Digits only; a number too large for 64 bits is as good as the largest.
std::optional<std::uint64_t> number(std::string_view text) {
  if (text.empty() || !std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }))
    return std::nullopt;
  std::uint64_t value = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) return UINT64_MAX;
  return value;
}

}  // namespace

Result<std::optional<HttpRange>> parse_http_range(std::string_view header, std::uint64_t size) {
  constexpr std::string_view kUnit = "bytes=";
  if (!header.starts_with(kUnit)) return std::nullopt;
  const std::string_view spec = header.substr(kUnit.size());
  const auto dash = spec.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::string_view first = spec.substr(0, dash), last = spec.substr(dash + 1);
  const auto from = number(first), to = number(last);
  const auto unsatisfiable = [&] {
    return fail(Code::invalid_argument, std::string(header),
                "nothing of this range exists: the disk has " + std::to_string(size) + " bytes");
  };
  if (first.empty()) {  // the last n bytes
    if (!to) return std::nullopt;
    if (*to == 0 || size == 0) return unsatisfiable();
    const std::uint64_t length = std::min(*to, size);
    return HttpRange{size - length, length};
  }
  if (!from || (!to && !last.empty())) return std::nullopt;
  if (to && *to < *from) return std::nullopt;
  if (*from >= size) return unsatisfiable();
  const std::uint64_t end = to ? std::min(*to, size - 1) : size - 1;
  return HttpRange{*from, end - *from + 1};
}

}  // namespace tidemark::server
