#include "storage/index.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>

#include "storage/segment_kind.h"
#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::CommitMaker;
using fixtures::machine_id;
using fixtures::machine_record;
using fixtures::TemporaryDirectory;

class IndexTest : public ::testing::Test {
 protected:
  void open() {
    auto opened = Index::open(directory_.path() + "/index", {.cache_bytes = 8 << 20, .write_buffer_bytes = 8 << 20});
    ASSERT_TRUE(opened) << opened.error().message();
    index_ = std::move(*opened);
  }
  void crash() {
    index_.reset();
    open();
  }
  void apply() {
    commits_.push_back(log_.take());
    const auto applied = index_->apply(std::span(commits_).last(1));
    ASSERT_TRUE(applied) << applied.error().message();
  }
  // After a crash: everything after the mark once more.
  void replay() {
    for (const CommitInfo& commit : commits_) {
      if (commit.last_lsn <= index_->mark().lsn) continue;
      const auto applied = index_->apply(std::span(&commit, 1));
      ASSERT_TRUE(applied) << applied.error().message();
    }
  }
  void SetUp() override { open(); }

  // Which record shows at each granule, by the offset of its block; 0 zeroes or nothing.
  std::map<std::uint64_t, std::uint32_t> shown(unsigned machine, std::uint32_t volume, Lsn as_of, std::uint64_t first,
                                               std::uint64_t count) {
    std::map<std::uint64_t, std::uint32_t> result;
    const auto extents = index_->lookup(machine_id(machine), VolumeId(volume), as_of, first, count);
    EXPECT_TRUE(extents) << extents.error().message();
    std::uint64_t last = first;
    for (const Extent& extent : *extents) {
      EXPECT_GE(extent.first_granule, last);
      last = extent.first_granule + extent.granules;
      EXPECT_LE(last, first + count);
      EXPECT_GE(extent.first_granule, extent.block_first_granule);
      EXPECT_LE(last, extent.block_first_granule + extent.block_granules);
      for (std::uint64_t i = 0; i < extent.granules; ++i) result[extent.first_granule + i] = extent.offset;
    }
    return result;
  }

  TemporaryDirectory directory_;
  CommitMaker log_;
  std::vector<CommitInfo> commits_;
  std::unique_ptr<Index> index_;
};

TEST_F(IndexTest, NewestVersionAtTheMomentShows) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 1, 64 << 20, 1));
  log_.begin(m, 1, 64 << 20);
  log_.blocks(m, DiskId(0), {{0, 16}, {16, 16}});
  const Lsn first = log_.commit_epoch(m, 1);
  log_.begin(m, 2, 64 << 20);
  log_.blocks(m, DiskId(0), {{4, 2}, {15, 1, wire::Encoding::zero}});
  const Lsn second = log_.commit_epoch(m, 2);
  apply();
  const auto& blocks = commits_[0].blocks;
  auto at_first = shown(1, 1, first, 0, 300);
  EXPECT_EQ(at_first.size(), 32u);
  EXPECT_EQ(at_first[4], blocks[0].offset);
  EXPECT_EQ(at_first[16], blocks[1].offset);
  auto at_second = shown(1, 1, second, 0, 300);
  EXPECT_EQ(at_second[3], blocks[0].offset);
  EXPECT_EQ(at_second[4], blocks[2].offset);
  EXPECT_EQ(at_second[5], blocks[2].offset);
  EXPECT_EQ(at_second[6], blocks[0].offset);
  EXPECT_EQ(at_second[15], 0u);
  EXPECT_EQ(index_->newest_epoch(m)->number(), 2u);
  EXPECT_EQ(index_->newest_epoch(m)->commit_lsn(), second.value());
}

