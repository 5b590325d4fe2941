#include "agent/rate_schedule.h"

#include <algorithm>
#include <array>
#include <ctime>

namespace tidemark::agent {
namespace {

constexpr int kDayMinutes = 1440;
constexpr std::array<std::string_view, 7> kDays = {"mon", "tue", "wed", "thu", "fri", "sat", "sun"};

struct LocalTime {
  int day = 0;     // 0: Monday
  int minute = 0;  // of the day
  std::tm fields{};
};

LocalTime local_time(WallMicros now_us) {
  const auto seconds = static_cast<std::time_t>(now_us / 1'000'000);
  LocalTime time;
  ::localtime_r(&seconds, &time.fields);
  time.day = (time.fields.tm_wday + 6) % 7;
  time.minute = time.fields.tm_hour * 60 + time.fields.tm_min;
  return time;
}

bool begins_on(const RateWindow& window, int day) { return (window.days >> ((day + 7) % 7) & 1) != 0; }

bool holds(const RateWindow& window, int day, int minute) {
  if (window.from_minute < window.to_minute)
    return begins_on(window, day) && minute >= window.from_minute && minute < window.to_minute;
  return (begins_on(window, day) && minute >= window.from_minute) ||
         (begins_on(window, day - 1) && minute < window.to_minute);
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

Result<int> parse_day(std::string_view text) {
  const auto day = std::find(kDays.begin(), kDays.end(), trimmed(text));
  if (day == kDays.end()) {
    return fail(Code::invalid_argument, std::string(text), "is no day of the week",
                "write mon, tue, wed, thu, fri, sat or sun");
  }
  return static_cast<int>(day - kDays.begin());
}

}  // namespace

double RateSchedule::limit_at(WallMicros now_us) const {
  if (windows_.empty()) return plain_mib_s_;
  const LocalTime now = local_time(now_us);
  const auto window = std::find_if(windows_.begin(), windows_.end(),
                                   [&](const RateWindow& w) { return holds(w, now.day, now.minute); });
  return window == windows_.end() ? plain_mib_s_ : window->limit_mib_s;
}

RateCap RateSchedule::at(WallMicros now_us) const {
  RateCap cap{limit_at(now_us), 0};
  const LocalTime now = local_time(now_us);
  // Nothing changes but where a window begins or ends.
  for (int days = 0; days <= 8; ++days) {
    for (const RateWindow& window : windows_) {
      for (const int minute : {window.from_minute, window.to_minute}) {
        std::tm then = now.fields;
        then.tm_mday += days;
        then.tm_hour = minute / 60;
        then.tm_min = minute % 60;
        then.tm_sec = 0;
        then.tm_isdst = -1;
        const WallMicros when = static_cast<WallMicros>(std::mktime(&then)) * 1'000'000;
        if (when <= now_us || (cap.until_us != 0 && when >= cap.until_us)) continue;
        if (limit_at(when) != cap.limit_mib_s) cap.until_us = when;
      }
    }
  }
  return cap;
}

Result<int> parse_time_of_day(std::string_view text, bool end) {
  const auto digit = [&](std::size_t i) { return text[i] >= '0' && text[i] <= '9' ? text[i] - '0' : 100; };
  if (text.size() == 5 && text[2] == ':') {
    const int hour = digit(0) * 10 + digit(1);
    const int minute = digit(3) * 10 + digit(4);
    const int all = hour * 60 + minute;
    if (minute < 60 && (hour < 24 || (end && all == kDayMinutes))) return all;
  }
  return fail(Code::invalid_argument, std::string(text), "is no time of day",
              end ? "write HH:MM, 00:00 to 24:00" : "write HH:MM, 00:00 to 23:59");
}

Result<std::uint8_t> parse_days(std::string_view text) {
  if (trimmed(text) == "daily") return std::uint8_t{0x7f};
  unsigned days = 0;
  while (true) {
    const std::size_t comma = std::min(text.find(','), text.size());
    const std::string_view part = text.substr(0, comma);
    const std::size_t dash = part.find('-');
    const int first = TIDEMARK_TRY(parse_day(part.substr(0, dash)));
    const int last = dash == std::string_view::npos ? first : TIDEMARK_TRY(parse_day(part.substr(dash + 1)));
    for (int day = first;; day = (day + 1) % 7) {
      days |= 1U << day;
      if (day == last) break;
    }
    if (comma == text.size()) return static_cast<std::uint8_t>(days);
    text.remove_prefix(comma + 1);
  }
}

}  // namespace tidemark::agent
