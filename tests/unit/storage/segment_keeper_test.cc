#include "storage/segment_keeper.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "base/aligned_buffer.h"
#include "storage/sim_disk.h"
#include "storage/system_files.h"

namespace tidemark::storage {
namespace {

constexpr std::uint64_t kSize = 64_KiB;

struct SegmentKeeperTest : ::testing::Test {
  SegmentKeeperTest() {
    spdlog::set_level(spdlog::level::err);
    EXPECT_TRUE(disk.files().make_directory("/log"));
    EXPECT_TRUE(disk.files().sync_directory("/"));
  }
  std::unique_ptr<SegmentKeeper> open(SegmentId last = {}, std::vector<SegmentId> live = {},
                                      std::uint32_t reserve = 2) {
    SegmentKeeperOptions options;
    options.directory = "/log";
    options.segment_size = kSize;
    options.reserve = reserve;
    options.last_id = last;
    options.live = std::move(live);
    options.background = false;
    auto keeper = SegmentKeeper::open(disk.files(), std::move(options));
    EXPECT_TRUE(keeper) << keeper.error().message();
    return std::move(*keeper);
  }
  static void work(SegmentKeeper& keeper) {
    while (keeper.step()) {
    }
  }
  std::vector<std::string> names() { return disk.files().list("/log").value(); }

  SimDisk disk{1};
};

TEST(SegmentNames, AreIdsInHexadecimal) {
  EXPECT_EQ(segment_path("/x", SegmentId(0xa7)), "/x/00000000000000a7.segment");
  EXPECT_EQ(parse_segment_name("00000000000000a7.segment"), SegmentId(0xa7));
  for (const char* name : {"a7.segment", "00000000000000A7.segment", "00000000000000a7.tmp", "reserve-000001.segment",
                           "00000000000000a7.segment2", "x0000000000000a7.segment", ""})
    EXPECT_FALSE(parse_segment_name(name)) << name;
}

TEST_F(SegmentKeeperTest, WritesNoZeroesInFrontOfLargeCommits) {
  auto keeper = open();
  work(*keeper);
  keeper->expect_large_commits(true);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(keeper->take());
  work(*keeper);
  EXPECT_EQ(keeper->stats().formatted, 2U) << "those from before";
  EXPECT_GE(keeper->stats().allocated, 3U);
  const auto segment = keeper->take();
  ASSERT_TRUE(segment);
  EXPECT_EQ(segment->file().size().value(), kSize);
  // Small commits: what waits in reserve is written, and what was merely allocated is gone.
  work(*keeper);
  keeper->expect_large_commits(false);
  work(*keeper);
  EXPECT_EQ(keeper->stats().formatted, 3U);
  const auto there = names();
  EXPECT_EQ(std::ranges::count_if(there, [](const auto& name) { return name.starts_with("format-"); }), 0);
  // What a restart finds half-way is not taken for a segment.
  keeper->expect_large_commits(true);
  ASSERT_TRUE(keeper->take());
  work(*keeper);
  ASSERT_TRUE(keeper->take());
  work(*keeper);
  keeper.reset();
  keeper = open(SegmentId(20));
  const auto after = names();
  EXPECT_EQ(std::ranges::count_if(after, [](const auto& name) { return name.starts_with("format-"); }), 0);
}

TEST_F(SegmentKeeperTest, KeepsOneOnDeckAndTheRestInReserve) {
  const auto keeper = open();
  int notices = 0;
  keeper->set_notice([&] { ++notices; });
  work(*keeper);
  EXPECT_EQ(names(), (std::vector<std::string>{"0000000000000001.segment", "reserve-000002.segment"}));
  EXPECT_EQ(keeper->stats().ready, 2U);
  EXPECT_GE(notices, 2);
  const auto first = keeper->take();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->id(), SegmentId(1));
  EXPECT_EQ(first->size(), kSize);
  EXPECT_EQ(first->file().size().value(), kSize);
  const auto second = keeper->take();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->id(), SegmentId(2));
  EXPECT_EQ(keeper->stats().formatted, 2U);
  work(*keeper);
  EXPECT_EQ(keeper->stats().ready, 2U);
}

