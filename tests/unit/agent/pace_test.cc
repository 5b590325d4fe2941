#include "agent/pace.h"

#include <gtest/gtest.h>

namespace tidemark::agent {
namespace {

using namespace std::chrono_literals;

TEST(Pace, TheStageThatIsBusyMostOfTheTimeIsTheOneThatIsWaitedFor) {
  Pace pace;
  Pace::Time now{1h};
  (void)pace.take(now);
  pace.add(Stage::source, 300ms);
  pace.add(Stage::cpu, 400ms);
  pace.add(Stage::network, 500ms);
  pace.add(Stage::network, 200ms);
  EXPECT_EQ(pace.take(now += 1s), Stage::network);
  pace.add(Stage::source, 300ms);
  pace.add(Stage::cpu, 400ms);
  EXPECT_EQ(pace.take(now += 1s), std::nullopt) << "nothing held anything up";
  EXPECT_EQ(pace.take(now += 1s), std::nullopt) << "what was told is not told again";
}

TEST(Pace, WhatLastsIsToldWhileItLasts) {
  Pace pace;
  Pace::Time now{1h};
  (void)pace.take(now);
  Pace::Timer timer(pace, Stage::server, now + 100ms);
  EXPECT_EQ(pace.take(now += 1s), Stage::server);
  EXPECT_EQ(pace.take(now += 1s), Stage::server);
  timer.end(now + 100ms);
  EXPECT_EQ(pace.take(now += 1s), std::nullopt);
}

TEST(Pace, EveryStageHasANameACauseAndARemedy) {
  for (const Stage stage :
       {Stage::source, Stage::cpu, Stage::rate_limit, Stage::network, Stage::server, Stage::staging}) {
    EXPECT_FALSE(to_string(stage).empty());
    EXPECT_FALSE(cause_of(stage).empty());
    EXPECT_FALSE(remedy_for(stage).empty());
  }
}

constexpr auto kWindow = CompressionLevel::kWindowBytes;

TEST(CompressionLevel, GoesUpWhileTheWayIsSlowerAndDownWhileTheProcessorIs) {
  CompressionLevel level(std::nullopt);
  EXPECT_EQ(level.level(), 1);
  for (int i = 0; i < 3; ++i) level.account(kWindow, 100ms, 300ms);
  EXPECT_EQ(level.level(), 4);
  level.account(kWindow, 200ms, 100ms);
  EXPECT_EQ(level.level(), 4) << "neither waits much for the other";
  for (int i = 0; i < 30; ++i) level.account(kWindow, 100ms, 300ms);
  EXPECT_EQ(level.level(), CompressionLevel::kMost);
  for (int i = 0; i < 30; ++i) level.account(kWindow, 300ms, 1ms);
  EXPECT_EQ(level.level(), CompressionLevel::kLeast);
}

TEST(CompressionLevel, ALittleDataAddsUp) {
  CompressionLevel level(std::nullopt);
  for (int i = 0; i < 7; ++i) level.account(kWindow / 8, 1ms, 10ms);
  EXPECT_EQ(level.level(), 1);
  level.account(kWindow / 8, 1ms, 10ms);
  EXPECT_EQ(level.level(), 2);
}

TEST(CompressionLevel, AFixedOneStays) {
  CompressionLevel level(3);
  for (int i = 0; i < 9; ++i) level.account(kWindow, 1ms, 300ms);
  EXPECT_EQ(level.level(), 3);
}

}  // namespace
}  // namespace tidemark::agent