TEST_F(IndexTest, AbortedEpochIsNeverSeenAndItsNumberIsTaken) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 1, 64 << 20, 1));
  log_.begin(m, 1);
  log_.blocks(m, DiskId(0), {{0, 1}});
  log_.commit_epoch(m, 1);
  log_.begin(m, 2);
  log_.blocks(m, DiskId(0), {{0, 1}, {1, 1}});
  log_.abort_epoch(m, 2);
  log_.begin(m, 3);
  log_.blocks(m, DiskId(0), {{2, 1}});
  const Lsn third = log_.commit_epoch(m, 3);
  apply();
  for (int round = 0; round < 2; ++round) {
    auto seen = shown(1, 1, third, 0, 256);
    EXPECT_EQ(seen.size(), 2u);
    EXPECT_EQ(seen[0], commits_[0].blocks[0].offset);
    EXPECT_EQ(seen.count(1), 0u);
    ASSERT_TRUE(index_->flush());
    crash();
  }
  log_.begin(m, 9);
  log_.abort_epoch(m, 9);
  apply();
  EXPECT_EQ(index_->highest_epoch(m), EpochNumber(9));
  EXPECT_FALSE(index_->open_epoch(m));
}

TEST_F(IndexTest, WhatWasNotFlushedIsAppliedAgainFromTheMark) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 2, 1 << 30, 1));
  log_.begin(m, 1);
  apply();
  Random random(7);
  Lsn last;
  for (int i = 0; i < 40; ++i) {
    for (int k = 0; k < 20; ++k) {
      log_.blocks(m, DiskId(static_cast<std::uint32_t>(random.below(2))), {{random.below(260000), 1}});
    }
    if (i == 39) last = log_.commit_epoch(m, 1);
    apply();
    if (i == 17) {
      ASSERT_TRUE(index_->flush());
    }
  }
  const auto before = shown(1, 1, last, 0, 262144);
  const auto live = index_->live_references(SegmentId(1));
  const LogMark mark = index_->mark();
  EXPECT_LT(index_->persisted_mark().lsn, mark.lsn);
  crash();
  EXPECT_LT(index_->mark().lsn, mark.lsn) << "the crash lost nothing: nothing was tested";
  EXPECT_GE(index_->mark().lsn, commits_[18].last_lsn);
  EXPECT_FALSE(index_->newest_epoch(m));
  EXPECT_EQ(index_->open_epoch(m)->number(), 1u);
  replay();
  EXPECT_EQ(index_->mark(), mark);
  EXPECT_EQ(shown(1, 1, last, 0, 262144), before);
  EXPECT_EQ(*index_->live_references(SegmentId(1)), *live);
  EXPECT_EQ(index_->newest_epoch(m)->blocks(), 800u);
}

TEST_F(IndexTest, WideZeroesCostNothingWhereTheVolumeIsEmpty) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 1, std::uint64_t{1} << 44, 1));
  log_.begin(m, 1);
  log_.blocks(m, DiskId(0), {{0, 1u << 31, wire::Encoding::zero}, {5000, 4}, {1000000, 2}});
  log_.blocks(m, DiskId(0), {{77, 1}, {40 * 256, 256 * 100, wire::Encoding::zero}});
  const Lsn first = log_.commit_epoch(m, 1);
  log_.begin(m, 2);
  // One record: data below, a wide range over it, data above.
  log_.blocks(m, DiskId(0), {{300, 1}, {10, 2000000, wire::Encoding::zero}, {5001, 1}});
  const Lsn second = log_.commit_epoch(m, 2);
  apply();
  const auto regions = index_->regions(VolumeId(1), 0, 100000);
  ASSERT_TRUE(regions);
  EXPECT_LT(regions->size(), 10u);
  const auto& blocks = commits_[0].blocks;
  auto seen = shown(1, 1, first, 0, 1u << 31);
  EXPECT_EQ(seen[5000], blocks[1].offset);
  EXPECT_EQ(seen[1000001], blocks[2].offset);
  EXPECT_EQ(seen[77], blocks[3].offset);
  EXPECT_EQ(seen[300], 0u);
  seen = shown(1, 1, second, 0, 1u << 31);
  EXPECT_EQ(seen[5000], 0u);
  EXPECT_EQ(seen[5001], blocks[7].offset);
  EXPECT_EQ(seen[1000001], 0u);
  EXPECT_EQ(seen[300], 0u);
  EXPECT_EQ(seen[77], 0u);
}

