#include "agent/skipped_chunks.h"

#include <gtest/gtest.h>

#include "agent/text_file.h"
#include "base/random.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

TEST(ChunkSet, HoldsWhatWasAddedAndNotTakenOff) {
  constexpr std::uint64_t kChunks = 64;
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    ChunkSet set;
    std::vector<bool> model(kChunks);
    for (int step = 0; step < 40; ++step) {
      const std::uint64_t first = random.next() % kChunks, count = random.next() % (kChunks - first);
      const bool add = random.next() % 2 == 0;
      if (add) {
        set.add({first, count});
      } else {
        set.remove({first, count});
      }
      std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(first), count, add);
    }
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < kChunks; ++i) {
      EXPECT_EQ(set.touches({i, 1}), model[i]) << i;
      sum += model[i] ? 1 : 0;
    }
    EXPECT_EQ(set.chunks(), sum);
    EXPECT_FALSE(set.touches({0, 0}));
    std::uint64_t end = 0;
    for (const ChunkRange& range : set.list()) {
      EXPECT_TRUE(range.first > end || (end == 0 && range.first == 0)) << "ranges neither overlap nor touch";
      end = range.first + range.count;
    }
  }
}

TEST(ChunkSet, NextGivesTheRestOfARange) {
  ChunkSet set;
  set.add({10, 5});
  set.add({20, 1});
  EXPECT_EQ(set.next(0), (ChunkRange{10, 5}));
  EXPECT_EQ(set.next(12), (ChunkRange{12, 3}));
  EXPECT_EQ(set.next(15), (ChunkRange{20, 1}));
  EXPECT_EQ(set.next(21), std::nullopt);
}

TEST(ChunkSet, CoarsenedItGrowsAndLosesNothing) {
  ChunkSet set;
  for (std::uint64_t i = 0; i < 100; ++i) set.add({i * i * 3, 1});
  const ChunkSet before = set;
  set.coarsen(10);
  EXPECT_LE(set.ranges(), 10U);
  for (const ChunkRange& range : before.list()) EXPECT_EQ(set.next(range.first)->first, range.first);
  EXPECT_GT(set.chunks(), before.chunks());
}

class SkippedChunksTest : public testing::Test {
 protected:
  static ChunkSet set(std::uint64_t first, std::uint64_t count) {
    ChunkSet chunks;
    chunks.add({first, count});
    return chunks;
  }
  SkippedChunks loaded() {
    SkippedChunks again(path_);
    EXPECT_TRUE(again.load());
    return again;
  }
  TempDir temp_;
  std::filesystem::path path_ = temp_ / "unread";
};

TEST_F(SkippedChunksTest, OfADiskOfWhichNothingIsKnownEverythingMayBeMissing) {
  SkippedChunks list(path_);
  EXPECT_EQ(list.load().error().code, Code::not_found);
  EXPECT_TRUE(list.covers("a", 0, 1));
  EXPECT_EQ(list.count("a"), std::nullopt);
  list.remove("a", {0, 10});
  EXPECT_TRUE(list.covers("a", 0, 1)) << "to read some of it is not to know the rest";
  list.add("a", set(5, 5));
  EXPECT_TRUE(list.covers("a", 0, 1)) << "neither is to leave some of it out";
  list.replace("a", 0, set(5, 5));
  EXPECT_FALSE(list.covers("a", 0, 5));
  EXPECT_TRUE(list.covers("a", 0, 6));
  EXPECT_FALSE(list.covers("a", 10, 1000));
  EXPECT_FALSE(list.covers("a", 7, 7));
}

TEST_F(SkippedChunksTest, APassThatWentOnKnowsItsOwnPartOnly) {
  SkippedChunks list(path_);
  list.replace("a", 0, set(5, 5));
  list.replace("a", 8, set(20, 2));
  EXPECT_EQ(list.count("a"), 5U);  // 5 to 7, 20 and 21
  EXPECT_TRUE(list.covers("a", 7, 8));
  EXPECT_FALSE(list.covers("a", 8, 20));
  list.replace("b", 8, set(20, 2));
  EXPECT_TRUE(list.covers("b", 0, 8)) << "of what lies before nothing is known";
  EXPECT_FALSE(list.covers("b", 8, 20));
}

