// Growth curves of many machines on one file system, played without one.
#include "server/watermark.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "base/units.h"
#include "server/quota.h"

namespace tidemark::server {
namespace {

using Hold = Watermark::Hold;
using Level = Watermark::Level;

MachineId id_of(unsigned number) {
  std::array<std::byte, MachineId::kSize> bytes{};
  bytes[0] = static_cast<std::byte>(number);
  bytes[1] = std::byte{1};
  return MachineId(bytes);
}

// A file system that machines fill, each as fast as it wants and as it may.
struct Play {
  explicit Play(std::uint64_t size, double used, Watermark::Marks marks = {}) : mark(marks), total(size) {
    filled = used * static_cast<double>(size);
  }
  void add(unsigned number, double rate) { wants[number] = rate; }
  void run(int seconds, double freed_per_second = 0) {
    for (int second = 0; second < seconds; ++second) {
      now += std::chrono::seconds(1);
      std::vector<Watermark::Machine> machines;
      for (const auto& [number, rate] : wants) {
        const auto decision = mark.decision(id_of(number));
        double goes = rate;
        if (decision.hold == Hold::slowed) goes = std::min(goes, static_cast<double>(decision.rate));
        if (decision.hold == Hold::paused) goes = 0;
        goes = std::max(0.0, std::min(goes, static_cast<double>(total) - filled));
        stored[number] += goes;
        filled += goes;
        machines.push_back({id_of(number), static_cast<std::uint64_t>(stored[number])});
      }
      filled = std::max(0.0, filled - freed_per_second);
      mark.note(now, machines);
      mark.decide(now, total, total - static_cast<std::uint64_t>(filled));
      for (const auto& [number, rate] : wants) {
        const Hold hold = mark.decision(id_of(number)).hold;
        if (hold != before[number]) ++changes[number];
        before[number] = hold;
      }
    }
  }
  Hold hold(unsigned number) const { return mark.decision(id_of(number)).hold; }
  double used() const { return filled / static_cast<double>(total); }