// A plain array beside the index: what shows at each granule, whatever the order and overlap of blocks.
TEST_F(IndexTest, RandomHistoriesMatchAPlainModel) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    index_.reset();
    ASSERT_TRUE(Index::destroy(directory_.path() + "/index"));
    open();
    log_ = CommitMaker();
    commits_.clear();
    Random random(seed);
    const MachineId m = machine_id(1);
    constexpr std::uint64_t kGranules = 256 * 12;
    log_.machine(machine_record(1, 1, kGranules * 4096, 1));
    std::vector<std::uint32_t> committed(kGranules, 0);
    std::vector<std::pair<Lsn, std::vector<std::uint32_t>>> points;
    for (std::uint64_t number = 1; number <= 25; ++number) {
      log_.begin(m, number, kGranules * 4096);
      std::vector<std::uint32_t> open = committed;
      const std::uint64_t records = random.below(4);
      for (std::uint64_t r = 0; r < records; ++r) {
        std::vector<CommitMaker::Block> blocks;
        for (std::uint64_t b = 1 + random.below(12); b > 0; --b) {
          if (random.chance(0.2)) {
            const std::uint64_t at = random.below(kGranules);
            blocks.push_back({at, static_cast<std::uint32_t>(1 + random.below(kGranules - at)), wire::Encoding::zero});
          } else {
            const auto count = static_cast<std::uint32_t>(1 + random.below(16));
            blocks.push_back({random.below(kGranules / 256) * 256 + random.below(256 - count + 1), count,
                              random.chance(0.5) ? wire::Encoding::raw : wire::Encoding::zstd});
          }
        }
        log_.blocks(m, DiskId(0), blocks);
        apply();
        const auto places = std::span(commits_.back().blocks).last(blocks.size());
        for (const BlockPlace& place : places) {
          for (std::uint32_t i = 0; i < place.granules; ++i) {
            open[place.first_granule + i] = place.encoding == wire::Encoding::zero ? 0 : place.offset;
          }
        }
      }
      if (random.chance(0.25)) {
        log_.abort_epoch(m, number);
      } else {
        const Lsn lsn = log_.commit_epoch(m, number);
        committed = std::move(open);
        points.emplace_back(lsn, committed);
      }
      apply();
      if (random.chance(0.2)) {
        ASSERT_TRUE(index_->flush());
      }
      if (random.chance(0.2)) {
        crash();
        replay();
      }
    }
    for (const auto& [lsn, expected] : points) {
      auto seen = shown(1, 1, lsn, 0, kGranules);
      for (std::uint64_t i = 0; i < kGranules; ++i) {
        ASSERT_EQ(seen.count(i) != 0 ? seen[i] : 0, expected[i]) << "granule " << i << " at LSN " << lsn.value();
      }
    }
    const Status counts = index_->check_counts();
    ASSERT_TRUE(counts) << counts.error().message();
  }
}

// Each region has one key for a record, however many of its ranges cover it.
TEST_F(IndexTest, WideZeroesThatOverlapInOneRecordAreCountedOnce) {
  constexpr auto kZero = wire::Encoding::zero;
  const MachineId m = machine_id(1);
  constexpr std::uint64_t kRegions = 20, kGranules = 256 * kRegions;
  log_.machine(machine_record(1, 1, kGranules * 4096, 1));
  log_.begin(m, 1, kGranules * 4096);
  std::vector<CommitMaker::Block> all;
  for (std::uint64_t region = 0; region < kRegions; ++region) all.push_back({region * 256 + 3, 1});
  log_.blocks(m, DiskId(0), all);
  log_.commit_epoch(m, 1);
  log_.begin(m, 2, kGranules * 4096);
  log_.blocks(m, DiskId(0),
              {{256 * 2, 256 * 8, kZero},  // 2 to 10
               {256 * 4 + 3, 1},           // data over it
               {256 * 6 + 3, 1},
               {256 * 5, 256 * 10, kZero},  // 5 to 15: over the second
               {256 * 12 + 3, 1},
               {256 * 9, 256 * 6, kZero},  // 9 to 15: over the third
               {256 * 16 + 3, 1}});
  const Lsn second = log_.commit_epoch(m, 2);
  apply();
  auto seen = shown(1, 1, second, 0, kGranules);
  std::set<std::uint64_t> regions;
  for (const auto& [granule, offset] : seen) {
    if (offset != 0) regions.insert(granule / 256);
  }
  EXPECT_EQ(regions, (std::set<std::uint64_t>{0, 1, 4, 15, 16, 17, 18, 19}));
  const Status counts = index_->check_counts();
  EXPECT_TRUE(counts) << counts.error().message();
}

