#include "agent/rate_schedule.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <time.h>

namespace tidemark::agent {
namespace {

constexpr std::uint8_t kWorkdays = 0x1f;
constexpr std::uint8_t kDaily = 0x7f;

// The machine's time zone, for as long as a test takes.
class RateScheduleTest : public testing::Test {
 protected:
  RateScheduleTest() {
    if (const char* zone = ::getenv("TZ")) before_ = zone;
    set("UTC0");
  }
  ~RateScheduleTest() override {
    if (before_) {
      set(before_->c_str());
    } else {
      ::unsetenv("TZ");
      ::tzset();
    }
  }
  static void set(const char* zone) {
    ::setenv("TZ", zone, 1);
    ::tzset();
  }

 private:
  std::optional<std::string> before_;
};

WallMicros at(const char* text) { return *parse_rfc3339(text); }

TEST_F(RateScheduleTest, WithoutWindowsThePlainCapHoldsForGood) {
  EXPECT_EQ(RateSchedule(10).at(at("2026-11-27T12:00:00Z")), (RateCap{10, 0}));
  EXPECT_EQ(RateSchedule().at(at("2026-11-27T12:00:00Z")), (RateCap{0, 0}));
}

TEST_F(RateScheduleTest, AWindowHoldsFromItsFirstSecondToItsLast) {
  const RateSchedule schedule(10, {{8 * 60, 18 * 60 + 30, kWorkdays, 5}});
  const WallMicros end = at("2026-11-27T18:30:00Z");  // a Friday
  EXPECT_EQ(schedule.at(at("2026-11-27T07:59:59.999999Z")), (RateCap{10, at("2026-11-27T08:00:00Z")}));
  EXPECT_EQ(schedule.at(at("2026-11-27T08:00:00Z")), (RateCap{5, end}));
  EXPECT_EQ(schedule.at(at("2026-11-27T18:29:59.999999Z")), (RateCap{5, end}));
  EXPECT_EQ(schedule.at(end), (RateCap{10, at("2026-11-30T08:00:00Z")})) << "not at the weekend";
}

TEST_F(RateScheduleTest, AWindowAcrossMidnightBelongsToTheDayOnWhichItBegins) {
  const RateSchedule schedule(1, {{22 * 60, 6 * 60, 1 << 4, 0}});  // Friday night, without limit
  EXPECT_EQ(schedule.at(at("2026-11-27T03:00:00Z")), (RateCap{1, at("2026-11-27T22:00:00Z")})) << "Thursday night";
  EXPECT_EQ(schedule.at(at("2026-11-27T23:00:00Z")), (RateCap{0, at("2026-11-28T06:00:00Z")}));
  EXPECT_EQ(schedule.at(at("2026-11-28T05:59:59Z")), (RateCap{0, at("2026-11-28T06:00:00Z")}));
  EXPECT_EQ(schedule.at(at("2026-11-28T06:00:00Z")), (RateCap{1, at("2026-12-04T22:00:00Z")}));
  EXPECT_EQ(schedule.at(at("2026-11-28T23:00:00Z")).limit_mib_s, 1) << "Saturday night";
}

TEST_F(RateScheduleTest, SundayNightEndsOnMonday) {
  const RateSchedule schedule(1, {{22 * 60, 6 * 60, 1 << 6, 2}});
  EXPECT_EQ(schedule.limit_at(at("2026-11-30T05:00:00Z")), 2);
  EXPECT_EQ(schedule.limit_at(at("2026-11-30T22:00:00Z")), 1);
}

TEST_F(RateScheduleTest, TheFirstThatMatchesHolds) {
  const RateSchedule schedule(10, {{12 * 60, 13 * 60, kDaily, 7}, {8 * 60, 18 * 60, kDaily, 5}});
  EXPECT_EQ(schedule.at(at("2026-11-27T11:00:00Z")), (RateCap{5, at("2026-11-27T12:00:00Z")}));
  EXPECT_EQ(schedule.at(at("2026-11-27T12:30:00Z")), (RateCap{7, at("2026-11-27T13:00:00Z")}));
}

TEST_F(RateScheduleTest, WindowsThatChangeNothingAreNoEnd) {
  const RateSchedule always(10, {{0, 1440, kDaily, 5}});
  EXPECT_EQ(always.at(at("2026-11-27T11:00:00Z")), (RateCap{5, 0}));
  const RateSchedule same(5, {{8 * 60, 9 * 60, kDaily, 5}});
  EXPECT_EQ(same.at(at("2026-11-27T08:30:00Z")), (RateCap{5, 0}));
}

TEST_F(RateScheduleTest, TimesAreOfTheMachinesZone) {
  set("CET-1CEST,M3.5.0,M10.5.0/3");
  const RateSchedule schedule(10, {{8 * 60, 18 * 60, kDaily, 5}});
  EXPECT_EQ(schedule.at(at("2026-11-27T06:59:00Z")), (RateCap{10, at("2026-11-27T07:00:00Z")})) << "winter";
  EXPECT_EQ(schedule.at(at("2026-07-01T06:30:00Z")), (RateCap{5, at("2026-07-01T16:00:00Z")})) << "summer";
  // The clock goes forward in the night to 2026-03-29.
  EXPECT_EQ(schedule.at(at("2026-03-28T17:30:00Z")), (RateCap{10, at("2026-03-29T06:00:00Z")}));
  // And an hour that comes twice is in the window twice.
  const RateSchedule night(10, {{2 * 60, 3 * 60, kDaily, 5}});
  EXPECT_EQ(night.limit_at(at("2026-10-25T00:30:00Z")), 5);
  EXPECT_EQ(night.limit_at(at("2026-10-25T01:30:00Z")), 5);
  EXPECT_EQ(night.limit_at(at("2026-10-25T02:00:00Z")), 10);
}

TEST(RateScheduleText, TimesOfDay) {
  EXPECT_EQ(*parse_time_of_day("00:00", false), 0);
  EXPECT_EQ(*parse_time_of_day("23:59", true), 1439);
  EXPECT_EQ(*parse_time_of_day("24:00", true), 1440);
  for (const char* bad : {"24:00", "8:00", "08:60", "25:00", "0800", "08:00 ", "ab:cd", "", "-1:00", "08:0a"})
    EXPECT_FALSE(parse_time_of_day(bad, false)) << bad;
  for (const char* bad : {"24:01", "29:00"}) EXPECT_FALSE(parse_time_of_day(bad, true)) << bad;
}

TEST(RateScheduleText, Days) {
  EXPECT_EQ(*parse_days("daily"), 0x7f);
  EXPECT_EQ(*parse_days("mon-fri"), 0x1f);
  EXPECT_EQ(*parse_days("sat, sun"), 0x60);
  EXPECT_EQ(*parse_days("fri-mon,wed"), 0b1110101);
  EXPECT_EQ(*parse_days("tue-tue"), 0b10);
  for (const char* bad : {"", "monday", "mon-", "-fri", "mon,,tue", "mon-wed-fri", "Mon"})
    EXPECT_FALSE(parse_days(bad)) << bad;
}

}  // namespace
}  // namespace tidemark::agent
