#include "agent/agenda.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

using namespace std::chrono_literals;

class AgendaTest : public testing::Test {
 protected:
  AgendaTest() {
    EXPECT_TRUE(dir_.create());
    clock_.advance(100h);
  }
  Agenda& begin(bool once = false, WallMicros application_point_us = 0) {
    agenda_.emplace(config_, dir_, once, clock_);
    agenda_->begin(application_point_us);
    agenda_->at_once();
    return *agenda_;
  }
  std::chrono::milliseconds until(Agenda::Time time) const {
    return std::chrono::duration_cast<std::chrono::milliseconds>(time - clock_.monotonic());
  }
  static EpochReport report(bool point, double seconds = 0.2) {
    EpochReport report;
    report.point = point;
    report.seconds = seconds;
    report.freeze_would_help = !point;
    report.reason = point ? "" : "writes outran it";
    return report;
  }
  void ask(const std::string& id, bool application = false, bool final = false) {
    if (!asker_) asker_.emplace(*PointAsker::start(dir_));
    ASSERT_TRUE(
        asker_->ask({.id = id, .agent = ::getpid(), .application = application, .final = final, .timeout = 1h}));
  }

  TempDir temp_;
  StateDir dir_{temp_ / "state"};
  ManualClock clock_{1'000'000'000};
  Config config_;
  std::optional<Agenda> agenda_;
  std::optional<PointAsker> asker_;
};

TEST_F(AgendaTest, AComparisonRestsAsLongAsItTookAndMarksDoNot) {
  Agenda& agenda = begin();
  agenda.note(report(true, 0.25), true);
  EXPECT_EQ(until(agenda.next_epoch()), 750ms) << "one a second";
  agenda.note(report(true, 25), true);
  EXPECT_EQ(until(agenda.next_epoch()), 0ms);
  agenda.note(report(true, 1), false);
  EXPECT_EQ(until(agenda.next_epoch()), 9s) << "one in ten seconds";
  agenda.note(report(true, 25), false);
  EXPECT_EQ(until(agenda.next_epoch()), 25s);
  config_.interval = 3s;
  agenda.note(report(true, 1), true);
  EXPECT_EQ(until(agenda.next_epoch()), 2s);
}

TEST_F(AgendaTest, AFreezeIsForWhoHasNoPointForLongAndNotForMuchOfTheTime) {
  Agenda& agenda = begin();
  EXPECT_FALSE(agenda.take(true, {}).freeze);
  agenda.note(report(false), true);
  EXPECT_FALSE(agenda.take(true, {}).freeze) << "it may still come by itself";
  clock_.advance(30s);
  EXPECT_TRUE(agenda.take(true, {}).freeze);
  EXPECT_FALSE(agenda.take(false, {}).freeze) << "nobody knows how long a comparison takes";
  EXPECT_FALSE(agenda.take(false, config_.freeze_limit + 1ms).freeze) << "it takes longer than it may";
  EXPECT_TRUE(agenda.take(false, config_.freeze_limit).freeze);
  auto frozen = report(false);
  frozen.frozen_seconds = 2;
  agenda.note(frozen, true);
  clock_.advance(39s);
  EXPECT_FALSE(agenda.take(true, {}).freeze);
  clock_.advance(1s);
  EXPECT_TRUE(agenda.take(true, {}).freeze);
  agenda.note(report(true), true);
  EXPECT_FALSE(agenda.take(true, {}).freeze);
  config_.freeze = false;
  agenda.note(report(false), true);
  clock_.advance(1h);
  EXPECT_FALSE(agenda.take(true, {}).freeze);
}

TEST_F(AgendaTest, OnceAFreezeNeedNotWait) {
  Agenda& agenda = begin(true);
  agenda.note(report(false), false);
  EXPECT_TRUE(agenda.take(false, 1s).freeze);
  ask("a");
  EXPECT_FALSE(agenda.asked()) << "who asks, asks a run";
  EXPECT_TRUE(agenda.take(false, 1s).request.empty());
}

TEST_F(AgendaTest, WantOfPointsIsToldWhenAllWasTried) {
  Agenda& agenda = begin();
  auto failed = report(false);
  clock_.advance(29s);
  failed.wish.freeze = true;
  EXPECT_FALSE(agenda.without_a_point(failed, true));
  clock_.advance(4s);
  EXPECT_EQ(agenda.without_a_point(failed, true), 33s);
  failed.wish.freeze = false;
  EXPECT_FALSE(agenda.without_a_point(failed, true)) << "a freeze comes first";
  config_.freeze = false;
  EXPECT_EQ(agenda.without_a_point(failed, true), 33s);
  EXPECT_FALSE(agenda.without_a_point(failed, false)) << "files that somebody has open";
  EXPECT_FALSE(agenda.without_a_point(report(true), true));
}

TEST_F(AgendaTest, ApplicationPointsAreDueByTheirOwnClock) {
  config_.application_points_every = 1h;
  Agenda& agenda = begin(false, clock_.wall_us() - std::chrono::microseconds(50min).count());
  agenda.note(report(true), true);
  EXPECT_FALSE(agenda.take(true, {}).application);
  clock_.advance(10min);
  EXPECT_LE(until(agenda.next()), 0ms);
  const Wish wish = agenda.take(true, {});
  EXPECT_TRUE(wish.application);
  EXPECT_TRUE(wish.freeze) << "it is rare enough for that";
  // It failed before the hooks' turn came: next time, and not at once again and again.
  auto failed = report(false);
  agenda.note(failed, true);
  EXPECT_EQ(agenda.next(), agenda.next_epoch());
  EXPECT_TRUE(agenda.take(true, {}).application);
  auto made = report(true);
  made.hooks_ran = true;
  agenda.note(made, true);
  EXPECT_FALSE(agenda.take(true, {}).application);
  clock_.advance(1h);
  EXPECT_TRUE(agenda.take(true, {}).application);
  // A clock that was set back makes none wait for years.
  EXPECT_LE(until(begin(false, clock_.wall_us() + 1'000'000).next()), 0ms);
}

TEST_F(AgendaTest, WhoAsksIsServedAndTriedThreeTimes) {
  Agenda& agenda = begin();
  agenda.note(report(true), true);
  EXPECT_FALSE(agenda.asked());
  ask("a", true);
  ASSERT_TRUE(agenda.asked());
  const Wish wish = agenda.take(true, {});
  EXPECT_EQ(wish.request, "a");
  EXPECT_TRUE(wish.application && wish.own_epoch && wish.freeze);
  EXPECT_FALSE(agenda.answer_to(report(true), {})) << "an epoch that was made for nobody";
  auto made = report(true);
  made.wish = wish;
  made.epoch = EpochNumber(7);
  for (int i = 0; i < 2; ++i) {  // the hooks' turn did not come
    agenda.note(made, true);
    EXPECT_FALSE(agenda.answer_to(made, {}));
    EXPECT_EQ(until(agenda.next_epoch()), 0ms) << "at once";
    (void)agenda.take(true, {});
  }
  const auto answer = agenda.answer_to(made, {"10-app: exit 3"});
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->epoch.value(), 7U);
  EXPECT_NE(answer->hooks_failure, "");
  EXPECT_EQ(answer->post_hooks_failure, "10-app: exit 3");
  agenda.answer(*answer);
  EXPECT_FALSE(agenda.asked());

  ask("b");
  auto none = report(false);
  none.wish = agenda.take(true, {});
  EXPECT_EQ(none.wish.request, "b");
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(agenda.answer_to(none, {}));
  EXPECT_FALSE(agenda.asked()) << "refused after three tries";
  const auto refusal = asker_->answer("b");
  ASSERT_TRUE(refusal && *refusal && (*refusal)->error);
  EXPECT_NE((*refusal)->error->what.find("writes outran it"), std::string::npos);
}

TEST_F(AgendaTest, AFinalPointIsFinalWhenItIsWhatWasAskedFor) {
  Agenda& agenda = begin();
  ask("a", true, true);
  auto made = report(true);
  made.wish = agenda.take(true, {});
  made.hooks_ran = true;
  made.consistency = Consistency::crash;
  made.hooks_failure = "10-app: exit 3";
  auto answer = agenda.answer_to(made, {});
  ASSERT_TRUE(answer);
  EXPECT_FALSE(answer->final) << "the applications' last word is not in it";
  made.consistency = Consistency::application;
  answer = agenda.answer_to(made, {});
  ASSERT_TRUE(answer);
  EXPECT_TRUE(answer->final);
}

}  // namespace
}  // namespace tidemark::agent
