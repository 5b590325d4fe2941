// Time behind a seam: production reads the kernel's clocks, tests set their own.
// Wall time is what points carry; monotonic time is for deadlines and rates. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark {

// Microseconds since 1970-01-01T00:00:00Z.
using WallMicros = std::int64_t;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual WallMicros wall_us() const = 0;
  virtual std::chrono::steady_clock::time_point monotonic() const = 0;

  static const Clock& system();
};

// Stands still until it is told to move.
class ManualClock final : public Clock {
 public:
  explicit ManualClock(WallMicros start_us) : start_us_(start_us) {}
  WallMicros wall_us() const override { return start_us_ + elapsed_us_.load() + jump_us_.load(); }
  std::chrono::steady_clock::time_point monotonic() const override {
    return std::chrono::steady_clock::time_point(std::chrono::microseconds(elapsed_us_.load()));
  }
  void advance(std::chrono::microseconds by) { elapsed_us_ += by.count(); }
  void jump_wall(std::chrono::microseconds by) { jump_us_ += by.count(); }  // an administrator or NTP set the clock

 private:
  WallMicros start_us_;
  std::atomic<std::int64_t> elapsed_us_{0};
  std::atomic<std::int64_t> jump_us_{0};
};

// RFC 3339 in UTC with microseconds when there are any: "2026-11-20T10:15:03Z", "2026-11-20T10:15:03.250000Z".
std::string format_rfc3339(WallMicros time_us);

// Any RFC 3339 time with an offset or Z, up to nine fractional digits (beyond microseconds they are dropped).
Result<WallMicros> parse_rfc3339(std::string_view text);

// What a user may give as a moment: "latest" (no value), RFC 3339, or "-15m" (s, m, h, d) before `now_us`.
Result<std::optional<WallMicros>> parse_moment(std::string_view text, WallMicros now_us);

}  // namespace tidemark