TEST_F(SegmentKeeperTest, WhatItHandsOutIsDurableUnderItsNameAtEveryCrashPoint) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    for (std::uint64_t operation = 0;; ++operation) {
      SCOPED_TRACE(::testing::Message() << "seed " << seed << " operation " << operation);
      SimDisk other(seed);
      ASSERT_TRUE(other.files().make_directory("/log"));
      ASSERT_TRUE(other.files().sync_directory("/"));
      other.cut_power_at(other.operations() + operation);
      SegmentKeeperOptions options;
      options.directory = "/log";
      options.segment_size = kSize;
      options.background = false;
      std::vector<SegmentId> taken;
      {
        const auto keeper = SegmentKeeper::open(other.files(), options);
        if (keeper) {
          for (int i = 0; i < 3; ++i)
            if (const auto segment = (*keeper)->take()) taken.push_back(segment->id());
          (*keeper)->recycle(SegmentId(1));
          while ((*keeper)->step()) {
          }
        }
      }
      const bool cut = other.powered_off();
      const auto after = other.crash();
      for (const SegmentId id : taken)
        if (id != SegmentId(1)) {
          const auto file = after->files().open(segment_path("/log", id), OpenMode::read, true);
          ASSERT_TRUE(file) << id.value();
          ASSERT_EQ((*file)->size().value(), kSize);
        }
      options.live = taken;
      std::erase(options.live, SegmentId(1));
      const auto again = SegmentKeeper::open(after->files(), options);
      ASSERT_TRUE(again) << again.error().message();
      const auto next = (*again)->take();
      ASSERT_TRUE(next);
      for (const SegmentId id : taken) ASSERT_GT(next->id(), id);
      if (!cut) break;
    }
  }
}

TEST_F(SegmentKeeperTest, RecyclesUpToABoundAndRemovesTheRest) {
  const auto keeper = open({}, {}, 1);
  std::vector<SegmentId> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(keeper->take()->id());
  for (const SegmentId id : ids) keeper->recycle(id);
  work(*keeper);
  const auto stats = keeper->stats();
  EXPECT_EQ(stats.recycled, 2U);
  EXPECT_EQ(stats.removed, 4U);
  const std::uint64_t formatted = stats.formatted;
  EXPECT_EQ(keeper->take()->id(), SegmentId(7)) << "ids are never used again";
  EXPECT_EQ(keeper->take()->id(), SegmentId(8));
  EXPECT_EQ(keeper->stats().formatted, formatted);
}

TEST_F(SegmentKeeperTest, ADiscardedSegmentIsNotUsedAgain) {
  const auto keeper = open({}, {}, 1);
  const SegmentId id = keeper->take()->id();
  keeper->discard(id);
  work(*keeper);
  EXPECT_EQ(keeper->stats().removed, 1U);
  EXPECT_EQ(keeper->stats().recycled, 0U);
  EXPECT_FALSE(disk.files().exists(segment_path("/log", id)).value());
}

TEST_F(SegmentKeeperTest, TidiesWhatACrashLeft) {
  const auto make = [&](const std::string& name, std::uint64_t size) {
    auto file = disk.files().open("/log/" + name, OpenMode::create, true);
    ASSERT_TRUE(file);
    ASSERT_TRUE((*file)->allocate(size));
  };
  make("0000000000000003.segment", kSize);      // in the log
  make("0000000000000002.segment", kSize / 2);  // in the log, of another size
  make("0000000000000004.segment", kSize);      // superseded
  make("0000000000000005.segment", kSize / 2);  // superseded, of no use
  make("reserve-000007.segment", kSize);
  make("reserve-000008.segment", kSize / 2);
  make("format-000009.tmp", kSize);
  make("notes.txt", 10);
  const auto keeper = open(SegmentId(5), {SegmentId(2), SegmentId(3)});
  EXPECT_EQ(names(), (std::vector<std::string>{"0000000000000002.segment", "0000000000000003.segment", "notes.txt",
                                               "reserve-000007.segment", "reserve-000009.segment"}));
  EXPECT_EQ(keeper->stats().ready, 2U);
  EXPECT_EQ(keeper->take()->id(), SegmentId(6));
}

