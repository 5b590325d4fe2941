#include "server/moment.h"

#include <charconv>
#include <string>

#include "base/limits.h"

namespace tidemark::server {

Result<Moment> parse_at(std::string_view text, WallMicros now_us) {
  constexpr std::string_view kEpoch = "epoch:";
  Moment moment;
  if (text.starts_with(kEpoch)) {
    const std::string_view digits = text.substr(kEpoch.size());
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (digits.empty() || error != std::errc() || end != digits.data() + digits.size())
      return fail(Code::invalid_argument, std::string(text), "not an epoch", "write it like epoch:17");
    moment.epoch = EpochNumber(number);
    return moment;
  }
  const auto time = parse_moment(text, now_us);
  if (!time)
    return fail(Code::invalid_argument, std::string(text), "not a moment",
                "write latest, a time like 2026-11-20T10:15:03Z, an age like -15m, or epoch:17");
  moment.time_us = *time;
  return moment;
}

Status check_machine_name(std::string_view name) {
  const auto wrong = [&](const char* what) {
    return fail(Code::invalid_argument, std::string(name.substr(0, limits::kNameLengthMax)), what,
                "a machine name has 1 to 64 characters of A-Z a-z 0-9 . _ -");
  };
  if (name.empty()) return wrong("a machine name is missing");
  if (name.size() > limits::kNameLengthMax) return wrong("the machine name is too long");
  for (const char c : name) {
    const bool good =
        (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
    if (!good) return wrong("the machine name has a character that is not allowed");
  }
  if (name == "." || name == "..") return wrong("this cannot be a machine name");
  if (MachineId::parse(name)) return wrong("a machine name of 32 hexadecimal digits would read as an id");
  return {};
}

}  // namespace tidemark::server