TEST_F(SkippedChunksTest, ComesBackFromItsFile) {
  SkippedChunks list(path_);
  list.replace("a", 0, set(5, 5));
  list.replace("file:/\xff\n", 0, {});
  ASSERT_TRUE(list.save());
  SkippedChunks again = loaded();
  EXPECT_EQ(again.count("a"), 5U);
  EXPECT_EQ(again.count("file:/\xff\n"), 0U);
  EXPECT_TRUE(again.covers("b", 0, 1));
  again.keep_only({"a"});
  ASSERT_TRUE(again.save());
  EXPECT_EQ(loaded().count("file:/\xff\n"), std::nullopt);
}

TEST_F(SkippedChunksTest, DamageMeansThatNothingIsKnown) {
  SkippedChunks list(path_);
  list.replace("a", 0, set(5, 5));
  ASSERT_TRUE(list.save());
  const std::string good = *read_text_file(path_);
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (const bool cut : {false, true}) {
      std::string bad = good;
      if (cut) {
        bad.resize(at);
      } else {
        bad[at] ^= 1;
      }
      ASSERT_TRUE(write_file_atomically(path_, bad, 0600, false));
      const auto done = list.load();
      ASSERT_FALSE(done) << "byte " << at;
      EXPECT_EQ(done.error().code, Code::corrupt);
      EXPECT_TRUE(list.covers("a", 0, 1));
    }
  }
  for (const char* bad : {"{}", "[]", R"({"version":1,"chunk_bytes":65536,"disks":[{"identity_hex":"6","ranges":[]}]})",
                          R"({"version":1,"chunk_bytes":65536,"disks":[{"identity_hex":"61","ranges":[1]}]})",
                          R"({"version":1,"chunk_bytes":65536,"disks":[{"identity_hex":"61","ranges":[1,-1]}]})",
                          R"({"version":1,"chunk_bytes":65536,"disks":[{"identity_hex":"61","ranges":["x",1]}]})"}) {
    ASSERT_TRUE(write_file_atomically(path_, with_checksum(bad), 0600, false));
    const auto done = list.load();
    ASSERT_FALSE(done) << bad;
    EXPECT_EQ(done.error().code, Code::corrupt) << bad;
  }
  ASSERT_TRUE(write_file_atomically(path_, with_checksum(R"({"version":2})"), 0600, false));
  EXPECT_FALSE(list.load());
}

TEST_F(SkippedChunksTest, IsWrittenOnlyWhenItSaysSomethingNew) {
  SkippedChunks list(path_);
  ASSERT_TRUE(list.save());
  EXPECT_FALSE(std::filesystem::exists(path_)) << "nothing is known";
  const auto written = [&] {
    EXPECT_TRUE(list.save());
    return std::filesystem::remove(path_);
  };
  list.replace("a", 0, {});
  EXPECT_TRUE(written()) << "that all was read is news";
  list.add("a", set(5, 5));
  EXPECT_TRUE(written());
  list.add("a", set(6, 2));
  list.replace("a", 0, set(5, 5));
  list.remove("a", {20, 4});
  list.keep_only({"a"});
  EXPECT_FALSE(written());
  list.remove("a", {9, 1});
  EXPECT_TRUE(written());
  list.keep_only({});
  EXPECT_TRUE(written());
}

TEST_F(SkippedChunksTest, IsBounded) {
  SkippedChunks list(path_);
  ChunkSet many;
  for (std::uint64_t i = 0; i < SkippedChunks::kRangesMax + 10; ++i) many.add({i * 2, 1});
  list.replace("a", 0, many);
  ASSERT_TRUE(list.save());
  EXPECT_TRUE(loaded().covers("a", (SkippedChunks::kRangesMax + 9) * 2, (SkippedChunks::kRangesMax + 9) * 2 + 1));
}

}  // namespace
}  // namespace tidemark::agent
