#include "base/clock.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>

namespace tidemark {
namespace {

using std::chrono::microseconds;
constexpr std::int64_t kMicrosPerSecond = 1'000'000;

class SystemClock final : public Clock {
 public:
  WallMicros wall_us() const override {
    return std::chrono::duration_cast<microseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
  std::chrono::steady_clock::time_point monotonic() const override { return std::chrono::steady_clock::now(); }
};

std::unexpected<Error> not_a_time(std::string_view text) {
  return fail(Code::invalid_argument, std::string(text), "not an RFC 3339 time",
              "write it like 2026-11-20T10:15:03Z or 2026-11-20T11:15:03+01:00");
}

// Takes exactly `digits` decimal digits off the front of `text`.
bool take_number(std::string_view& text, std::size_t digits, int& value) {
  if (text.size() < digits) return false;
  value = 0;
  for (const char c : text.substr(0, digits)) {
    if (c < '0' || c > '9') return false;
    value = value * 10 + (c - '0');
  }
  text.remove_prefix(digits);
  return true;
}

bool take_char(std::string_view& text, std::string_view any_of) {
  if (text.empty() || any_of.find(text.front()) == std::string_view::npos) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

const Clock& Clock::system() {
  static const SystemClock clock;
  return clock;
}

std::string format_rfc3339(WallMicros time_us) {
  const auto since_epoch = microseconds(time_us);
  const auto day = std::chrono::floor<std::chrono::days>(since_epoch);
  const std::chrono::year_month_day date{std::chrono::sys_days(day)};
  const std::chrono::hh_mm_ss<microseconds> time(since_epoch - day);
  std::string text = fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}", static_cast<int>(date.year()),
                                 static_cast<unsigned>(date.month()), static_cast<unsigned>(date.day()),
                                 time.hours().count(), time.minutes().count(), time.seconds().count());
  if (time.subseconds().count() != 0) text += fmt::format(".{:06}", time.subseconds().count());
  return text + "Z";
}

Result<WallMicros> parse_rfc3339(std::string_view text) {
  std::string_view rest = text;
  int year, month, day, hour, minute, second;
  if (!(take_number(rest, 4, year) && take_char(rest, "-") && take_number(rest, 2, month) && take_char(rest, "-") &&
        take_number(rest, 2, day) && take_char(rest, "Tt ") && take_number(rest, 2, hour) && take_char(rest, ":") &&
        take_number(rest, 2, minute) && take_char(rest, ":") && take_number(rest, 2, second)))
    return not_a_time(text);
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!date.ok() || hour > 23 || minute > 59 || second > 60) return not_a_time(text);

  std::int64_t micros = 0;
  if (take_char(rest, ".")) {
    std::size_t digits = 0;
    for (std::int64_t unit = kMicrosPerSecond / 10; !rest.empty() && rest.front() >= '0' && rest.front() <= '9';
         unit /= 10) {
      micros += (rest.front() - '0') * unit;
      rest.remove_prefix(1);
      if (++digits > 9) return not_a_time(text);
    }
    if (digits == 0) return not_a_time(text);
  }
  std::int64_t offset_minutes = 0;
  if (!take_char(rest, "Zz")) {
    const bool west = !rest.empty() && rest.front() == '-';
    int offset_hour, offset_minute;
    if (!(take_char(rest, "+-") && take_number(rest, 2, offset_hour) && take_char(rest, ":") &&
          take_number(rest, 2, offset_minute)) ||
        offset_hour > 23 || offset_minute > 59)
      return not_a_time(text);
    offset_minutes = (west ? -1 : 1) * (offset_hour * 60 + offset_minute);
  }
  if (!rest.empty()) return not_a_time(text);
  const auto days = std::chrono::sys_days(date).time_since_epoch();
  const std::int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(days).count() + hour * 3600 +
                               (minute - offset_minutes) * 60 + second;
  return seconds * kMicrosPerSecond + micros;
}

Result<std::optional<WallMicros>> parse_moment(std::string_view text, WallMicros now_us) {
  if (text == "latest") return std::nullopt;
  if (!text.starts_with('-')) {
    auto time = parse_rfc3339(text);
    if (!time) {
      time.error().remedy = "give latest, a time like 2026-11-20T10:15:03Z, or an age like -15m";
      return std::unexpected(std::move(time).error());
    }
    return *time;
  }
  const std::string_view number = text.substr(1, text.size() - 2);
  std::int64_t amount = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), amount);
  std::int64_t unit_seconds = 0;
  switch (text.back()) {
    case 's': unit_seconds = 1; break;
    case 'm': unit_seconds = 60; break;
    case 'h': unit_seconds = 3600; break;
    case 'd': unit_seconds = 86400; break;
    default: break;
  }
  constexpr std::int64_t kAgeSecondsMax = 100LL * 366 * 86400;
  if (text.size() < 3 || error != std::errc{} || end != number.data() + number.size() || amount < 0 ||
      unit_seconds == 0 || amount > kAgeSecondsMax / unit_seconds)
    return fail(Code::invalid_argument, std::string(text), "not an age", "write it like -90s, -15m, -6h or -2d");
  return now_us - amount * unit_seconds * kMicrosPerSecond;
}

}  // namespace tidemark
