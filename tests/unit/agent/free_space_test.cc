// What the kernel says is free, on real file systems, and what is made of it.
#include "agent/free_space.h"

#include <gtest/gtest.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>

#include <cstdlib>
#include <fstream>

#include "agent/source.h"
#include "base/limits.h"
#include "tests/unit/agent/crash_rig.h"
#include "tests/unit/agent/loop_device.h"

namespace tidemark::agent {
namespace {

constexpr std::uint64_t kChunk = limits::kDigestChunkSize;

bool run(const std::string& command) { return std::system((command + " >/dev/null 2>&1").c_str()) == 0; }

std::vector<ChunkRange> chunks(std::vector<DataRange> ranges, std::uint64_t size) {
  return whole_chunks(ranges, size).list();
}
std::uint64_t bytes(const std::vector<DataRange>& ranges) {
  std::uint64_t sum = 0;
  for (const DataRange& range : ranges) sum += range.end - range.begin;
  return sum;
}

TEST(FreeSpace, OnlyWholeChunksCount) {
  EXPECT_TRUE(chunks({}, 1 << 20).empty());
  EXPECT_TRUE(chunks({{1, 2 * kChunk - 1}}, 1 << 20).empty());
  EXPECT_EQ(chunks({{1, 2 * kChunk}}, 1 << 20), (std::vector<ChunkRange>{{1, 1}}));
  EXPECT_EQ(chunks({{0, kChunk}}, 1 << 20), (std::vector<ChunkRange>{{0, 1}}));
  EXPECT_EQ(chunks({{kChunk - 4096, 4 * kChunk + 4096}}, 1 << 20), (std::vector<ChunkRange>{{1, 3}}));
  EXPECT_EQ(chunks({{0, 10 * kChunk}}, 3 * kChunk + 4096), (std::vector<ChunkRange>{{0, 3}}))
      << "a disk's last chunk, a short one, is read";
  EXPECT_TRUE(chunks({{10 * kChunk, 20 * kChunk}}, 3 * kChunk).empty());
}

TEST(FreeSpace, WhatTouchesIsOneAndTheLargestStay) {
  const auto same = [](const std::vector<DataRange>& a, std::vector<std::pair<std::uint64_t, std::uint64_t>> b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](const DataRange& x, const auto& y) {
             return x.begin == y.first && x.end == y.second;
           });
  };
  EXPECT_TRUE(same(merged({{5, 9}, {0, 5}, {20, 21}, {30, 30}, {7, 10}}, 10), {{0, 10}, {20, 21}}));
  EXPECT_TRUE(same(merged({{0, 5}, {10, 11}, {20, 30}, {40, 42}}, 2), {{0, 5}, {20, 30}}));
}