  Watermark mark;
  std::uint64_t total;
  double filled = 0;
  Watermark::Time now{std::chrono::hours(1)};
  std::map<unsigned, double> wants, stored;
  std::map<unsigned, Hold> before;
  std::map<unsigned, int> changes;
};

constexpr double kMiB = 1 << 20;

TEST(Watermark, BelowTheHighMarkNobodyIsHeld) {
  Play play(1_TiB, 0.5);
  play.add(1, 500 * kMiB);
  play.add(2, kMiB);
  play.run(300);
  EXPECT_EQ(play.mark.level(), Level::low);
  EXPECT_EQ(play.hold(1), Hold::none);
  EXPECT_EQ(play.changes[1] + play.changes[2], 0);
}

TEST(Watermark, AboveItTheFastestAreSlowedAndTheOthersGoOn) {
  Play play(1_TiB, 0.9);
  play.add(1, 200 * kMiB);
  play.add(2, 100 * kMiB);
  play.add(3, kMiB);
  play.add(4, 0);
  play.run(120);
  EXPECT_EQ(play.mark.level(), Level::high);
  EXPECT_EQ(play.hold(1), Hold::slowed);
  EXPECT_EQ(play.hold(2), Hold::slowed);
  EXPECT_EQ(play.mark.decision(id_of(1)).rate, play.mark.decision(id_of(2)).rate) << "one rate for all";
  EXPECT_LT(play.mark.decision(id_of(1)).rate, 20 * kMiB);
  EXPECT_EQ(play.hold(3), Hold::none);
  EXPECT_EQ(play.hold(4), Hold::none);
  EXPECT_EQ(play.mark.slowed(), 2u);
}

TEST(Watermark, WhoeverStoresLittleEnoughForAllIsNotSlowed) {
  Play play(1_TiB, 0.9);
  for (unsigned number = 1; number <= 10; ++number) play.add(number, kMiB);
  play.run(600);
  EXPECT_EQ(play.mark.level(), Level::high);
  EXPECT_EQ(play.mark.slowed(), 0u) << "50 GiB are left for half an hour, and 18 are wanted";
}

TEST(Watermark, TheFullMarkIsApproachedAndNotRunInto) {
  Play play(1_TiB, 0.84);
  for (unsigned number = 1; number <= 8; ++number) play.add(number, 40 * kMiB * number);
  play.add(9, 8 * 1024);
  play.run(2 * 3600);
  EXPECT_LT(play.used(), 0.951);
  EXPECT_GT(play.used(), 0.93) << "what is there is used";
  EXPECT_EQ(play.hold(9), Hold::none) << "a small machine goes on longest";
  EXPECT_EQ(play.changes[9], 0);
  for (unsigned number = 1; number <= 8; ++number)
    EXPECT_LE(play.changes[number], 3) << "machine " << number << " is not let go and caught again and again";
  const double least = std::min_element(play.stored.begin(), std::prev(play.stored.end()), [](auto& a, auto& b) {
                         return a.second < b.second;
                       })->second;
  EXPECT_LT(play.stored[8], 3 * least) << "slowed ones share alike, however much each wants";
}

TEST(Watermark, AboveTheFullMarkTheFastestArePausedAndResumeByThemselves) {
  Play play(100_GiB, 0.949);
  play.add(1, 50 * kMiB);
  play.add(2, 8 * 1024);
  play.run(5);
  play.filled = 0.96 * static_cast<double>(play.total);  // something else took it
  play.run(60);
  EXPECT_EQ(play.mark.level(), Level::full);
  EXPECT_EQ(play.hold(1), Hold::paused);
  EXPECT_EQ(play.hold(2), Hold::none);
  const double stood = play.stored[1];
  play.run(600);
  EXPECT_EQ(play.stored[1], stood) << "it stays so, though it stores nothing any more";
  play.filled = 0.94 * static_cast<double>(play.total);
  play.run(5);
  EXPECT_EQ(play.hold(1), Hold::paused) << "just below the mark is not below it";
  play.filled = 0.92 * static_cast<double>(play.total);
  play.run(5);
  EXPECT_EQ(play.hold(1), Hold::slowed) << "as fast as before would be too fast again";
  play.filled = 0.5 * static_cast<double>(play.total);
  play.run(5);
  EXPECT_EQ(play.hold(1), Hold::none);
  EXPECT_EQ(play.mark.level(), Level::low);
}

TEST(Watermark, TheMarksAreLeftOnlySomewhatBelowThem) {
  Play play(100_GiB, 0.86);
  play.add(1, 100 * kMiB);
  play.run(30);
  ASSERT_EQ(play.hold(1), Hold::slowed);
  const int before = play.changes[1];
  for (int turn = 0; turn < 50; ++turn) {
    play.filled = (turn % 2 == 0 ? 0.845 : 0.855) * static_cast<double>(play.total);
    play.run(1);
  }
  EXPECT_EQ(play.changes[1], before);
  EXPECT_EQ(play.mark.level(), Level::high);
  play.filled = 0.82 * static_cast<double>(play.total);
  play.run(1);
  EXPECT_EQ(play.mark.level(), Level::low);
}

TEST(Watermark, PruningThatKeepsUpSettlesWithoutOscillation) {
  Play play(200_GiB, 0.84);
  play.add(1, 60 * kMiB);
  play.add(2, 20 * kMiB);
  play.run(4 * 3600, 10 * kMiB);
  EXPECT_LT(play.used(), 0.95);
  EXPECT_LE(play.changes[1], 2);
  EXPECT_LE(play.changes[2], 4);
  const double stored = play.stored[1] + play.stored[2];
  play.run(600, 10 * kMiB);
  const double rate = (play.stored[1] + play.stored[2] - stored) / 600;
  EXPECT_NEAR(rate, 10 * kMiB, 2 * kMiB) << "as much comes as goes";
}

TEST(Watermark, AMachineThatCalmsDownIsLetGo) {
  Play play(1_TiB, 0.9);
  play.add(1, 300 * kMiB);
  play.run(60);
  ASSERT_EQ(play.hold(1), Hold::slowed);
  play.wants[1] = 0;
  play.run(1800);
  EXPECT_EQ(play.hold(1), Hold::none);
}

TEST(Watermark, MarksOfOneHoldNobody) {
  Play play(100_GiB, 0.99, {.high = 1, .full = 1});
  play.add(1, 500 * kMiB);
  play.run(60);
  EXPECT_EQ(play.used(), 1.0);
  EXPECT_EQ(play.changes[1], 0);
}

TEST(Watermark, MachinesThatAreGoneDoNotCount) {
  Play play(1_TiB, 0.94);
  play.add(1, 500 * kMiB);
  play.run(30);
  ASSERT_EQ(play.mark.slowed(), 1u);
  play.wants.erase(1);
  play.add(2, kMiB);
  play.run(90);
  EXPECT_EQ(play.mark.slowed(), 0u);
  EXPECT_EQ(play.hold(1), Hold::none);
}

TEST(Quota, WarnsAndFillsAndRecoversWithHysteresis) {
  QuotaGate gate;
  EXPECT_EQ(gate.judge(1000, 0), QuotaState::none);
  EXPECT_EQ(gate.judge(89'000, 100'000), QuotaState::ok);
  EXPECT_EQ(gate.judge(90'000, 100'000), QuotaState::warning);
  EXPECT_EQ(gate.judge(88'500, 100'000), QuotaState::warning);
  EXPECT_EQ(gate.judge(87'000, 100'000), QuotaState::ok);
  EXPECT_EQ(gate.judge(99'999, 100'000), QuotaState::warning);
  EXPECT_EQ(gate.judge(100'000, 100'000), QuotaState::full);
  EXPECT_EQ(gate.judge(98'500, 100'000), QuotaState::full);
  EXPECT_EQ(gate.judge(97'900, 100'000), QuotaState::warning);
  EXPECT_EQ(gate.judge(100'000, 100'000), QuotaState::full);
  EXPECT_EQ(gate.judge(100'000, 101'000), QuotaState::warning) << "a raised quota lets it go on at once";
  EXPECT_EQ(gate.judge(101'001, 101'000), QuotaState::full);
  EXPECT_EQ(gate.judge(500'000, 100'000), QuotaState::full);
  EXPECT_EQ(gate.judge(500'000, 0), QuotaState::none);
  EXPECT_EQ(gate.judge(kQuotaMax, kQuotaMax), QuotaState::full);
}

}  // namespace
}  // namespace tidemark::server
