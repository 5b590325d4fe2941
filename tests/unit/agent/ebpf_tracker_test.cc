// The three sets of marks, without a kernel: the test marks in its place, and an agent that died is a new tracker over
// the same memory.
#include "agent/ebpf_tracker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <thread>

#include "base/random.h"

namespace tidemark::agent {

bool operator==(const GranuleRange& a, const GranuleRange& b) { return a.first == b.first && a.count == b.count; }
void PrintTo(const GranuleRange& range, std::ostream* out) { *out << range.first << "+" << range.count; }

namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Places = std::set<std::pair<std::size_t, std::uint64_t>>;  // disk, granule

constexpr std::uint64_t kGranule = 4096;
constexpr std::uint64_t kSizes[] = {200 * kGranule, 64 * kGranule, 130 * kGranule - 512};

// Every look at it may take long.
class UnsteadyClock final : public Clock {
 public:
  WallMicros wall_us() const override { return now_ += random_.below(2) * (EbpfTracker::kCutWidthUs + 1); }
  std::chrono::steady_clock::time_point monotonic() const override { return {}; }

 private:
  mutable Random random_{1};
  mutable WallMicros now_ = 1'700'000'000'000'000;
};

class EbpfTrackerTest : public testing::Test {
 protected:
  EbpfTrackerTest() { start_agent(); }

  void start_agent() {
    auto marks =
        KernelMarks::over({control_, counters_, marks_, in_flight_, carried_}, {std::begin(kSizes), std::end(kSizes)});
    kernel_ = marks.get();
    tracker_ = std::make_unique<EbpfTracker>(std::move(marks), clock_);
  }
  // As the kernel's program does.
  void mark(std::size_t disk, std::uint64_t granule) {
    kernel_->words(kernel_->collecting(), disk)[granule / 64] |= std::uint64_t{1} << (granule % 64);
  }
  // A write that is on its way to a granule, in one of the slots.
  void submit(std::uint64_t bio, std::size_t disk, std::uint64_t granule) {
    mark(disk, granule);
    track_bucket& bucket = in_flight_[bio / TRACK_SLOTS];
    bucket.place[bio % TRACK_SLOTS] = {granule * kGranule / 512, kGranule, static_cast<std::uint32_t>(disk)};
    bucket.bio[bio % TRACK_SLOTS] = bio + 1;
  }
  void end(std::uint64_t bio) { in_flight_[bio / TRACK_SLOTS].bio[bio % TRACK_SLOTS] = 0; }
  Suspects begin(std::uint64_t base, std::uint64_t number, bool resumed = false) {
    RoundStart start;
    start.base = EpochNumber(base);
    start.number = EpochNumber(number);
    start.whole = base == 0;
    start.resumed = resumed;
    return *tracker_->begin_round(start);
  }
  // What next() gives, all of it.
  Places due(std::uint64_t granules_max = 256) {
    Places places;
    std::size_t disk = 99;
    for (auto ranges = tracker_->next(disk, granules_max); !ranges.empty();
         ranges = tracker_->next(disk, granules_max)) {
      std::uint64_t count = 0;
      for (const GranuleRange& range : ranges) {
        count += range.count;
        for (std::uint64_t i = 0; i < range.count; ++i)
          EXPECT_TRUE(places.emplace(disk, range.first + i).second)
              << "given twice: " << disk << ", " << range.first + i;
      }
      EXPECT_LE(count, granules_max);
    }
    return places;
  }
  Places cut_and_read() {
    EXPECT_TRUE(tracker_->cut());
    return due();
  }
  void commit(std::uint64_t number) {
    tracker_->sent(EpochNumber(number));
    tracker_->durable(EpochNumber(number));
  }
  // Epoch 1 has everything.
  void first_epoch() {
    EXPECT_TRUE(begin(0, 1).everything);
    EXPECT_THAT(cut_and_read(), IsEmpty());
    commit(1);
  }

