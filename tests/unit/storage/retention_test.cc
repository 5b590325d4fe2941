#include "storage/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/random.h"

namespace tidemark::storage {
namespace {

using std::chrono::seconds;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr WallMicros kSecond = 1'000'000, kHour = 3600 * kSecond, kDay = 24 * kHour;
constexpr WallMicros kStart = 1'790'000'000 * kSecond;

MachineId machine(std::uint8_t n) {
  std::array<std::byte, MachineId::kSize> bytes{};
  bytes[0] = std::byte{n};
  return MachineId(bytes);
}

class ClockTest : public testing::Test {
 protected:
  ManualClock system{kStart};
  RetentionClock clock{std::nullopt, system.wall_us(), system.monotonic()};
  // Second by second would be slow over days.
  bool pass(WallMicros time, WallMicros step = 60 * kSecond) {
    bool leapt = false;
    for (WallMicros done = 0; done < time; done += step) {
      system.advance(std::chrono::microseconds(step));
      leapt = clock.observe(system.wall_us(), system.monotonic()) || leapt;
    }
    return leapt;
  }
};

TEST_F(ClockTest, ASteadyClockIsFollowed) {
  EXPECT_FALSE(pass(3 * kDay));
  EXPECT_EQ(clock.now_us(), kStart + 3 * kDay);
  system.jump_wall(seconds(200));  // NTP
  pass(60 * kSecond);
  EXPECT_EQ(clock.now_us(), system.wall_us());
  EXPECT_FALSE(clock.held());
}

TEST_F(ClockTest, ALeapOfYearsIsNotFollowedForADay) {
  system.jump_wall(std::chrono::hours(24 * 3650));
  pass(kHour);
  EXPECT_EQ(clock.now_us(), kStart + kHour) << "it goes on at its own pace";
  ASSERT_TRUE(clock.held());
  EXPECT_EQ(clock.held()->wall_us, system.wall_us());
  EXPECT_NEAR(static_cast<double>(clock.held()->believed_us - system.wall_us()), 23.0 * kHour, 120.0 * kSecond);
  system.jump_wall(-std::chrono::hours(24 * 3650));  // set right
  pass(60 * kSecond);
  EXPECT_FALSE(clock.held());
  EXPECT_EQ(clock.now_us(), system.wall_us());
}

TEST_F(ClockTest, ALeapIsBelievedAfterAsMuchSteadyTimeAsItIsLong) {
  system.jump_wall(std::chrono::hours(2));
  EXPECT_FALSE(pass(kHour));
  EXPECT_EQ(clock.now_us(), kStart + kHour);
  EXPECT_TRUE(pass(kHour + 120 * kSecond));
  EXPECT_EQ(clock.now_us(), system.wall_us());
  EXPECT_FALSE(clock.held());
  system.jump_wall(std::chrono::hours(24 * 365));
  EXPECT_FALSE(pass(23 * kHour));
  EXPECT_TRUE(pass(2 * kHour)) << "a day at most";
}

TEST_F(ClockTest, OneThatHoldsBackGoesBackOnlyWhenAStepBackHasLasted) {
  RetentionClock holding(std::nullopt, system.wall_us(), system.monotonic(), RetentionClock::Back::hold);
  WallMicros last = holding.now_us();
  const auto go = [&](std::chrono::seconds time) {
    bool believed = false, never_back = true;
    for (; time.count() > 0; time -= seconds(60)) {
      system.advance(seconds(60));
      believed = holding.observe(system.wall_us(), system.monotonic()) || believed;
      never_back = never_back && (believed || holding.now_us() >= last);
      last = holding.now_us();
    }
    EXPECT_TRUE(never_back);
    return believed;
  };
  for (int i = 0; i < 100; ++i) {  // by minutes: it stands still over them
    system.jump_wall(seconds(i % 2 == 0 ? -240 : 240));
    EXPECT_FALSE(go(seconds(60)));
  }
  EXPECT_EQ(holding.now_us(), kStart + 100 * 60 * kSecond);
  system.jump_wall(-std::chrono::hours(3));
  EXPECT_FALSE(go(std::chrono::hours(2)));
  EXPECT_EQ(holding.now_us(), system.wall_us() + 3 * kHour) << "at its own pace";
  EXPECT_EQ(holding.now_us(system.monotonic() + seconds(30)), system.wall_us() + 3 * kHour + 30 * kSecond);
  EXPECT_TRUE(go(std::chrono::hours(2)));
  EXPECT_EQ(holding.now_us(), system.wall_us());
}

TEST_F(ClockTest, AClockThatIsSetToAndFroIsNeverBelieved) {
  for (int i = 0; i < 40; ++i) {
    system.jump_wall(std::chrono::hours(i % 2 == 0 ? 1000 : -900));
    pass(20 * kHour);
  }
  // Ahead by 2,000 hours by now, in steps; it followed each step back, and none ahead.
  EXPECT_LE(clock.now_us(), kStart + 40 * 20 * kHour);
}

TEST_F(ClockTest, AStepBackIsFollowedAtOnce) {
  system.jump_wall(-std::chrono::hours(24 * 400));
  pass(60 * kSecond);
  EXPECT_EQ(clock.now_us(), system.wall_us());
  system.jump_wall(std::chrono::hours(24 * 400));
  EXPECT_FALSE(pass(kHour));
  EXPECT_LT(clock.now_us(), kStart - 300 * kDay) << "setting it right is a step ahead";
}

TEST(RetentionClock, AfterAStartItBeginsWhereTheStoreEnded) {
  const RetentionClock::Time zero{};
  EXPECT_EQ(RetentionClock(kStart, kStart + 200 * kSecond, zero).now_us(), kStart + 200 * kSecond);
  EXPECT_EQ(RetentionClock(kStart, kStart - kDay, zero).now_us(), kStart - kDay);
  RetentionClock away(kStart, kStart + 3 * kHour, zero);
  EXPECT_EQ(away.now_us(), kStart);
  EXPECT_FALSE(away.observe(kStart + 5 * kHour, zero + std::chrono::hours(2)));
  EXPECT_TRUE(away.observe(kStart + 6 * kHour, zero + std::chrono::hours(3)));
  EXPECT_EQ(away.now_us(), kStart + 6 * kHour);
}

class RetentionTest : public testing::Test {
 protected:
  ManualClock system{kStart};
  Retention retention{RetentionClock(std::nullopt, system.wall_us(), system.monotonic())};
  void pass(seconds time) {
    system.advance(time);
    retention.observe(system.wall_us(), system.monotonic());
  }
};

TEST_F(RetentionTest, AMachineIsLookedAtOnceItsEpochsGathered) {
  retention.record_changed(machine(1), {});
  EXPECT_THAT(retention.due(10), ElementsAre(machine(1))) << "each one at the start";
  retention.decided(machine(1), std::nullopt);
  EXPECT_EQ(retention.waiting(), 0u) << "an idle machine costs nothing";
  for (int i = 0; i < 599; ++i) {
    retention.epoch_committed(machine(1));
    pass(seconds(1));
    ASSERT_THAT(retention.due(10), IsEmpty()) << i;
  }
  pass(seconds(1));
  EXPECT_THAT(retention.due(10), ElementsAre(machine(1)));
  retention.epoch_committed(machine(1));
  pass(seconds(3600));
  EXPECT_THAT(retention.due(10), IsEmpty()) << "not while it is being looked at";
  retention.decided(machine(1), std::nullopt);
  pass(seconds(600));
  EXPECT_THAT(retention.due(10), ElementsAre(machine(1))) << "but then";
}

TEST_F(RetentionTest, AChangedRecordIsLookedAtSoonAndItsTimesAreKept) {
  retention.record_changed(machine(1), {});
  EXPECT_THAT(retention.due(10), SizeIs(1));
  retention.record_changed(machine(1), {});
  retention.decided(machine(1), std::nullopt);
  EXPECT_THAT(retention.due(10), SizeIs(1)) << "it changed during the look";
  retention.decided(machine(1), kStart + kHour);
  pass(seconds(3599));
  EXPECT_THAT(retention.due(10), IsEmpty());
  pass(seconds(1));
  EXPECT_THAT(retention.due(10), SizeIs(1));
  retention.decided(machine(1), kStart);
  EXPECT_THAT(retention.due(10), IsEmpty()) << "what could not be done is not tried all the time";
  pass(seconds(1));
  EXPECT_THAT(retention.due(10), SizeIs(1));
  retention.forget(machine(1));
  retention.decided(machine(1), kStart);
  EXPECT_EQ(retention.waiting(), 0u);
}

TEST_F(RetentionTest, ATimeThatALeapBringsIsKeptWhenTheLeapIsBelieved) {
  retention.record_changed(machine(1), {});
  EXPECT_THAT(retention.due(10), SizeIs(1));
  retention.decided(machine(1), kStart + 30 * kDay);
  system.jump_wall(std::chrono::hours(24 * 31));
  for (int i = 0; i < 23; ++i) {
    pass(seconds(3600));
    ASSERT_THAT(retention.due(10), IsEmpty());
  }
  pass(seconds(2 * 3600));
  pass(seconds(2 * 3600));
  EXPECT_THAT(retention.due(10), SizeIs(1));
}

TEST_F(RetentionTest, WorkIsBoundedAndNobodyStarves) {
  constexpr int kMachines = 200;
  for (int i = 0; i < kMachines; ++i) retention.record_changed(machine(static_cast<std::uint8_t>(i)), {});
  std::map<MachineId, int> looked;
  for (int i = 0; i < 20; ++i) {
    const auto some = retention.due(10);
    ASSERT_LE(some.size(), 10u);
    for (const MachineId& id : some) {
      ++looked[id];
      retention.decided(id, kStart);
    }
  }
  EXPECT_THAT(looked, SizeIs(kMachines));
  for (const auto& [id, times] : looked) EXPECT_EQ(times, 1);
}

TEST_F(RetentionTest, ASixthOfTheDenseWindowMayGather) {
  EXPECT_EQ(Retention::look_every(default_ladder()), seconds(600));
  EXPECT_EQ(Retention::look_every(ladder_of_60()), seconds(100));
  EXPECT_EQ(Retention::look_every({.dense_s = 5, .rungs = {{10, 60}}}), seconds(1));
  EXPECT_EQ(Retention::look_every({.dense_s = 0, .rungs = {{3600, 7200}, {60, 120}}}), seconds(10));
  EXPECT_EQ(Retention::look_every({.dense_s = 86'400, .rungs = {}}), seconds(600));
}

// Days of a machine that makes a point every ten seconds, while the clock leaps by up to a year, to and fro, every few
// hours or every few minutes: a leap that lasted until it was believed costs one hourly point at most, at the far end;
// the others cost none.
TEST_F(RetentionTest, OnlyLeapsOfTheClockThatLastCostAPointARung) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    ManualClock clock(kStart);
    RetentionClock trusted(std::nullopt, clock.wall_us(), clock.monotonic());
    RetentionClock of_rungs(std::nullopt, clock.wall_us(), clock.monotonic(), RetentionClock::Back::hold);
    const double often = seed % 2 == 0 ? 0.0005 : 0.02;
    pb::MachineRecord record;
    *record.mutable_ladder() = to_record({.dense_s = 600, .rungs = {{600, 3600}, {3600, 86'400}}});
    struct Made {
      WallMicros real_us;
      LadderEpoch epoch;
    };
    std::vector<Made> left;
    std::int64_t off_h = 0;
    WallMicros real = 0;
    std::vector<WallMicros> believed;
    for (std::uint64_t number = 1; number <= 20'000; ++number) {
      clock.advance(seconds(10));
      real += 10 * kSecond;
      if (random.chance(often)) {
        const std::int64_t by = off_h != 0 ? -off_h : static_cast<std::int64_t>(random.below(20'000)) - 10'000;
        off_h += by;
        clock.jump_wall(std::chrono::hours(by));
      }
      // Points come before and after the clocks look at the time.
      const bool before = random.chance(0.5);
      const auto make = [&] {
        left.push_back(
            {real, {EpochNumber(number), clock.wall_us(), true, of_rungs.now_us(clock.monotonic()) - clock.wall_us()}});
      };
      if (before) make();
      trusted.observe(clock.wall_us(), clock.monotonic());
      if (of_rungs.observe(clock.wall_us(), clock.monotonic())) believed.push_back(real);
      if (!before) make();
      if (number % 50 != 0) continue;
      std::vector<LadderEpoch> epochs;
      for (const Made& made : left) epochs.push_back(made.epoch);
      const auto decision = decide(epochs, record, {}, trusted.now_us());
      std::set<EpochNumber> gone(decision.drop.begin(), decision.drop.end());
      std::erase_if(left, [&](const Made& made) { return gone.contains(made.epoch.number); });
      // For each of these hours there is a point, in real time, as far as the machine goes back.
      const auto lately =
          std::count_if(believed.begin(), believed.end(), [&](WallMicros at) { return real - at < kDay; });
      for (WallMicros hour = 1; hour <= 22 - lately && hour * kHour <= real; ++hour) {
        const auto found = std::find_if(left.begin(), left.end(), [&](const Made& made) {
          return made.real_us > real - (hour + 1) * kHour && made.real_us <= real - (hour - 1) * kHour;
        });
        ASSERT_NE(found, left.end()) << "nothing of " << hour << " hours ago";
      }
    }
  }
}

}  // namespace
}  // namespace tidemark::storage
