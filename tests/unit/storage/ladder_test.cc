#include "storage/ladder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/random.h"

namespace tidemark::storage {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr WallMicros kSecond = 1'000'000;
constexpr WallMicros kMinute = 60 * kSecond, kHour = 60 * kMinute, kDay = 24 * kHour;
constexpr WallMicros kStart = 1'790'000'000LL / 86'400 * kDay;  // a midnight in 2026

pb::MachineRecord with(const Ladder& ladder) {
  pb::MachineRecord record;
  *record.mutable_ladder() = to_record(ladder);
  return record;
}

void pin(pb::MachineRecord& record, std::uint64_t epoch, WallMicros until_us = 0) {
  auto* const added = record.add_pins();
  added->set_epoch(epoch);
  added->set_name("pin" + std::to_string(epoch));
  added->set_until_us(until_us);
}

void ask_removal(pb::MachineRecord& record, std::uint64_t epoch, WallMicros effective_us) {
  auto* const added = record.add_removals();
  added->set_epoch(epoch);
  added->set_effective_us(effective_us);
}

std::vector<std::uint64_t> numbers(const std::vector<EpochNumber>& epochs) {
  std::vector<std::uint64_t> list;
  for (const EpochNumber number : epochs) list.push_back(number.value());
  return list;
}

// A point every `step` from `from`, numbered from 1.
std::vector<LadderEpoch> points(WallMicros from, WallMicros step, std::size_t count) {
  std::vector<LadderEpoch> list;
  for (std::size_t i = 0; i < count; ++i)
    list.push_back({EpochNumber(i + 1), from + static_cast<WallMicros>(i) * step, true});
  return list;
}

std::vector<std::uint64_t> kept(const std::vector<LadderEpoch>& epochs, const pb::MachineRecord& record,
                                WallMicros now_us, const Guards& guards = {}) {
  return numbers(decide(epochs, record, guards, now_us).keep);
}

// What must stay of everything that ever was, said as plainly as can be; for arrivals that never go back.
std::set<std::uint64_t> model(const std::vector<LadderEpoch>& all, const Ladder& ladder, const Guards& guards,
                              const std::set<std::uint64_t>& pinned, WallMicros now_us) {
  std::set<std::uint64_t> stay;
  if (all.empty()) return stay;
  stay.insert(all.back().number.value());
  WallMicros newest_point_us = 0;
  for (const LadderEpoch& epoch : all)
    if (epoch.point) newest_point_us = epoch.arrival_us;
  for (const LadderEpoch& epoch : all) {
    const WallMicros to = std::min(now_us, epoch.point ? newest_point_us : all.back().arrival_us);
    if (to - epoch.arrival_us < static_cast<WallMicros>(ladder.dense_s) * kSecond) stay.insert(epoch.number.value());
    if (pinned.contains(epoch.number.value())) stay.insert(epoch.number.value());
  }
  for (const EpochNumber number : guards.in_use) stay.insert(number.value());
  if (guards.newest_verified) stay.insert(guards.newest_verified->value());
  for (const Rung& rung : ladder.rungs) {
    std::map<std::int64_t, std::uint64_t> first_of;  // bucket -> number
    for (const LadderEpoch& epoch : all)
      if (epoch.point)
        first_of.emplace(epoch.arrival_us / (static_cast<WallMicros>(rung.every_s) * kSecond), epoch.number.value());
    std::uint64_t count = 0;
    for (auto at = first_of.rbegin(); at != first_of.rend() && count < rung.points(); ++at, ++count)
      stay.insert(at->second);
  }
  for (auto at = all.rbegin(); at != all.rend(); ++at) {
    if (!at->point) continue;
    stay.insert(at->number.value());
    break;
  }
  return stay;
}

TEST(Ladder, TheDefaultKeepsAnHourThenTenMinutesThenHoursThenDays) {
  auto epochs = points(kStart, kMinute, 40 * 24 * 60);  // a point a minute for 40 days
  const WallMicros now = epochs.back().arrival_us;
  const auto decision = decide(epochs, {}, {}, now);
  EXPECT_THAT(decision.drop, testing::SizeIs(epochs.size() - decision.keep.size()));
  std::size_t dense = 0, tens = 0, hours = 0, days = 0;
  for (const auto number : decision.keep) {
    const WallMicros at = epochs[number.value() - 1].arrival_us;
    if (now - at < kHour) ++dense;
    if (at % (10 * kMinute) == 0 && now / (10 * kMinute) - at / (10 * kMinute) < 36) ++tens;
    if (at % kHour == 0 && now / kHour - at / kHour < 24) ++hours;
    if (at % kDay == 0) ++days;
  }
  EXPECT_EQ(dense, 60u);
  EXPECT_EQ(tens, 36u);
  EXPECT_EQ(hours, 24u);
  EXPECT_EQ(days, 30u);
  EXPECT_LT(decision.keep.size(), 60u + 36 + 24 + 30);
}

TEST(Ladder, ThePresetOfSixtyKeepsSixTwentyFourAndThirty) {
  auto epochs = points(kStart, kMinute, 40 * 24 * 60);
  const auto record = with(ladder_of_60());
  const auto holds = explain(epochs, record, {}, epochs.back().arrival_us);
  std::map<std::uint64_t, int> by_rung;
  for (const auto& of_one : holds)
    for (const Hold& hold : of_one)
      if (hold.kind == Hold::Kind::rung) ++by_rung[hold.every_s];
  EXPECT_THAT(by_rung, UnorderedElementsAre(std::pair(600, 6), std::pair(3600, 24), std::pair(86'400, 30)));
}

TEST(Ladder, ABucketIsOfUtcAndKeepsItsFirstPoint) {
  const auto record = with({.dense_s = 0, .rungs = {{3600, 3 * 3600}}});
  // 0:59:59, 1:00:00, 1:30, 2:10, 2:20, 3:05, 3:06
  std::vector<LadderEpoch> epochs;
  std::uint64_t number = 0;
  for (const WallMicros at :
       {59 * kMinute + 59 * kSecond, kHour, 90 * kMinute, 130 * kMinute, 140 * kMinute, 185 * kMinute, 186 * kMinute})
    epochs.push_back({EpochNumber(++number), kStart + at, true});
  EXPECT_THAT(kept(epochs, record, kStart + 200 * kMinute), ElementsAre(2, 4, 6, 7));
}

TEST(Ladder, AFuzzyEpochIsNeverAPointAndGoesWithTheDenseWindow) {
  const auto record = with({.dense_s = 60, .rungs = {{600, 3600}}});
  auto epochs = points(kStart, 20 * kSecond, 10);
  for (const std::size_t i : {0, 3, 8}) epochs[i].point = false;
  const WallMicros now = epochs.back().arrival_us;
  EXPECT_THAT(kept(epochs, record, now), ElementsAre(2, 8, 9, 10))
      << "1 is fuzzy, so 2 is the first point of its bucket; 9 is fuzzy and dense";
  epochs.push_back({EpochNumber(11), now + kDay, false});
  EXPECT_THAT(kept(epochs, record, now + kDay), ElementsAre(2, 8, 10, 11))
      << "fuzzy epochs age on by fuzzy ones, points only by points";
}

TEST(Ladder, AMachineThatDiedKeepsItsHistory) {
  const auto epochs = points(kStart, kMinute, 3 * 24 * 60);
  const WallMicros then = epochs.back().arrival_us;
  const auto before = decide(epochs, {}, {}, then);
  const auto after = decide(epochs, {}, {}, then + 3650 * kDay);
  EXPECT_EQ(before.keep, after.keep);
  EXPECT_EQ(after.next_due_us, std::nullopt) << "and it need not be looked at";
}

TEST(Ladder, AMachineThatComesBackAfterMonthsKeepsWhatItHad) {
  auto epochs = points(kStart, kHour, 30 * 24);
  const auto before = decide(epochs, {}, {}, epochs.back().arrival_us);
  const WallMicros back = epochs.back().arrival_us + 90 * kDay;
  epochs.push_back({EpochNumber(epochs.size() + 1), back, true});
  const auto after = decide(epochs, {}, {}, back);
  EXPECT_GE(after.keep.size(), before.keep.size() - 2) << "the new point takes one place in each full rung";
}

TEST(Ladder, AClockThatWentBackDropsNothing) {
  const auto record = with({.dense_s = 600, .rungs = {{600, 3600}, {3600, 86'400}}});
  const auto epochs = points(kStart, kMinute, 600);
  auto stay = decide(epochs, record, {}, epochs.back().arrival_us).keep;
  std::vector<LadderEpoch> left;
  for (const EpochNumber number : stay) left.push_back(epochs[number.value() - 1]);
  for (const WallMicros now : {kStart + 500 * kMinute, kStart, kStart - 100 * kDay, WallMicros(0)})
    EXPECT_THAT(decide(left, record, {}, now).drop, IsEmpty());
  // Points that come under the wrong clock make everything before them no older.
  left.push_back({EpochNumber(601), kStart - 100 * kDay, true});
  EXPECT_THAT(decide(left, record, {}, kStart - 100 * kDay).drop, IsEmpty());
}

TEST(Ladder, BucketsGoByTheClockOfTheRungs) {
  const auto record = with({.dense_s = 0, .rungs = {{600, 3600}}});
  auto epochs = points(kStart, kMinute, 60);
  const auto right = kept(epochs, record, kStart + kHour);
  EXPECT_THAT(right, ElementsAre(1, 11, 21, 31, 41, 51, 60));
  for (std::size_t i = 1; i < 59; i += 3) {  // the clock was wrong, now and then
    epochs[i].arrival_us += kDay;
    epochs[i].rung_offset_us = -kDay;
  }
  EXPECT_EQ(kept(epochs, record, kStart + kHour), right);
  // The newest one of a machine that is silent since does not make the others older as time passes.
  const auto dense = with({.dense_s = 600, .rungs = {}});
  epochs = points(kStart, kMinute, 60);
  epochs.back().arrival_us += kDay;
  epochs.back().rung_offset_us = -kDay;
  EXPECT_THAT(kept(epochs, dense, kStart + 20 * kHour), testing::SizeIs(10));
}

TEST(Ladder, PointsOfAClockThatWasAheadAgeOnceItIsRight) {
  const auto record = with({.dense_s = 600, .rungs = {{600, 3600}}});
  auto epochs = points(kStart + 3650 * kDay, kMinute, 10);
  for (std::uint64_t i = 11; i <= 40; ++i)
    epochs.push_back({EpochNumber(i), kStart + static_cast<WallMicros>(i) * kMinute, true});
  const auto stay = kept(epochs, record, kStart + 40 * kMinute);
  EXPECT_THAT(stay, testing::Contains(1)) << "the first of its bucket";
  EXPECT_THAT(stay, testing::Not(testing::Contains(5))) << "half an hour ago by the next point that can be trusted";
}

TEST(Ladder, PinsHoldUntilTheyEnd) {
  const auto epochs = points(kStart, kMinute, 120);
  auto record = with({.dense_s = 60, .rungs = {}});
  const WallMicros now = epochs.back().arrival_us;
  pin(record, 7);
  pin(record, 9, now + kHour);
  pin(record, 500);  // no such
  auto decision = decide(epochs, record, {}, now);
  EXPECT_THAT(numbers(decision.keep), ElementsAre(7, 9, 120));
  EXPECT_EQ(decision.next_due_us, now + kHour);
  EXPECT_THAT(kept(epochs, record, now + kHour), ElementsAre(7, 120));
  EXPECT_TRUE(tidy_retention(record, {}, now + kHour));
  EXPECT_EQ(record.pins_size(), 2);
  EXPECT_FALSE(tidy_retention(record, {}, now + kHour));
}

TEST(Ladder, WhatIsInUseOrNewestVerifiedStays) {
  const auto epochs = points(kStart, kMinute, 120);
  const auto record = with({.dense_s = 60, .rungs = {}});
  const Guards guards{.in_use = {EpochNumber(3), EpochNumber(4), EpochNumber(999)}, .newest_verified = EpochNumber(50)};
  EXPECT_THAT(kept(epochs, record, epochs.back().arrival_us, guards), ElementsAre(3, 4, 50, 120));
}

TEST(Ladder, NothingGoesBeforeItIsKnownWhichOneIsTheNewestVerified) {
  const auto epochs = points(kStart, kMinute, 120);
  const auto record = with({.dense_s = 60, .rungs = {}});
  const Decision decision =
      decide(epochs, record, {.in_use = {}, .newest_verified = {}, .unread = true}, epochs.back().arrival_us);
  EXPECT_EQ(decision.keep.size(), 120u);
  EXPECT_THAT(decision.drop, IsEmpty());
  EXPECT_TRUE(decision.waits_for_check);

  enum Known : std::uint8_t { unread, verified, was_verified, damaged };
  const auto guard = [](const std::vector<Known>& known) {
    std::vector<pb::EpochEntry> entries;
    for (const Known one : known) {
      pb::EpochEntry& entry = entries.emplace_back();
      entry.set_number(entries.size());
      entry.set_consistency(2);
      entry.set_verified(one == verified);
      entry.set_was_verified(one == was_verified);
      entry.set_damaged(one == damaged);
    }
    Guards guards;
    guard_newest_verified(guards, entries);
    return std::pair(guards.newest_verified.value_or(EpochNumber()).value(), guards.unread);
  };
  EXPECT_EQ(guard({verified, verified, damaged, unread}), std::pair(std::uint64_t{2}, false));
  EXPECT_EQ(guard({was_verified, was_verified, damaged, unread}), std::pair(std::uint64_t{2}, false));
  EXPECT_EQ(guard({unread, damaged}), std::pair(std::uint64_t{0}, true));
  EXPECT_EQ(guard({damaged, damaged}), std::pair(std::uint64_t{0}, false)) << "there is none to be kept";
  EXPECT_EQ(guard({}), std::pair(std::uint64_t{0}, false));
}

TEST(Ladder, ARemovalWaitsForItsTimeAndForWhoeverNeedsThePoint) {
  const auto epochs = points(kStart, kMinute, 10);
  pb::MachineRecord record;
  const WallMicros now = epochs.back().arrival_us;
  for (const std::uint64_t epoch : {1, 2, 3, 10}) ask_removal(record, epoch, now + kHour);
  ask_removal(record, 0, now + kHour);  // the machine: not decided here
  pin(record, 2);
  EXPECT_THAT(decide(epochs, record, {}, now).drop, IsEmpty());
  EXPECT_EQ(decide(epochs, record, {}, now).next_due_us, now + kHour);
  const Guards guards{.in_use = {EpochNumber(3)}, .newest_verified = {}};
  EXPECT_THAT(numbers(decide(epochs, record, guards, now + kHour).drop), ElementsAre(1))
      << "2 is pinned, 3 in use, 10 the newest";
  EXPECT_THAT(gone_removals(record, epochs), IsEmpty());
  EXPECT_FALSE(tidy_retention(record, {}, now));
  const auto gone = gone_removals(record, std::span(epochs).subspan(1));
  EXPECT_THAT(numbers(gone), ElementsAre(1));
  EXPECT_TRUE(tidy_retention(record, gone, now + kHour));
  EXPECT_EQ(record.removals_size(), 4);
  EXPECT_NE(machine_removal(record), nullptr);
}

TEST(Ladder, WhatOnlyWaitsForANewerOneToBeVerifiedIsLookedAtAgain) {
  const auto epochs = points(kStart, kMinute, 10);
  pb::MachineRecord record;
  const WallMicros now = epochs.back().arrival_us;
  ask_removal(record, 5, now);
  const Guards behind{.in_use = {}, .newest_verified = EpochNumber(5)};
  EXPECT_THAT(decide(epochs, record, behind, now).drop, IsEmpty());
  EXPECT_TRUE(decide(epochs, record, behind, now).waits_for_check);
  const Guards further{.in_use = {}, .newest_verified = EpochNumber(6)};
  EXPECT_THAT(numbers(decide(epochs, record, further, now).drop), ElementsAre(5));
  EXPECT_FALSE(decide(epochs, record, further, now).waits_for_check);
  pin(record, 5);
  EXPECT_FALSE(decide(epochs, record, behind, now).waits_for_check) << "it stays anyway";
}

TEST(Ladder, TheNextPointOfABucketTakesTheRemovedOnesPlace) {
  const auto epochs = points(kStart, kMinute, 100);
  auto record = with({.dense_s = 60, .rungs = {{86'400, 86'400}}});
  ask_removal(record, 1, kStart);
  EXPECT_THAT(kept(epochs, record, epochs.back().arrival_us), ElementsAre(2, 100));
}

TEST(Ladder, ANarrowerOneCountsOnlyWhenTheFormerOneIsOver) {
  const auto epochs = points(kStart, kMinute, 300);
  const WallMicros now = epochs.back().arrival_us;
  auto record = with({.dense_s = 3600, .rungs = {}});
  ASSERT_TRUE(set_ladder(record, {.dense_s = 60, .rungs = {}}, now, now + kDay));
  EXPECT_EQ(kept(epochs, record, now).size(), 60u);
  EXPECT_EQ(decide(epochs, record, {}, now).next_due_us, now + kDay);
  EXPECT_EQ(kept(epochs, record, now + kDay).size(), 1u);
  ASSERT_TRUE(set_ladder(record, {.dense_s = 7200, .rungs = {}}, now, now + kDay));
  EXPECT_EQ(record.former_ladders_size(), 0) << "the wider one keeps whatever a former one kept";
  ASSERT_TRUE(set_ladder(record, {.dense_s = 1, .rungs = {}}, now, 0));
  EXPECT_EQ(record.former_ladders_size(), 0) << "without a hold-off it counts at once";
  ASSERT_TRUE(set_ladder(record, {.dense_s = 1000, .rungs = {}}, now, now + kDay));
  for (std::size_t i = 0; i < kFormerLaddersMax; ++i)
    ASSERT_TRUE(set_ladder(record, {.dense_s = 999 - i, .rungs = {}}, now, now + kDay));
  const auto once_more = set_ladder(record, {.dense_s = 1, .rungs = {}}, now, now + kDay);
  ASSERT_FALSE(once_more);
  EXPECT_EQ(once_more.error().code, Code::busy);
}

TEST(Ladder, OneThatKeepsNothingIsRefusedInWords) {
  const auto refused = [](const Ladder& ladder) {
    const auto checked = check_ladder(ladder);
    return checked ? std::string("taken") : checked.error().message();
  };
  EXPECT_THAT(refused({}), testing::HasSubstr("ladder: it keeps nothing (give a dense window"));
  EXPECT_THAT(refused({.dense_s = 60, .rungs = {{3600, 600}}}),
              testing::HasSubstr("rung 1h:10m: it keeps nothing: its span is shorter"));
  EXPECT_THAT(refused({.dense_s = 60, .rungs = {{0, 600}}}), testing::HasSubstr("it keeps nothing"));
  EXPECT_THAT(refused({.dense_s = 60, .rungs = {{1, 86'400}}}), testing::HasSubstr("86400 points"));
  EXPECT_THAT(refused({.dense_s = 60, .rungs = {{600, 3600}, {600, 7200}}}), testing::HasSubstr("the same step"));
  EXPECT_THAT(refused({.dense_s = 400 * 86'400, .rungs = {}}), testing::HasSubstr("too long"));
  EXPECT_THAT(refused({.dense_s = 60, .rungs = {{UINT64_MAX, UINT64_MAX}}}), testing::HasSubstr("too long"));
  EXPECT_THAT(refused({.dense_s = 0, .rungs = std::vector<Rung>(kRungsMax + 1, {60, 60})}),
              testing::HasSubstr("17 rungs"));
  EXPECT_EQ(refused(default_ladder()), "taken");
  EXPECT_EQ(refused(ladder_of_60()), "taken");
  EXPECT_EQ(to_string(default_ladder()), "all for 1h, 10m for 6h, 1h for 1d, 1d for 30d");
}

TEST(Ladder, ARecordThatMakesNoSenseIsReadAsFarAsItDoes) {
  pb::MachineRecord record;
  record.mutable_ladder()->set_dense_s(UINT64_MAX);
  auto* const rung = record.mutable_ladder()->add_rungs();
  rung->set_keep_s(UINT64_MAX);
  auto* const other = record.mutable_ladder()->add_rungs();
  other->set_every_s(7);
  other->set_keep_s(UINT64_MAX);
  std::vector<LadderEpoch> epochs{{EpochNumber(1), INT64_MIN / 2, true}, {EpochNumber(2), INT64_MAX / 2, true}};
  EXPECT_THAT(kept(epochs, record, kStart), ElementsAre(1, 2));
  EXPECT_THAT(decide({}, record, {}, kStart).keep, IsEmpty());
}

// --- properties ---

Ladder random_ladder(Random& random) {
  Ladder ladder;
  ladder.dense_s = random.below(4) == 0 ? 0 : 1 + random.below(3000);
  for (const std::uint64_t every : {30, 60, 420, 600, 3600, 86'400})
    if (random.chance(0.4)) ladder.rungs.push_back({every, every * (1 + random.below(30)) + random.below(every)});
  if (!check_ladder(ladder)) ladder.dense_s = 100;
  return ladder;
}

WallMicros random_step(Random& random) {
  switch (random.below(12)) {
    case 0: return static_cast<WallMicros>(random.below(40)) * kDay;
    case 1: return static_cast<WallMicros>(random.below(6)) * kHour;
    case 2: return 0;
    default: return static_cast<WallMicros>(random.below(400)) * kSecond;
  }
}

TEST(LadderProperties, WhatIsLeftIsWhatThePlainModelKeepsOfEverythingThatEverWas) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const Ladder ladder = random_ladder(random);
    const auto record = with(ladder);
    std::vector<LadderEpoch> all, left;
    std::set<std::uint64_t> dropped;
    WallMicros arrival = kStart + static_cast<WallMicros>(random.below(86'400)) * kSecond;
    for (std::uint64_t number = 1; number <= 300; ++number) {
      arrival += random_step(random);
      const LadderEpoch epoch{EpochNumber(number), arrival, !random.chance(0.1)};
      all.push_back(epoch);
      left.push_back(epoch);
      if (random.chance(0.5)) continue;  // not looked at every time
      const WallMicros now = arrival + (random.chance(0.2) ? random_step(random) : 0);
      const auto decision = decide(left, record, {}, now);
      for (const EpochNumber gone : decision.drop) ASSERT_TRUE(dropped.insert(gone.value()).second);
      std::vector<LadderEpoch> stay;
      for (const LadderEpoch& one : left)
        if (!dropped.contains(one.number.value())) stay.push_back(one);
      left = std::move(stay);
      const auto wanted = model(all, ladder, {}, {}, now);
      ASSERT_THAT(numbers(decision.keep), testing::ElementsAreArray(wanted)) << to_string(ladder);
      for (const auto one : wanted) ASSERT_FALSE(dropped.contains(one)) << "nothing comes back";
      ASSERT_THAT(decide(left, record, {}, now).drop, IsEmpty()) << "a second look finds nothing";
    }
  }
}

TEST(LadderProperties, WithTimeTheDroppedOnesOnlyGrow) {
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    auto record = with(random_ladder(random));
    std::vector<LadderEpoch> all;
    WallMicros arrival = kStart;
    for (std::uint64_t number = 1; number <= 200; ++number)
      all.push_back({EpochNumber(number), arrival += random_step(random), !random.chance(0.1)});
    for (int i = 0; i < 3; ++i) pin(record, 1 + random.below(200), arrival + random_step(random));
    std::set<EpochNumber> before;
    for (WallMicros now = kStart; now < arrival + 41 * kDay; now += 1 + random_step(random)) {
      const auto decision = decide(all, record, {}, now);
      const std::set<EpochNumber> after(decision.drop.begin(), decision.drop.end());
      ASSERT_TRUE(std::includes(after.begin(), after.end(), before.begin(), before.end()));
      if (decision.next_due_us && *decision.next_due_us > now) {
        ASSERT_EQ(decide(all, record, {}, *decision.next_due_us - 1).drop, decision.drop) << "nothing is due before";
      }
      if (!decision.next_due_us) {
        ASSERT_EQ(decide(all, record, {}, now + 10'000 * kDay).drop, decision.drop) << "nothing is due ever";
      }
      before = after;
    }
  }
}

TEST(LadderProperties, WhateverClocksDoTheGuardsHoldAndASecondLookFindsNothing) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    auto record = with(random_ladder(random));
    std::vector<LadderEpoch> left;
    WallMicros arrival = kStart;
    for (std::uint64_t number = 1; number <= 150; ++number) {
      arrival += random_step(random);
      if (random.chance(0.03))
        arrival += (random.chance(0.5) ? 1 : -1) * static_cast<WallMicros>(random.below(4000)) * kDay;
      left.push_back({EpochNumber(number), arrival, !random.chance(0.2)});
    }
    Guards guards;
    for (int i = 0; i < 3; ++i) guards.in_use.push_back(EpochNumber(1 + random.below(150)));
    guards.newest_verified = EpochNumber(1 + random.below(150));
    const std::uint64_t pinned = 1 + random.below(150);
    pin(record, pinned);
    ask_removal(record, 1 + random.below(150), 0);
    for (int look = 0; look < 10; ++look) {
      const WallMicros now = arrival + (random.chance(0.5) ? 1 : -1) * random_step(random);
      const auto decision = decide(left, record, guards, now);
      ASSERT_EQ(decision.keep.size() + decision.drop.size(), left.size());
      const auto stay = numbers(decision.keep);
      for (const EpochNumber number : guards.in_use) ASSERT_THAT(stay, testing::Contains(number.value()));
      ASSERT_THAT(stay, testing::Contains(guards.newest_verified->value()));
      ASSERT_THAT(stay, testing::Contains(pinned));
      ASSERT_THAT(stay, testing::Contains(150));
      const auto newest = std::find_if(left.rbegin(), left.rend(), [](const auto& one) { return one.point; });
      ASSERT_THAT(stay, testing::Contains(newest->number.value()));
      std::vector<LadderEpoch> rest;
      for (const LadderEpoch& one : left)
        if (std::binary_search(stay.begin(), stay.end(), one.number.value())) rest.push_back(one);
      ASSERT_THAT(decide(rest, record, guards, now).drop, IsEmpty());
      const auto holds = explain(rest, record, guards, now);
      for (const auto& of_one : holds) ASSERT_FALSE(of_one.empty()) << "whatever stays has a reason";
      left = rest;
    }
  }
}

}  // namespace
}  // namespace tidemark::storage