TEST_F(IndexTest, ADiskThatShrankAndGrewIsZeroBetween) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 1, 32 << 20, 1));
  log_.begin(m, 1, 32 << 20);
  log_.blocks(m, DiskId(0), {{100, 1}, {20 * 256, 1}, {30 * 256 + 5, 1}});
  log_.commit_epoch(m, 1);
  log_.begin(m, 2, 1 << 20);  // given up: it never shrank
  log_.abort_epoch(m, 2);
  log_.begin(m, 3, 32 << 20);
  const Lsn before = log_.commit_epoch(m, 3);
  log_.begin(m, 4, 1 << 20);
  log_.commit_epoch(m, 4);
  log_.begin(m, 5, 32 << 20);
  const Lsn after = log_.commit_epoch(m, 5);
  apply();
  auto seen = shown(1, 1, before, 0, 32 * 256);
  EXPECT_NE(seen[20 * 256], 0u);
  seen = shown(1, 1, after, 0, 32 * 256);
  EXPECT_NE(seen[100], 0u);
  EXPECT_EQ(seen[20 * 256], 0u);
  EXPECT_EQ(seen[30 * 256 + 5], 0u);
}

TEST_F(IndexTest, RemovingAMachineFreesWhatOnlyItHeld) {
  const MachineId one = machine_id(1);
  const MachineId two = machine_id(2);
  log_.machine(machine_record(1, 1, 1 << 30, 1));
  log_.begin(one, 1);
  for (std::uint64_t i = 0; i < 3000; ++i) log_.blocks(one, DiskId(0), {{i * 50, 1}});
  const Lsn point = log_.commit_epoch(one, 1);
  apply();
  log_.next_segment();
  log_.machine(machine_record(2, 1, 1 << 30, 2));
  log_.begin(two, 1);
  log_.blocks(two, DiskId(0), {{0, 1}});
  const Lsn other = log_.commit_epoch(two, 1);
  apply();
  EXPECT_EQ(*index_->live_references(SegmentId(1)), 3002u);
  log_.next_segment();
  auto removed = machine_record(1, 1, 1 << 30, 1);
  removed.set_removed(true);
  log_.machine(removed);
  apply();
  log_.next_segment();
  log_.begin(two, 2);
  apply();
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(*index_->live_references(SegmentId(1)), 0u);
    EXPECT_EQ(*index_->live_references(SegmentId(2)), 3u);
    EXPECT_EQ(*index_->live_references(SegmentId(3)), 1u) << "the record that tells of the removal is needed";
    EXPECT_TRUE(index_->regions(VolumeId(1), 0, 10)->empty());
    const auto gone = index_->lookup(one, VolumeId(1), point, 0, 1000);
    ASSERT_FALSE(gone);
    EXPECT_EQ(gone.error().code, Code::not_found);
    EXPECT_EQ(shown(2, 2, other, 0, 100).size(), 1u);
    if (round == 0) {
      EXPECT_TRUE(index_->unreferenced_segments().empty()) << "not persisted yet";
    }
    ASSERT_TRUE(index_->flush());
    EXPECT_EQ(index_->unreferenced_segments(), std::vector{SegmentId(1)});
    crash();
  }
  ASSERT_TRUE(index_->forget_segment(SegmentId(1)));
  EXPECT_TRUE(index_->unreferenced_segments().empty());
  EXPECT_TRUE(index_->machine(one)->removed());
}

TEST_F(IndexTest, EpochsAreListedNewestFirstWithoutFuzzyOnes) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 1, 1 << 20, 1));
  for (std::uint64_t number = 1; number <= 6; ++number) {
    log_.begin(m, number, 1 << 20);
    log_.commit_epoch(m, number, number % 3 == 0 ? 1 : 2, static_cast<std::int64_t>(number));
  }
  apply();
  const auto numbers = [&](std::size_t limit, bool fuzzy) {
    std::vector<std::uint64_t> all;
    const auto listed = index_->epochs(m, limit, fuzzy);
    for (const auto& entry : *listed) all.push_back(entry.number());
    return all;
  };
  EXPECT_EQ(numbers(0, false), (std::vector<std::uint64_t>{5, 4, 2, 1}));
  EXPECT_EQ(numbers(2, true), (std::vector<std::uint64_t>{6, 5}));
  EXPECT_EQ((*index_->epoch(m, EpochNumber(3)))->consistency(), 1u);
  EXPECT_FALSE(*index_->epoch(m, EpochNumber(7)));
  EXPECT_EQ((*index_->epoch(m, EpochNumber(2)))->disks(0).size(), 1u << 20);
}