// A loop device whose partitions the kernel was told of.
class Disk : public testing::Test {
 protected:
  static constexpr std::uint64_t kSize = 256 << 20;
  void SetUp() override {
    if (!loop_.why_not().empty()) GTEST_SKIP() << loop_.why_not();
  }
  void TearDown() override {
    for (const std::string& place : mounted_) EXPECT_TRUE(run("umount " + place));
    for (const int number : partitions_) (void)change(BLKPG_DEL_PARTITION, number, 0, 0);
  }
  bool change(int what, int number, std::uint64_t begin, std::uint64_t size) {
    blkpg_partition partition{};
    partition.pno = number;
    partition.start = static_cast<long long>(begin);
    partition.length = static_cast<long long>(size);
    blkpg_ioctl_arg argument{what, 0, sizeof partition, &partition};
    return ::ioctl(loop_.fd(), BLKPG, &argument) == 0;
  }
  // The device of a new partition.
  std::string partition(int number, std::uint64_t begin, std::uint64_t size) {
    EXPECT_TRUE(change(BLKPG_ADD_PARTITION, number, begin, size));
    partitions_.push_back(number);
    const std::string path = loop_.path() + "p" + std::to_string(number);
    for (int i = 0; i < 100 && !std::filesystem::exists(path); ++i) ::usleep(20'000);
    return path;
  }
  std::string mount(const std::string& device, const std::string& make, const std::string& options = "rw") {
    const std::string place = temp_ / ("m" + std::to_string(mounted_.size()));
    std::filesystem::create_directories(place);
    EXPECT_TRUE(make.empty() || run(make + " " + device)) << make;
    if (!run("mount -o " + options + " " + device + " " + place)) return {};
    mounted_.push_back(place);
    return place;
  }
  std::vector<DataRange> unused(const std::string& path) {
    auto source = open_source(path);
    EXPECT_TRUE(source);
    return source ? (*source)->unused() : std::vector<DataRange>{};
  }
  // Of what the device has there, is any byte of this file's?
  static bool holds(const std::string& device, const DataRange& range, char letter) {
    const FileDescriptor fd(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
    std::string bytes(range.end - range.begin, '\0');
    EXPECT_EQ(::pread(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(range.begin)),
              static_cast<ssize_t>(bytes.size()));
    return bytes.find(std::string(512, letter)) != std::string::npos;
  }

  TempDir temp_;
  LoopDevice loop_{temp_, "disk", kSize};
  std::vector<std::string> mounted_;
  std::vector<int> partitions_;
};

constexpr char kExt4[] = "mkfs.ext4 -q -F";
constexpr char kXfs[] = "mkfs.xfs -q -f --unsupported -m rmapbt=0";
constexpr char kXfsRmap[] = "mkfs.xfs -q -f --unsupported -m rmapbt=1";

TEST_F(Disk, FreeSpaceOfAMountedFileSystemAndNothingOfItsFiles) {
  for (const char* make : {kExt4, kXfs, kXfsRmap}) {
    SCOPED_TRACE(make);
    const std::string place = mount(loop_.path(), make);
    if (place.empty()) GTEST_SKIP() << "cannot be mounted here";
    std::ofstream(place + "/kept") << std::string(20 << 20, 'k');
    std::ofstream(place + "/gone") << std::string(20 << 20, 'g');
    ::sync();
    std::filesystem::remove(place + "/gone");
    // XFS gives the blocks of a deleted file back in the background.
    std::vector<DataRange> ranges;
    bool gone = false;
    for (int i = 0; i < 500 && !gone; ++i) {
      ::usleep(20'000);
      ranges = unused(loop_.path());
      for (const DataRange& range : ranges) gone = gone || holds(loop_.path(), range, 'g');
    }
    EXPECT_TRUE(gone) << "what was deleted is free";
    EXPECT_GT(bytes(ranges), kSize / 2);
    EXPECT_LT(bytes(ranges), kSize - (20 << 20));
    for (const DataRange& range : ranges) EXPECT_FALSE(holds(loop_.path(), range, 'k'));
    // Standing still it answers as well, at once.
    ASSERT_TRUE(run("fsfreeze -f " + place));
    run("echo 3 > /proc/sys/vm/drop_caches");
    const auto from = std::chrono::steady_clock::now();
    EXPECT_EQ(bytes(unused(loop_.path())), bytes(ranges));
    EXPECT_LT(std::chrono::steady_clock::now() - from, std::chrono::seconds(20));
    ASSERT_TRUE(run("fsfreeze -u " + place));
    ASSERT_TRUE(run("umount " + place));
    mounted_.clear();
    EXPECT_TRUE(unused(loop_.path()).empty()) << "not mounted it is nobody's to tell";
  }
}

TEST_F(Disk, AFileSystemOnAPartitionLiesWhereThePartitionDoes) {
  // Not at a multiple of a chunk.
  constexpr std::uint64_t kBegin = (1 << 20) + 12'288, kLength = 128 << 20;
  const std::string device = partition(1, kBegin, kLength);
  const std::string other = partition(2, kBegin + kLength, 32 << 20);
  const std::string place = mount(device, kExt4);
  if (place.empty()) GTEST_SKIP() << "cannot be mounted here";
  std::ofstream(place + "/kept") << std::string(20 << 20, 'k');
  ::sync();
  const auto on_disk = unused(loop_.path()), on_partition = unused(device);
  ASSERT_FALSE(on_partition.empty());
  ASSERT_EQ(on_disk.size(), on_partition.size());
  for (std::size_t i = 0; i < on_disk.size(); ++i) {
    EXPECT_EQ(on_disk[i].begin, on_partition[i].begin + kBegin);
    EXPECT_EQ(on_disk[i].end, on_partition[i].end + kBegin);
    EXPECT_FALSE(holds(loop_.path(), on_disk[i], 'k'));
  }
  EXPECT_LE(on_disk.back().end, kBegin + kLength);
  EXPECT_TRUE(unused(other).empty());
}

TEST_F(Disk, WhatOverlapsWithAPartitionIsLeftAlone) {
  const std::string place = mount(loop_.path(), kExt4);
  if (place.empty()) GTEST_SKIP() << "cannot be mounted here";
  EXPECT_FALSE(unused(loop_.path()).empty());
  partition(1, 64 << 20, 1 << 20);
  EXPECT_TRUE(unused(loop_.path()).empty());
}

TEST_F(Disk, SwapIsUnusedButForItsFirstChunk) {
  constexpr std::uint64_t kBegin = 1 << 20, kLength = 32 << 20;
  const std::string device = partition(1, kBegin, kLength);
  EXPECT_TRUE(run("mkswap " + device));
  EXPECT_TRUE(unused(loop_.path()).empty()) << "it is not in use";
  if (::swapon(device.c_str(), 0) != 0) GTEST_SKIP() << "no swapping here";
  const auto on_disk = unused(loop_.path()), on_partition = unused(device);
  ASSERT_EQ(::swapoff(device.c_str()), 0);
  ASSERT_EQ(on_disk.size(), 1U);
  EXPECT_EQ(on_disk[0].begin, kBegin + kChunk);
  EXPECT_EQ(on_disk[0].end, kBegin + kLength);
  ASSERT_EQ(on_partition.size(), 1U);
  EXPECT_EQ(on_partition[0].begin, kChunk);
  EXPECT_EQ(on_partition[0].end, kLength);
}

TEST_F(Disk, SwapThatEndsBeforeItsPartitionDoesNotReachBeyond) {
  const std::string device = partition(1, 1 << 20, 32 << 20);
  ASSERT_TRUE(run("mkswap " + device + " 8192"));
  if (::swapon(device.c_str(), 0) != 0) GTEST_SKIP() << "no swapping here";
  const auto ranges = unused(device);
  ASSERT_EQ(::swapoff(device.c_str()), 0);
  ASSERT_EQ(ranges.size(), 1U);
  EXPECT_EQ(ranges[0].end, 8U << 20);
}

TEST_F(Disk, OneWithoutItsLogOrWithAFailedOneIsNotBelieved) {
  for (const char* make : {kExt4, kXfs}) {
    SCOPED_TRACE(make);
    std::string place = mount(loop_.path(), make);
    if (place.empty()) GTEST_SKIP() << "cannot be mounted here";
    EXPECT_FALSE(unused(loop_.path()).empty());
    ASSERT_TRUE(run("mount -o remount,ro " + place));
    EXPECT_TRUE(unused(loop_.path()).empty()) << "read-only";
    ASSERT_TRUE(run("umount " + place));
    mounted_.clear();
    place = mount(loop_.path(), "", "ro,norecovery");
    EXPECT_TRUE(unused(loop_.path()).empty());
    ASSERT_TRUE(run("umount " + place));
    mounted_.clear();
    place = mount(loop_.path(), "");
    EXPECT_FALSE(unused(loop_.path()).empty());
    if (!run("xfs_io -x -c shutdown " + place)) GTEST_SKIP() << "cannot be shut down here";
    EXPECT_TRUE(unused(loop_.path()).empty()) << "shut down";
    ASSERT_TRUE(run("umount " + place));
    mounted_.clear();
  }
}

TEST_F(Disk, OneWhoseLogLiesElsewhereIsReadWhole) {
  LoopDevice log(temp_, "log", 64 << 20);
  SKIP_WITHOUT_LOOP(log);
  const std::string place =
      mount(loop_.path(), "mkfs.xfs -q -f --unsupported -l logdev=" + log.path() + ",size=16m", "logdev=" + log.path());
  if (place.empty()) GTEST_SKIP() << "cannot be mounted here";
  EXPECT_TRUE(unused(loop_.path()).empty());
  ASSERT_TRUE(run("umount " + place));
  mounted_.clear();
  ASSERT_TRUE(run("mke2fs -q -F -O journal_dev -b 4096 " + log.path()));
  ASSERT_FALSE(mount(loop_.path(), "mkfs.ext4 -q -F -b 4096 -J device=" + log.path()).empty());
  EXPECT_TRUE(unused(loop_.path()).empty());
  ASSERT_TRUE(run("umount " + mounted_.back()));
  mounted_.clear();
}

TEST_F(Disk, AnotherFileSystemIsReadWhole) {
  if (mount(loop_.path(), "mkfs.ext2 -q -F").empty()) GTEST_SKIP() << "cannot be mounted here";
  EXPECT_TRUE(unused(loop_.path()).empty());
}

class Crash : public testing::TestWithParam<std::array<const char*, 3>> {};

TEST_P(Crash, LeavesEveryFileGoneOrWhole) {
  CrashRig rig(GetParam()[0], GetParam()[1], GetParam()[2]);
  if (!rig.why_not().empty()) GTEST_SKIP() << rig.why_not();
  std::uint64_t unused = 0;
  for (int round = 0; round < 3; ++round) EXPECT_EQ(rig.crash(unused), "") << "round " << round;
  EXPECT_GT(unused, CrashRig::kSize);
}

std::string kind_name(const testing::TestParamInfo<std::array<const char*, 3>>& kind) {
  constexpr std::array kNames{"ext4", "ext4_writeback", "xfs", "xfs_rmap"};
  return kNames.at(kind.index);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Crash,
                         testing::Values(std::array{kExt4, "ext4", "rw"}, std::array{kExt4, "ext4", "data=writeback"},
                                         std::array{kXfs, "xfs", "rw"}, std::array{kXfsRmap, "xfs", "rw"}),
                         kind_name);

}  // namespace
}  // namespace tidemark::agent
