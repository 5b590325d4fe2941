// How fast blocks may be sent, by the time of day: windows of the week in the machine's local time, and a plain cap
// outside of them. Pure but for the time zone (TZ, /etc/localtime). Immutable: any thread may ask.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace tidemark::agent {

// From `from_minute` of each of its days until `to_minute`, which lies on the next day when it is not later.
struct RateWindow {
  int from_minute = 0;     // of the day, 0 to 1439
  int to_minute = 0;       // 1 to 1440
  std::uint8_t days = 0;   // bit 0: Monday, ..., bit 6: Sunday; the days on which it begins
  double limit_mib_s = 0;  // 0: no limit
  bool operator==(const RateWindow&) const = default;
};

struct RateCap {
  double limit_mib_s = 0;   // 0: no limit
  WallMicros until_us = 0;  // another one holds from then on; 0: it is for good
  bool operator==(const RateCap&) const = default;
};

class RateSchedule {
 public:
  RateSchedule() = default;
  // The first window that a moment lies in holds.
  explicit RateSchedule(double plain_mib_s, std::vector<RateWindow> windows = {})
      : plain_mib_s_(plain_mib_s), windows_(std::move(windows)) {}

  double limit_at(WallMicros now_us) const;  // MiB a second; 0: none
  RateCap at(WallMicros now_us) const;

 private:
  double plain_mib_s_ = 0;
  std::vector<RateWindow> windows_;
};

// "08:30" as minutes of the day; "24:00" only where `end`.
Result<int> parse_time_of_day(std::string_view text, bool end);
// "mon-fri", "sat,sun", "fri-mon,wed", "daily" as bits, Monday the lowest.
Result<std::uint8_t> parse_days(std::string_view text);

}  // namespace tidemark::agent