TEST_F(IndexTest, AGapInTheLogIsRefusedAndChangesNothing) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 1, 1 << 20, 1));
  apply();
  log_.begin(m, 1);
  const CommitInfo lost = log_.take();
  log_.commit_epoch(m, 1);
  const CommitInfo after = log_.take();
  const auto refused = index_->apply(std::span(&after, 1));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::corrupt);
  EXPECT_TRUE(index_->apply(std::span(&lost, 1)));
  EXPECT_TRUE(index_->apply(std::span(&after, 1)));
  EXPECT_EQ(index_->newest_epoch(m)->number(), 1u);
}

TEST_F(IndexTest, DamageIsSaidToBeDamage) {
  log_.machine(machine_record(1, 1, 1 << 20, 1));
  apply();
  ASSERT_TRUE(index_->flush());
  index_.reset();
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path() + "/index")) {
    if (entry.path().extension() == ".sst") std::filesystem::remove(entry.path());
  }
  const auto opened = Index::open(directory_.path() + "/index", {});
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Code::corrupt);
  EXPECT_FALSE(opened.error().remedy.empty());
  ASSERT_TRUE(Index::destroy(directory_.path() + "/index"));
  open();
  EXPECT_EQ(index_->mark(), LogMark());
}

TEST_F(IndexTest, ANewSegmentIsNotFreedBetweenThePiecesThatReferToIt) {
  const MachineId m = machine_id(1);
  log_.machine(machine_record(1, 1, 1 << 30, 1));
  log_.begin(m, 1);
  log_.blocks(m, DiskId(0), {{0, 1}});
  const Lsn point = log_.commit_epoch(m, 1);
  apply();
  const SegmentId fresh = cold_segment(1);
  ASSERT_TRUE(index_->change({}, std::span(&fresh, 1), false));
  ASSERT_TRUE(index_->flush());
  EXPECT_TRUE(index_->unreferenced_segments().empty()) << "what refers to it is on its way";
  const auto history = index_->history(m, VolumeId(1), 0, point);
  ASSERT_TRUE(history && history->versions.size() == 1);
  std::vector<Version> moved = history->versions;
  moved.front().segment = fresh;
  const RegionChange change{.machine = m,
                            .volume = VolumeId(1),
                            .region = 0,
                            .remove = history->keys,
                            .put = encode_versions(moved, std::span(&point, 1))};
  ASSERT_TRUE(index_->change(std::span(&change, 1), std::span(&fresh, 1), true));
  ASSERT_TRUE(index_->flush());
  EXPECT_TRUE(index_->unreferenced_segments().empty());
  EXPECT_EQ(*index_->live_references(fresh), 1u);
}

// Files may not grow meanwhile, as on a disk that fails, or fills up while it is written to.
TEST_F(IndexTest, FilesThatCannotBeWrittenAreAnErrorAndNotTheEnd) {
  log_.machine(machine_record(1, 1, 1 << 30, 1));
  log_.begin(machine_id(1), 1, 1 << 30);
  apply();
  ASSERT_TRUE(index_->flush());
  const Lsn marked = index_->persisted_mark().lsn;
  log_.commit_epoch(machine_id(1), 1);
  apply();
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(index_->flush());
    static_cast<void>(index_->resume());
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(index_->persisted_mark().lsn, marked);
  // To RocksDB this is worse than a lack of space: it goes on when it is opened again, and the log tells the rest.
  crash();
  EXPECT_EQ(index_->mark().lsn, marked);
  replay();
  ASSERT_TRUE(index_->flush());
  crash();
  EXPECT_GT(index_->mark().lsn, marked);
  EXPECT_FALSE(std::filesystem::exists(directory_.path() + "/index/LOG")) << "one more file that may not be writable";
}

}  // namespace
}  // namespace tidemark::storage