TEST_F(SegmentKeeperTest, AFullDiskIsAStateWithAReasonUntilAskedAgain) {
  const auto keeper = open();
  int notices = 0;
  keeper->set_notice([&] { ++notices; });
  disk.set_capacity(kSize);
  work(*keeper);
  EXPECT_EQ(keeper->stats().ready, 1U);
  ASSERT_TRUE(keeper->stats().error);
  EXPECT_EQ(keeper->stats().error->code, Code::no_space);
  EXPECT_FALSE(keeper->stats().error->remedy.empty());
  EXPECT_GE(notices, 2);
  EXPECT_FALSE(keeper->step()) << "no busy retrying";
  EXPECT_TRUE(keeper->take());
  EXPECT_FALSE(keeper->take());
  for (const std::string& name : names()) EXPECT_FALSE(name.starts_with("format-")) << "nothing half-done stays";
  keeper->retry();
  EXPECT_FALSE(keeper->take()) << "still full";
  keeper->recycle(SegmentId(1));
  EXPECT_TRUE(keeper->take()) << "a recycled one needs no space";
  disk.set_capacity(1_GiB);
  keeper->retry();
  EXPECT_TRUE(keeper->take());
  EXPECT_FALSE(keeper->stats().error);
}

TEST_F(SegmentKeeperTest, LeavesTheStatedSpaceFree) {
  SegmentKeeperOptions options;
  options.directory = "/log";
  options.segment_size = kSize;
  options.background = false;
  options.free_space_min = 1_GiB - 3 * kSize;
  options.reserve = 10;
  const auto keeper = SegmentKeeper::open(disk.files(), options);
  ASSERT_TRUE(keeper);
  work(**keeper);
  EXPECT_EQ((*keeper)->stats().ready, 3U);
  EXPECT_EQ((*keeper)->stats().error->code, Code::no_space);
}

TEST(SegmentKeeper, WorksOnItsOwnThreadOnRealFiles) {
  std::string directory = (std::filesystem::temp_directory_path() / "tidemark-keeper-XXXXXX").string();
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  std::mutex mutex;
  std::condition_variable changed;
  {
    SegmentKeeperOptions options;
    options.directory = directory;
    options.segment_size = 3_MiB;
    auto opened = SegmentKeeper::open(system_files(), options);
    ASSERT_TRUE(opened) << opened.error().message();
    SegmentKeeper& keeper = **opened;
    keeper.set_notice([&] {
      const std::lock_guard lock(mutex);
      changed.notify_all();
    });
    const auto take = [&] {
      std::shared_ptr<Segment> segment;
      std::unique_lock lock(mutex);
      changed.wait_for(lock, std::chrono::seconds(60), [&] {
        segment = keeper.take();
        return segment != nullptr;
      });
      return segment;
    };
    for (std::uint64_t id = 1; id <= 5; ++id) {
      const auto segment = take();
      ASSERT_TRUE(segment);
      EXPECT_EQ(segment->id(), SegmentId(id));
      AlignedBuffer bytes(3_MiB);
      ASSERT_EQ(segment->file().read_at(0, bytes.span()).value(), 3_MiB);
      if (id <= 2) {
        EXPECT_EQ(std::ranges::count(bytes.span(), std::byte{0}), std::ptrdiff_t(3_MiB));
      }
      keeper.recycle(segment->id());
    }
    EXPECT_FALSE(keeper.stats().error);
  }
  const std::vector<std::string> left = system_files().list(directory).value();
  for (const std::string& name : left) EXPECT_TRUE(system_files().remove(directory + "/" + name));
  EXPECT_TRUE(system_files().remove(directory));
}

TEST_F(SegmentKeeperTest, TheOnlySegmentMayTakeFromWhatIsToStayFree) {
  SegmentKeeperOptions options;
  options.directory = "/log";
  options.segment_size = kSize;
  options.reserve = 2;
  options.free_space_min = 4 * kSize;
  options.free_space_hard = 2 * kSize;
  options.background = false;
  auto keeper = SegmentKeeper::open(disk.files(), std::move(options));
  ASSERT_TRUE(keeper) << keeper.error().message();
  disk.set_capacity(3 * kSize);
  work(**keeper);
  EXPECT_EQ((*keeper)->stats().ready, 1U) << "one, as there was none; not the second one";
  ASSERT_TRUE((*keeper)->stats().error);
  EXPECT_EQ((*keeper)->stats().error->code, Code::no_space);
  const auto first = (*keeper)->take();
  ASSERT_TRUE(first);
  (*keeper)->retry();
  work(**keeper);
  EXPECT_FALSE((*keeper)->take()) << "less than the hard limit would be left";
  (*keeper)->recycle(first->id());
  work(**keeper);
  EXPECT_TRUE((*keeper)->take()) << "what comes back is used at once";
}

}  // namespace
}  // namespace tidemark::storage