  track_control control_{};
  std::vector<track_counters> counters_ = std::vector<track_counters>(2);
  std::vector<std::uint64_t> marks_ = std::vector<std::uint64_t>(TRACK_SETS * (4 + 1 + 3));
  std::vector<track_bucket> in_flight_ = std::vector<track_bucket>(4);
  std::vector<track_carried> carried_ = std::vector<track_carried>(16);
  UnsteadyClock clock_;
  KernelMarks* kernel_ = nullptr;
  std::unique_ptr<EbpfTracker> tracker_;
};

TEST_F(EbpfTrackerTest, BeginsWithEverythingAndThenWithWhatIsMarked) {
  const Suspects first = begin(0, 1);
  EXPECT_TRUE(first.everything);
  EXPECT_FALSE(first.why.empty());
  mark(0, 3);  // while everything is read
  EXPECT_EQ(cut_and_read(), (Places{{0, 3}}));
  commit(1);
  const Suspects second = begin(1, 2);
  EXPECT_FALSE(second.everything) << second.why;
  EXPECT_THAT(cut_and_read(), IsEmpty());
  commit(2);
}

TEST_F(EbpfTrackerTest, WhatWasMarkedBeforeTheCutIsDueAndWhatComesAfterItIsAHit) {
  first_epoch();
  mark(0, 0);
  mark(0, 199);
  mark(1, 63);
  mark(2, 129);  // the short last granule
  begin(1, 2);
  ASSERT_TRUE(tracker_->cut());
  mark(0, 199);
  mark(1, 5);
  EXPECT_EQ(due(), (Places{{0, 0}, {0, 199}, {1, 63}, {2, 129}}));
  EXPECT_EQ(tracker_->hits(0, {0, 199}), 0u);
  EXPECT_EQ(tracker_->hits(0, {190, 10}), 1u);
  EXPECT_EQ(tracker_->hits(1, {0, 64}), 1u);
  // The next moment: only what was marked since, hit or not.
  EXPECT_EQ(cut_and_read(), (Places{{0, 199}, {1, 5}}));
  EXPECT_EQ(tracker_->hits(0, {190, 10}), 0u);
  EXPECT_TRUE(tracker_->sound());
  commit(2);
  EXPECT_EQ(tracker_->marked_granules(), 0u);
}

TEST_F(EbpfTrackerTest, RangesJoinAcrossWordsAndPiecesKeepToTheirLimit) {
  first_epoch();
  for (std::uint64_t i = 60; i < 70; ++i) mark(0, i);
  for (std::uint64_t i = 128; i < 192; ++i) mark(0, i);
  begin(1, 2);
  ASSERT_TRUE(tracker_->cut());
  std::size_t disk = 99;
  EXPECT_THAT(tracker_->next(disk, 64), ElementsAre(GranuleRange{60, 10}));
  EXPECT_EQ(disk, 0u);
  EXPECT_THAT(tracker_->next(disk, 64), ElementsAre(GranuleRange{128, 64}));
  EXPECT_THAT(tracker_->next(disk, 64), IsEmpty());
}

TEST_F(EbpfTrackerTest, OnlyDurableForgets) {
  first_epoch();
  mark(0, 7);
  begin(1, 2);
  EXPECT_EQ(cut_and_read(), (Places{{0, 7}}));
  tracker_->sent(EpochNumber(2));
  mark(1, 1);
  tracker_->failed();
  begin(1, 3);
  EXPECT_EQ(cut_and_read(), (Places{{0, 7}, {1, 1}}));
  tracker_->sent(EpochNumber(3));
  mark(0, 7);  // once more, after the cut
  tracker_->durable(EpochNumber(3));
  begin(3, 4);
  EXPECT_EQ(cut_and_read(), (Places{{0, 7}}));
}

TEST_F(EbpfTrackerTest, OfAnAgentThatDiesNothingIsForgotten) {
  first_epoch();
  mark(0, 7);
  mark(0, 100);
  mark(2, 7);
  begin(1, 2);
  ASSERT_TRUE(tracker_->cut());
  std::size_t disk = 0;
  ASSERT_THAT(tracker_->next(disk, 64), ElementsAre(GranuleRange{7, 1}, GranuleRange{100, 1}));
  mark(1, 9);
  start_agent();  // died with one set half taken
  EXPECT_FALSE(begin(1, 3).everything);
  EXPECT_EQ(cut_and_read(), (Places{{0, 7}, {0, 100}, {1, 9}, {2, 7}}));
}

TEST_F(EbpfTrackerTest, WhetherAnEpochWasDurableTheServerKnows) {
  for (const bool durable : {true, false}) {
    SCOPED_TRACE(durable);
    start_agent();
    control_ = {};
    std::fill(marks_.begin(), marks_.end(), 0);
    first_epoch();
    mark(0, 7);
    begin(1, 2);
    cut_and_read();
    tracker_->sent(EpochNumber(2));
    mark(0, 8);
    start_agent();  // between the cut and Durable
    EXPECT_FALSE(begin(durable ? 2 : 1, 3).everything);
    EXPECT_EQ(cut_and_read(), durable ? (Places{{0, 8}}) : (Places{{0, 7}, {0, 8}}));
  }
}

TEST_F(EbpfTrackerTest, AnotherBaseThanTheMarksBeginWithMeansEverything) {
  first_epoch();
  mark(0, 7);
  const Suspects suspects = begin(5, 6);
  EXPECT_TRUE(suspects.everything);
  EXPECT_THAT(cut_and_read(), IsEmpty()) << "everything is read: what was marked before does not matter";
  mark(0, 9);
  commit(6);
  EXPECT_FALSE(begin(6, 7).everything);
  EXPECT_EQ(cut_and_read(), (Places{{0, 9}}));
}

TEST_F(EbpfTrackerTest, AMissMeansEverythingAndNoPoint) {
  first_epoch();
  begin(1, 2);
  ASSERT_TRUE(tracker_->cut());
  EXPECT_TRUE(tracker_->sound());
  control_.missed = TRACK_MISSED_PASSTHROUGH;
  EXPECT_FALSE(tracker_->sound());
  tracker_->failed();
  const Suspects suspects = begin(1, 3);
  EXPECT_TRUE(suspects.everything);
  EXPECT_NE(suspects.why.find("past the block layer"), std::string::npos) << suspects.why;
  ASSERT_TRUE(tracker_->cut());
  EXPECT_TRUE(tracker_->sound()) << "everything is read after the miss";
}

TEST_F(EbpfTrackerTest, AnInitialSyncGoesOnOnlyWithTheMarksSinceItsBeginning) {
  begin(0, 1);
  mark(0, 1);
  tracker_->failed();
  start_agent();
  EXPECT_TRUE(begin(0, 1, true).covered);
  EXPECT_EQ(cut_and_read(), (Places{{0, 1}}));
  control_.missed = TRACK_MISSED_SUBMISSION;
  tracker_->failed();
  EXPECT_FALSE(begin(0, 1, true).covered);
  commit(1);
  EXPECT_TRUE(begin(1, 2).everything) << "nothing vouches for what was read before the miss";
}

TEST_F(EbpfTrackerTest, WhatTheServerWantsIsDueUnmarked) {
  first_epoch();
  begin(1, 2);
  tracker_->want(0, {62, 4});
  EXPECT_EQ(cut_and_read(), (Places{{0, 62}, {0, 63}, {0, 64}, {0, 65}}));
}

TEST_F(EbpfTrackerTest, SettlesOnlyWhenNobodyIsInside) {
  first_epoch();
  begin(1, 2);
  const unsigned old = kernel_->collecting();
  counters_[0].entered[old] = 5;
  counters_[0].left[old] = 3;
  counters_[1].entered[old] = 1;
  std::thread program([&] {  // the last three leave, on another CPU than the first of them entered
    for (int i = 0; i < 3; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (i == 2) __atomic_fetch_or(&kernel_->words(old, 1)[0], 1, __ATOMIC_SEQ_CST);
      __atomic_fetch_add(&counters_[1].left[old], 1, __ATOMIC_SEQ_CST);
    }
  });
  EXPECT_EQ(cut_and_read(), (Places{{1, 0}})) << "it was marked before its program left";
  program.join();
}

TEST_F(EbpfTrackerTest, WhatIsInFlightAtACutIsDueAtTheNextOne) {
  first_epoch();
  submit(0, 1, 5);
  begin(1, 2);
  EXPECT_EQ(cut_and_read(), (Places{{1, 5}}));
  EXPECT_EQ(tracker_->hits(1, {5, 1}), 0u) << "nothing that was submitted after the cut";
  commit(2);
  begin(2, 3);
  EXPECT_EQ(cut_and_read(), (Places{{1, 5}})) << "its end was not seen: it may have been read too early again";
  end(0);
  commit(3);
  begin(3, 4);
  EXPECT_EQ(cut_and_read(), (Places{{1, 5}})) << "it ended after the last cut";
  commit(4);
  begin(4, 5);
  EXPECT_THAT(cut_and_read(), IsEmpty());
}

TEST_F(EbpfTrackerTest, WhatIsInFlightIsDueInTheNextRoundOfTheSameEpoch) {
  first_epoch();
  submit(3, 0, 199);
  begin(1, 2);
  EXPECT_EQ(cut_and_read(), (Places{{0, 199}}));
  end(3);
  mark(0, 4);
  EXPECT_EQ(cut_and_read(), (Places{{0, 4}, {0, 199}}));
  EXPECT_THAT(cut_and_read(), IsEmpty());
}

TEST_F(EbpfTrackerTest, WhatWasInFlightOutlivesTheAgentWhoeverLearnsOfDurable) {
  for (const bool durable : {true, false}) {
    SCOPED_TRACE(durable);
    control_ = {};
    std::fill(marks_.begin(), marks_.end(), 0);
    start_agent();
    first_epoch();
    submit(1, 2, 9);
    begin(1, 2);
    EXPECT_EQ(cut_and_read(), (Places{{2, 9}}));
    tracker_->sent(EpochNumber(2));
    end(1);
    start_agent();
    EXPECT_FALSE(begin(durable ? 2 : 1, 3).everything);
    EXPECT_EQ(cut_and_read(), (Places{{2, 9}}));
  }
}

TEST_F(EbpfTrackerTest, WhatIsInFlightWhenEverythingBeginsToBeReadIsDueAfterIt) {
  submit(2, 0, 7);
  EXPECT_TRUE(begin(0, 1).everything);
  end(2);  // after its place was read
  EXPECT_EQ(cut_and_read(), (Places{{0, 7}}));
}

TEST_F(EbpfTrackerTest, MoreInFlightThanCanBeCarriedMeansNoPoint) {
  first_epoch();
  begin(1, 2);
  for (std::uint64_t bio = 0; bio < 17; ++bio) submit(bio, 0, bio);
  ASSERT_TRUE(tracker_->cut());
  EXPECT_FALSE(tracker_->sound());
  EXPECT_TRUE(begin(1, 3).everything);
}

// Writes, cuts, failures and deaths in any order, against a plain model: what differs from the base is always due.
TEST_F(EbpfTrackerTest, NeverLosesAGranuleWhateverHappens) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    control_ = {};
    std::fill(marks_.begin(), marks_.end(), 0);
    std::fill(in_flight_.begin(), in_flight_.end(), track_bucket{});
    start_agent();
    std::map<std::uint64_t, int> disk, server, sent;    // versions by granule of disk 0
    std::map<std::uint64_t, std::uint64_t> on_the_way;  // granule by bio: each may take effect at any moment
    std::uint64_t base = 0, number = 0, version = 0;
    const auto take_effect = [&](std::uint64_t bio) {
      disk[on_the_way.at(bio)] = static_cast<int>(++version);
      if (random.below(20) != 0) end(bio);  // else nobody sees it end, until the address is used again
      on_the_way.erase(bio);
    };
    const auto write = [&] {
      const std::uint64_t bio = random.below(4 * TRACK_SLOTS / 2);
      if (on_the_way.contains(bio)) return take_effect(bio);
      const std::uint64_t granule = random.below(200);
      for (const auto& [other, place] : on_the_way) {
        if (place == granule) return;  // the model has one version of a granule on its way
      }
      submit(bio, 0, granule);
      on_the_way[bio] = granule;
      if (random.below(2) == 0) take_effect(bio);
    };
    for (int step = 0; step < 60; ++step) {
      for (std::uint64_t i = random.below(6); i > 0; --i) write();
      ++number;
      const bool everything = begin(base, number).everything;
      EXPECT_EQ(everything, base == 0);
      sent = server;
      if (everything) sent = disk;
      std::map<std::uint64_t, int> at_cut;
      std::set<std::uint64_t> open;  // granules of what is on its way at the cut: any version will do
      bool dead = false;
      for (bool exact = false; !exact && !dead;) {
        ASSERT_TRUE(tracker_->cut());
        at_cut = disk;
        open.clear();
        for (const auto& [bio, granule] : on_the_way) open.insert(granule);
        std::uint64_t hits = 0;
        std::size_t at = 0;
        for (auto ranges = tracker_->next(at, 64); !ranges.empty(); ranges = tracker_->next(at, 64)) {
          for (const GranuleRange& range : ranges) {
            if (random.below(8) == 0) write();
            for (std::uint64_t i = 0; i < range.count; ++i) {
              if (disk.contains(range.first + i)) sent[range.first + i] = disk[range.first + i];
            }
            if (random.below(8) == 0) write();
            hits += tracker_->hits(at, range);
          }
          dead = random.below(50) == 0;
          if (dead) break;
        }
        exact = hits == 0;
      }
      if (dead) {
        start_agent();
        continue;
      }
      auto judged = sent;
      for (const std::uint64_t granule : open) {
        judged.erase(granule);
        at_cut.erase(granule);
      }
      EXPECT_EQ(judged, at_cut) << "an exact cut that is none";
      tracker_->sent(EpochNumber(number));
      switch (random.below(5)) {
        case 0:  // lost, and the agent knows
          tracker_->failed();
          break;
        case 1:  // lost, and the agent with it
          start_agent();
          break;
        case 2:  // durable, but the agent does not live to see it
          server = sent;
          base = number;
          start_agent();
          break;
        default:
          server = sent;
          base = number;
          tracker_->durable(EpochNumber(number));
      }
    }
  }
}

}  // namespace
}  // namespace tidemark::agent
