#include "agent/point_request.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

class PointRequestTest : public testing::Test {
 protected:
  PointRequestTest() { EXPECT_TRUE(dir_.create()); }
  PointRequest request(const std::string& id) const {
    return {.id = id, .agent = ::getpid(), .application = true, .final = true, .timeout = std::chrono::seconds(60)};
  }
  TempDir temp_;
  StateDir dir_{temp_ / "state"};
  ManualClock clock_{1'000'000};
  PointRequests agent_{dir_, clock_};
};

TEST_F(PointRequestTest, IsSeenAndAnsweredOnce) {
  EXPECT_EQ(agent_.current(), nullptr);
  auto asker = PointAsker::start(dir_);
  ASSERT_TRUE(asker) << asker.error().message();
  ASSERT_TRUE(asker->ask(request("a")));
  ASSERT_NE(agent_.current(), nullptr);
  EXPECT_TRUE(agent_.current()->application);
  EXPECT_FALSE(*asker->answer("a"));
  PointAnswer answer;
  answer.epoch = EpochNumber(5);
  answer.time_us = 77;
  answer.consistency = "application";
  answer.held_seconds = 0.5;
  answer.final = true;
  answer.post_hooks_failure = "\xff not UTF-8";
  agent_.answer(answer);
  EXPECT_EQ(agent_.current(), nullptr);
  const auto got = asker->answer("a");
  ASSERT_TRUE(got && *got);
  EXPECT_FALSE((*got)->error);
  EXPECT_EQ((*got)->epoch.value(), 5U);
  EXPECT_EQ((*got)->consistency, "application");
  EXPECT_EQ((*got)->held_seconds, 0.5);
  EXPECT_TRUE((*got)->final);
  EXPECT_FALSE(*asker->answer("a")) << "it was taken away";
}

TEST_F(PointRequestTest, RefusalsKeepTheirWords) {
  auto asker = *PointAsker::start(dir_);
  ASSERT_TRUE(asker.ask(request("a")));
  const Error why{Code::unavailable, "host:1", "not connected", "wait"};
  agent_.refuse(why);
  const auto got = asker.answer("a");
  ASSERT_TRUE(got && *got);
  EXPECT_EQ((*got)->error, why);
  EXPECT_FALSE((*got)->final) << "it goes on protecting";
  agent_.refuse(why);
  EXPECT_FALSE(*asker.answer("a")) << "nobody asks";
}

TEST_F(PointRequestTest, CanBeTakenBack) {
  auto asker = *PointAsker::start(dir_);
  ASSERT_TRUE(asker.ask(request("a")));
  ASSERT_NE(agent_.current(), nullptr);
  asker.take_back();
  EXPECT_EQ(agent_.current(), nullptr);
}

TEST_F(PointRequestTest, OneOfAnEarlierAgentIsNotServed) {
  auto asker = *PointAsker::start(dir_);
  PointRequest other = request("a");
  other.agent = ::getpid() + 1;
  ASSERT_TRUE(asker.ask(other));
  EXPECT_EQ(agent_.current(), nullptr);
  ASSERT_TRUE(asker.ask(request("b")));
  agent_.drop_stale();
  EXPECT_EQ(agent_.current(), nullptr);
}

TEST_F(PointRequestTest, OneWhoseAskerIsGoneIsDroppedAfterItsTime) {
  {
    auto asker = *PointAsker::start(dir_);
    ASSERT_TRUE(asker.ask(request("a")));
  }
  ASSERT_NE(agent_.current(), nullptr);
  clock_.advance(std::chrono::seconds(59));
  EXPECT_NE(agent_.current(), nullptr);
  clock_.advance(std::chrono::seconds(1));
  EXPECT_EQ(agent_.current(), nullptr);
  // Its answer is not the next one's.
  auto next = *PointAsker::start(dir_);
  EXPECT_FALSE(*next.answer("a"));
}

TEST_F(PointRequestTest, DamageIsIgnored) {
  for (const char* text : {"", "{", "[]", R"({"id": 1})", R"({"id": "a", "agent": "x"})"}) {
    temp_.write("state/point.request", text);
    EXPECT_EQ(agent_.current(), nullptr) << text;
  }
  auto asker = *PointAsker::start(dir_);
  temp_.write("state/point.answer", "{");
  EXPECT_EQ(asker.answer("a").error().code, Code::corrupt);
}

TEST_F(PointRequestTest, OneAsksAtATime) {
  const auto first = PointAsker::start(dir_);
  ASSERT_TRUE(first);
  EXPECT_EQ(PointAsker::start(dir_).error().code, Code::busy);
}

}  // namespace
}  // namespace tidemark::agent
