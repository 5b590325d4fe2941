#include "base/clock.h"

#include <gtest/gtest.h>

namespace tidemark {
namespace {

constexpr WallMicros kQuarterPastTen = 1795169703LL * 1'000'000;  // 2026-11-20T10:15:03Z

TEST(Clock, FormatsWithAFractionOnlyWhenThereIsOne) {
  EXPECT_EQ(format_rfc3339(kQuarterPastTen), "2026-11-20T10:15:03Z");
  EXPECT_EQ(format_rfc3339(kQuarterPastTen + 250'000), "2026-11-20T10:15:03.250000Z");
  EXPECT_EQ(format_rfc3339(0), "1970-01-01T00:00:00Z");
}

TEST(Clock, ParsesWhatItFormatsAndOffsets) {
  EXPECT_EQ(parse_rfc3339("2026-11-20T10:15:03Z"), kQuarterPastTen);
  EXPECT_EQ(parse_rfc3339("2026-11-20T11:15:03+01:00"), kQuarterPastTen);
  EXPECT_EQ(parse_rfc3339("2026-11-20T05:45:03-04:30"), kQuarterPastTen);
  EXPECT_EQ(parse_rfc3339("2026-11-20T10:15:03.25Z"), kQuarterPastTen + 250'000);
  EXPECT_EQ(parse_rfc3339("2026-11-20T10:15:03.123456789Z"), kQuarterPastTen + 123'456);
}

TEST(Clock, RefusesWhatIsNotATime) {
  for (const char* text :
       {"", "now", "2026-11-20", "2026-13-20T10:15:03Z", "2026-02-29T10:15:03Z", "2026-11-20T25:15:03Z",
        "2026-11-20T10:15:03", "2026-11-20T10:15:03.Z", "2026-11-20T10:15:03Zx", "2026-11-20T10:15:03+1:00"}) {
    const auto result = parse_rfc3339(text);
    ASSERT_FALSE(result) << text;
    EXPECT_EQ(result.error().code, Code::invalid_argument);
    EXPECT_EQ(result.error().object, text);
  }
}

TEST(Clock, AMomentIsLatestATimeOrAnAge) {
  EXPECT_EQ(parse_moment("latest", kQuarterPastTen).value(), std::nullopt);
  EXPECT_EQ(parse_moment("-15m", kQuarterPastTen).value(), kQuarterPastTen - 900'000'000);
  EXPECT_EQ(parse_moment("-2d", kQuarterPastTen).value(), kQuarterPastTen - 2 * 86'400'000'000);
  EXPECT_EQ(parse_moment("2026-11-20T10:15:03Z", 0).value(), kQuarterPastTen);
  for (const char* text :
       {"-", "-m", "-15", "-1x5m", "--5m", "-99999999999999999999m", "-9223372036854775807d", "soon"})
    EXPECT_FALSE(parse_moment(text, kQuarterPastTen)) << text;
}

TEST(Clock, AManualClockMovesOnlyWhenTold) {
  ManualClock clock(kQuarterPastTen);
  const auto before = clock.monotonic();
  clock.advance(std::chrono::seconds(2));
  clock.jump_wall(std::chrono::hours(-1));
  EXPECT_EQ(clock.wall_us(), kQuarterPastTen + 2'000'000 - 3'600'000'000);
  EXPECT_EQ(clock.monotonic() - before, std::chrono::seconds(2));
}

}  // namespace
}  // namespace tidemark
