// What the in-kernel program marks, on real loop devices. Needs root; skipped where that, loop devices or eBPF cannot
// be had.
#include "agent/kernel_marks.h"

#include <bpf/bpf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <atomic>
#include <bit>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <thread>

#include "agent/block_device.h"
#include "agent/pins.h"
#include "base/aligned_buffer.h"
#include "base/random.h"
#include "tests/unit/agent/loop_device.h"

namespace tidemark::agent {
namespace {

using testing::IsEmpty;
using Granules = std::set<std::uint64_t>;

constexpr std::uint64_t kGranule = 4096;
constexpr std::uint64_t kSize = 16 << 20;
const std::string kBoot(16, 'b');

class KernelMarksTest : public testing::Test {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_LOOP(loop_);
    std::filesystem::create_directories(dir_ / "bpf");
    mounted_ = ::mount("bpf", (dir_ / "bpf").c_str(), "bpf", 0, nullptr) == 0;
    if (!mounted_) GTEST_SKIP() << "no BPF file system can be mounted here";
  }
  void TearDown() override {
    marks_.reset();
    for (const auto& [at, size] : mapped_) ::munmap(at, size);
    (void)KernelMarks::unpin(pins());
    for (int i = 0; mounted_ && ::umount((dir_ / "bpf").c_str()) != 0 && i < 100; ++i) ::usleep(20'000);
  }

  std::filesystem::path pins() const { return dir_ / "bpf/test"; }
  static TrackedDisk describe(const std::string& path) {
    std::uint64_t size = 0;
    const FileDescriptor fd(::open(path.c_str(), O_RDONLY));
    EXPECT_EQ(::ioctl(fd.get(), BLKGETSIZE64, &size), 0) << path;
    const auto tracked = describe_tracked(OsPaths{}, path, "identity of " + path, size);
    EXPECT_TRUE(tracked) << tracked.error().message();
    return tracked.value_or(TrackedDisk{});
  }
  void track(const std::vector<std::string>& paths) {
    std::vector<TrackedDisk> disks;
    for (const std::string& path : paths) disks.push_back(describe(path));
    marks_.reset();
    auto opened = KernelMarks::open(pins(), disks, kBoot);
    ASSERT_TRUE(opened) << opened.error().message();
    marks_ = std::move(*opened);
  }
  // These are not seen from here on.
  void detach(const std::set<Tracepoint>& points) {
    const std::uint64_t words = marks_->control().words;
    marks_.reset();
    std::set<__u32> gone;
    for (const PinnedProgram& program : kPinnedPrograms) {
      if (!points.contains(program.point)) continue;
      const FileDescriptor link(::bpf_obj_get((pins() / program.name).c_str()));
      bpf_link_info info{};
      __u32 length = sizeof info;
      ASSERT_EQ(::bpf_obj_get_info_by_fd(link.get(), &info, &length), 0) << program.name;
      gone.insert(info.prog_id);
      ASSERT_TRUE(std::filesystem::remove(pins() / program.name));
    }
    // What nobody holds is taken off its tracepoint at some later moment.
    for (const __u32 id : gone) {
      while (FileDescriptor(::bpf_prog_get_fd_by_id(id))) ::usleep(20'000);
    }
    // Half of it would not be taken up: it is looked at past KernelMarks::open.
    auto* control = map<track_control>("control", sizeof(track_control));
    auto* counters = map<track_counters>("counters", 1);
    auto* marks = map<std::uint64_t>("marks", TRACK_SETS * words * 8);
    const auto cpus = static_cast<std::size_t>(::sysconf(_SC_NPROCESSORS_CONF));
    flights_ = {map<track_bucket>("in_flight", sizeof(track_bucket) * TRACK_BUCKETS), TRACK_BUCKETS};
    marks_ = KernelMarks::over({*control, {counters, cpus}, {marks, TRACK_SETS * words}, {}, {}}, {kSize});
    take();
  }
  template <typename T>
  T* map(const char* name, std::size_t size) {
    const FileDescriptor fd(::bpf_obj_get((pins() / name).c_str()));
    size = (size + 4095) / 4096 * 4096;
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    EXPECT_NE(at, MAP_FAILED) << name;
    mapped_.push_back({at, size});
    return static_cast<T*>(at);
  }

  // What was marked since the last call.
  Granules take(std::size_t disk = 0) {
    marks_->next_generation();
    EXPECT_TRUE(marks_->settle());
    Granules granules;
    for (std::size_t each = 0; each < marks_->disks(); ++each) {
      auto words = marks_->words(marks_->resting(), each);
      for (std::uint64_t i = 0; i < words.size() * 64; ++i) {
        if (each == disk && (words[i / 64] >> (i % 64) & 1) != 0) granules.insert(i);
      }
      if (each == disk) std::fill(words.begin(), words.end(), 0);
    }
    return granules;
  }
  static Granules range(std::uint64_t first, std::uint64_t count) {
    Granules granules;
    for (std::uint64_t i = 0; i < count; ++i) granules.insert(first + i);
    return granules;
  }

  Granules in_flight() const {
    Granules granules;
    for (const track_carried& place : marks_->in_flight()) granules.merge(range(place.first, place.count));
    return granules;
  }

  // Does what is done leave nothing in flight? The end of a write may escape (docs/agent.md), but not each time.
  bool ends(const std::function<void()>& write) const {
    for (int attempt = 0; attempt < 5; ++attempt) {
      const std::size_t before = in_flight().size();
      write();
      if (in_flight().size() <= before) return true;
    }
    return false;
  }

  void write(std::uint64_t at_sector, int fill, std::uint64_t sectors) {
    write_to(loop_.path(), at_sector, fill, sectors);
  }
  static void write_to(const std::string& path, std::uint64_t at_sector, int fill, std::uint64_t sectors) {
    const FileDescriptor fd(::open(path.c_str(), O_RDWR | O_DIRECT));
    AlignedBuffer buffer(sectors * 512);
    std::memset(buffer.data(), fill, sectors * 512);
    ASSERT_EQ(::pwrite(fd.get(), buffer.data(), sectors * 512, static_cast<off_t>(at_sector * 512)),
              static_cast<ssize_t>(sectors * 512))
        << path;
  }
  static void clear(const std::string& path, unsigned long how, std::uint64_t first_granule, std::uint64_t granules) {
    const FileDescriptor fd(::open(path.c_str(), O_RDWR));
    std::uint64_t place[2] = {first_granule * kGranule, granules * kGranule};
    ASSERT_EQ(::ioctl(fd.get(), how, place), 0) << path;
  }

  // Every kind of operation, at places that tell their marks apart.
  void expect_exact_marks() {
    write(9, 1, 1);
    EXPECT_EQ(take(), range(1, 1)) << "a sector within a granule";
    write(3 * 8 + 1, 2, 16);
    EXPECT_EQ(take(), range(3, 3)) << "two granules' worth, from the middle of one on";
    write(100 * 8, 3, 1000 * 8);
    EXPECT_EQ(take(), range(100, 1000)) << "many words";
    clear(loop_.path(), BLKDISCARD, 10, 4);
    EXPECT_EQ(take(), range(10, 4)) << "a discard";
    clear(loop_.path(), BLKDISCARD, 0, kSize / kGranule);
    EXPECT_EQ(take(), range(0, kSize / kGranule)) << "a discard of everything";
    clear(loop_.path(), BLKZEROOUT, 63, 66);
    EXPECT_EQ(take(), range(63, 66)) << "zeroes";
    write(kSize / 512 - 1, 4, 1);
    EXPECT_EQ(take(), range(kSize / kGranule - 1, 1)) << "the last sector";
    const FileDescriptor buffered(::open(loop_.path().c_str(), O_RDWR));
    const std::string bytes(20'000, 'x');
    ASSERT_EQ(::pwrite(buffered.get(), bytes.data(), bytes.size(), 50 * kGranule + 1000), 20'000);
    ASSERT_EQ(::fsync(buffered.get()), 0);
    EXPECT_EQ(take(), range(50, 6)) << "out of the page cache";
    ASSERT_EQ(::fsync(buffered.get()), 0);
    std::string read(8192, '\0');
    ASSERT_EQ(::pread(buffered.get(), read.data(), read.size(), 0), 8192);
    EXPECT_THAT(take(), IsEmpty()) << "a flush, a read";
  }

  TempDir dir_;
  LoopDevice loop_{dir_, "disk", kSize};
  bool mounted_ = false;
  std::unique_ptr<KernelMarks> marks_;
  std::span<track_bucket> flights_;  // once something was detached
  std::vector<std::pair<void*, std::size_t>> mapped_;
};

TEST_F(KernelMarksTest, EveryOperationMarksItsGranulesAndNoOthers) {
  track({loop_.path()});
  expect_exact_marks();
  EXPECT_EQ(marks_->control().missed, 0u);
  EXPECT_GE(marks_->writes(), 7u);
}

TEST_F(KernelMarksTest, WhatEndsWithoutHavingBeenSubmittedIsAMiss) {
  track({loop_.path()});
  detach({Tracepoint::queue, Tracepoint::remap});
  EXPECT_EQ(marks_->control().missed, 0u);
  write(8, 1, 8);
  EXPECT_EQ(marks_->control().missed, TRACK_MISSED_SUBMISSION);
}

TEST_F(KernelMarksTest, WhatNeverEndsStaysInFlight) {
  track({loop_.path()});
  detach({Tracepoint::end});
  expect_exact_marks();
  EXPECT_EQ(marks_->control().missed, 0u) << "the ends are not needed for the marks";
  write(8, 1, 8);
  std::set<std::uint64_t> sectors;
  for (const track_bucket& bucket : flights_) {
    for (unsigned slot = 0; slot < TRACK_SLOTS; ++slot) {
      if (bucket.bio[slot] != 0) sectors.insert(bucket.place[slot].sector);
    }
  }
  EXPECT_TRUE(sectors.contains(8));
}

// The loop device's file lies on a file system that stands still: what is written does not end.
TEST_F(KernelMarksTest, WhatIsInFlightIsKnownUntilItEnds) {
  LoopDevice below(dir_, "below", 32 << 20);
  SKIP_WITHOUT_LOOP(below);
  if (!below.mount_ext4(dir_ / "ext4")) GTEST_SKIP() << "ext4 cannot be had here";
  LoopDevice loop(dir_, "ext4/disk", kSize);
  SKIP_WITHOUT_LOOP(loop);
  track({loop.path()});
  EXPECT_TRUE(ends([&] { write_to(loop.path(), 0, 1, 8); }));
  take();
  const FileDescriptor folder(::open((dir_ / "ext4").c_str(), O_RDONLY | O_DIRECTORY));
  ASSERT_EQ(::ioctl(folder.get(), FIFREEZE, 0), 0);
  std::thread writer([&] { write_to(loop.path(), 40 * 8, 2, 16); });
  while (!in_flight().contains(40)) std::this_thread::yield();
  EXPECT_TRUE(in_flight().contains(41));
  EXPECT_EQ(take(), range(40, 2)) << "and marked, once";
  EXPECT_THAT(take(), IsEmpty());
  EXPECT_TRUE(in_flight().contains(40));
  ASSERT_EQ(::ioctl(folder.get(), FITHAW, 0), 0);
  writer.join();
  EXPECT_THAT(take(), IsEmpty()) << "an end marks nothing";
  EXPECT_TRUE(ends([&] { write_to(loop.path(), 40 * 8, 2, 16); }));
  EXPECT_EQ(marks_->control().missed, 0u);
}

TEST_F(KernelMarksTest, WhatIsSplitEndsWhenAllOfItDoes) {
  const auto queue = std::filesystem::path("/sys/block") / std::filesystem::path(loop_.path()).filename() / "queue";
  std::ofstream(queue / "max_sectors_kb") << 4;
  std::string most;
  std::ifstream(queue / "max_sectors_kb") >> most;
  ASSERT_EQ(most, "4");
  track({loop_.path()});
  EXPECT_TRUE(ends([&] { write(64, 1, 2048); }));
  EXPECT_EQ(take(), range(8, 256));
  EXPECT_TRUE(ends([&] { clear(loop_.path(), BLKDISCARD, 0, kSize / kGranule); }));
  EXPECT_EQ(take(), range(0, kSize / kGranule));
  EXPECT_EQ(marks_->control().missed, 0u) << "a part of a write is none of its own";
}

// Many writers at once, flips all the while: whoever has been told that a write is done finds it marked. What still had
// a mark of an earlier write is not judged.
void hammer(KernelMarks& marks, const std::string& path, std::uint64_t rounds) {
  constexpr std::uint64_t kThreads = 4;
  constexpr std::uint64_t kStripe = kSize / kGranule / kThreads;  // of one thread, which alone writes there
  std::atomic<bool> stop = false;
  std::atomic<std::uint64_t> unmarked = 0, judged = 0, failed = 0;
  std::vector<std::atomic<std::uint64_t>> taken(kSize / kGranule);  // times that a granule's mark was taken
  const auto marked = [&](std::uint64_t granule) {
    return marks.marked(0, 0, granule, 1) + marks.marked(1, 0, granule, 1) != 0;
  };
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Random random(t + 1);
      const FileDescriptor fd(::open(path.c_str(), O_RDWR | O_DIRECT));
      AlignedBuffer buffer(64 * kGranule);
      while (!stop) {
        const std::uint64_t first = t * kStripe + random.below(kStripe - 64), count = 1 + random.below(64);
        std::map<std::uint64_t, std::uint64_t> before;
        for (std::uint64_t granule = first; granule < first + count; ++granule) {
          if (!marked(granule)) before[granule] = taken[granule];
        }
        std::uint64_t place[2] = {first * kGranule, count * kGranule};
        const bool done = random.below(8) == 0
                              ? ::ioctl(fd.get(), random.below(2) == 0 ? BLKDISCARD : BLKZEROOUT, place) == 0
                              : ::pwrite(fd.get(), buffer.data(), place[1], static_cast<off_t>(place[0])) ==
                                    static_cast<ssize_t>(place[1]);
        if (!done) ++failed;
        for (const auto& [granule, times] : before) {
          if (!marked(granule) && taken[granule] == times) ++unmarked;
        }
        judged += before.size();
      }
    });
  }
  for (std::uint64_t round = 0; round < rounds || judged < 100 * rounds; ++round) {
    marks.next_generation();
    if (!marks.settle()) break;
    auto words = marks.words(marks.resting(), 0);
    for (std::uint64_t word = 0; word < words.size(); ++word) {
      for (std::uint64_t bits = words[word]; bits != 0; bits &= bits - 1)
        ++taken[word * 64 + static_cast<std::uint64_t>(std::countr_zero(bits))];
      __atomic_store_n(&words[word], 0, __ATOMIC_SEQ_CST);
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed.load(), 0u);
  EXPECT_EQ(unmarked.load(), 0u) << "of " << judged.load();
}

TEST_F(KernelMarksTest, WhatIsDoneIsMarkedUnderLoad) {
  track({loop_.path()});
  hammer(*marks_, loop_.path(), 3000);
}

class PartitionTest : public KernelMarksTest {
 protected:
  void SetUp() override {
    KernelMarksTest::SetUp();
    if (IsSkipped()) return;
    if (!add(1, 1 << 20, 4 << 20) || !add(2, 5 << 20, 8 << 20)) GTEST_SKIP() << "this loop device takes no partitions";
  }
  void TearDown() override {
    KernelMarksTest::TearDown();
    for (int number : {1, 2}) {
      blkpg_partition partition{};
      partition.pno = number;
      blkpg_ioctl_arg argument{BLKPG_DEL_PARTITION, 0, sizeof partition, &partition};
      (void)::ioctl(loop_.fd(), BLKPG, &argument);
    }
  }
  bool add(int number, long long start, long long size) {
    blkpg_partition partition{};
    partition.start = start;
    partition.length = size;
    partition.pno = number;
    blkpg_ioctl_arg argument{BLKPG_ADD_PARTITION, 0, sizeof partition, &partition};
    if (::ioctl(loop_.fd(), BLKPG, &argument) != 0) return false;
    for (int i = 0; i < 100 && ::access(part(number).c_str(), F_OK) != 0; ++i) ::usleep(20'000);
    return ::access(part(number).c_str(), F_OK) == 0;
  }
  std::string part(int number) const { return loop_.path() + "p" + std::to_string(number); }
};

TEST_F(PartitionTest, MarksAreOfThePartitionWhicheverWayItIsWritten) {
  track({part(2)});
  write_to(part(2), 8, 1, 8);
  EXPECT_EQ(take(), range(1, 1));
  write((5 << 20) / 512 + 16, 1, 8);
  EXPECT_EQ(take(), range(2, 1)) << "through the whole disk";
  write_to(part(1), 0, 1, (4 << 20) / 512);
  write((13 << 20) / 512, 1, 8);
  write(0, 1, 8);
  EXPECT_THAT(take(), IsEmpty()) << "beside it";
  write((5 << 20) / 512 - 8, 1, 16);
  EXPECT_EQ(take(), range(0, 1)) << "across its beginning";
  write((13 << 20) / 512 - 8, 1, 16);
  EXPECT_EQ(take(), range((8 << 20) / kGranule - 1, 1)) << "across its end";
  clear(part(2), BLKDISCARD, 5, 3);
  EXPECT_EQ(take(), range(5, 3));
  clear(loop_.path(), BLKZEROOUT, 0, kSize / kGranule);
  EXPECT_EQ(take(), range(0, (8 << 20) / kGranule));
}

TEST_F(PartitionTest, SeveralPartitionsOfOneDiskAndTheDiskItself) {
  track({part(1), part(2), loop_.path()});
  write_to(part(1), 0, 1, 8);
  EXPECT_EQ(take(0), range(0, 1));
  write_to(part(2), 24, 1, 8);
  EXPECT_EQ(take(1), range(3, 1));
  take(2);
  write((5 << 20) / 512 - 8, 1, 16);
  marks_->next_generation();  // one set holds the marks of all disks
  ASSERT_TRUE(marks_->settle());
  EXPECT_EQ(marks_->marked(marks_->resting(), 0, (4 << 20) / kGranule - 1, 1), 1u);
  EXPECT_EQ(marks_->marked(marks_->resting(), 1, 0, 1), 1u);
  EXPECT_EQ(marks_->marked(marks_->resting(), 2, (5 << 20) / kGranule - 1, 2), 2u);
}

TEST_F(KernelMarksTest, GoesOnMarkingWithoutAnAgentAndIsTakenUpByTheNext) {
  track({loop_.path()});
  EXPECT_FALSE(marks_->adopted());
  const auto since = marks_->control().since_us;
  write(0, 1, 8);
  marks_.reset();
  write(80, 1, 8);
  track({loop_.path()});
  EXPECT_TRUE(marks_->adopted());
  EXPECT_EQ(marks_->control().since_us, since);
  EXPECT_EQ(take(), (Granules{0, 10}));
}

TEST_F(KernelMarksTest, MarksOfAnotherBootOrOtherDisksAreNotTakenUp) {
  LoopDevice other(dir_, "other", 4 << 20);
  SKIP_WITHOUT_LOOP(other);
  track({loop_.path()});
  write(0, 1, 8);
  marks_.reset();
  marks_ = std::move(*KernelMarks::open(pins(), {describe(loop_.path())}, std::string(16, 'c')));
  EXPECT_FALSE(marks_->adopted());
  EXPECT_NE(marks_->why_new().find("another boot"), std::string::npos) << marks_->why_new();
  EXPECT_THAT(take(), IsEmpty());
  marks_.reset();
  track({loop_.path(), other.path()});
  EXPECT_FALSE(marks_->adopted()) << "another boot again, and other disks";
  write_to(other.path(), 8, 1, 8);
  EXPECT_EQ(take(1), range(1, 1));
  // The same path, another disk: the kernel gave it a number of its own.
  auto disk = describe(other.path());
  disk.diskseq += 1;
  marks_.reset();
  marks_ = std::move(*KernelMarks::open(pins(), {describe(loop_.path()), disk}, kBoot));
  EXPECT_FALSE(marks_->adopted());
  EXPECT_NE(marks_->why_new().find("another disk"), std::string::npos) << marks_->why_new();
}

TEST_F(KernelMarksTest, TwoAgentsDoNotUseTheSameMarks) {
  track({loop_.path()});
  const auto second = KernelMarks::open(pins(), {describe(loop_.path())}, kBoot);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::unavailable) << second.error().message();
  EXPECT_EQ(KernelMarks::unpin(pins()).error().code, Code::unavailable);
  write(0, 1, 8);
  EXPECT_EQ(take(), range(0, 1)) << "the first goes on";
  track({loop_.path()});
  EXPECT_TRUE(marks_->adopted());
}

TEST_F(KernelMarksTest, HalfOfWhatWasPinnedIsNotTakenUp) {
  track({loop_.path()});
  marks_.reset();
  ASSERT_TRUE(std::filesystem::remove(pins() / "queue_2"));
  track({loop_.path()});
  EXPECT_FALSE(marks_->adopted());
  write(8, 1, 8);
  EXPECT_EQ(take(), range(1, 1));
}

TEST_F(KernelMarksTest, UnpinnedNothingStaysInTheKernel) {
  track({loop_.path()});
  marks_.reset();
  ASSERT_TRUE(KernelMarks::unpin(pins()));
  EXPECT_FALSE(std::filesystem::exists(pins()));
  ASSERT_TRUE(KernelMarks::unpin(pins())) << "nothing to do is no error";
}

TEST_F(KernelMarksTest, WhatCannotBeTrackedIsRefusedInWords) {
  const auto file = describe_tracked(OsPaths{}, loop_.file().string(), "file", kSize);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, Code::unsupported);
  EXPECT_NE(file.error().remedy.find("digests"), std::string::npos) << file.error().message();
}

// What sysfs says of a disk decides; the disk is a loop device in each case.
TEST_F(KernelMarksTest, DisksWhoseWritesCannotAllBeSeenAreRefused) {
  namespace fs = std::filesystem;
  int number = 0;
  const auto describe = [&](const std::string& name, const std::vector<std::pair<std::string, std::string>>& files) {
    const fs::path sys = dir_ / ("sys" + std::to_string(number++));
    const fs::path disk = sys / "devices" / name;
    fs::create_directories(disk);
    for (const auto& [file, text] : files) {
      fs::create_directories((disk / file).parent_path());
      std::ofstream(disk / file) << text << '\n';
    }
    struct stat status{};
    EXPECT_EQ(::stat(loop_.path().c_str(), &status), 0);
    fs::create_directories(sys / "class/block");
    fs::create_directories(sys / "dev/block");
    fs::create_directory_symlink(disk, sys / "class/block" / name);
    fs::create_directory_symlink(
        disk,
        sys / "dev/block" / (std::to_string(major(status.st_rdev)) + ":" + std::to_string(minor(status.st_rdev))));
    const auto tracked = describe_tracked(OsPaths{.sys = sys, .proc = "/proc"}, loop_.path(), "identity", kSize);
    if (tracked) return std::string();
    EXPECT_EQ(tracked.error().code, Code::unsupported);
    EXPECT_NE(tracked.error().remedy.find("digests"), std::string::npos) << tracked.error().message();
    return tracked.error().message();
  };
  EXPECT_EQ(describe("sda", {{"queue/dax", "0"}}), "");
  EXPECT_EQ(describe("sda", {{"holders/dm-0/dm/uuid", "LVM-x"}}), "") << "LVM on it writes through it";
  EXPECT_NE(describe("sda", {{"holders/dm-0/dm/uuid", "LVM-x"}, {"holders/dm-1/dm/uuid", "mpath-3600"}}), "");
  EXPECT_NE(describe("dm-3", {{"dm/uuid", "LVM-x"}}), "");
  EXPECT_NE(describe("pmem0", {{"queue/dax", "1"}}), "");
  EXPECT_NE(describe("nvme0n1", {}), "") << "a head of several paths has no queues of its own";
  EXPECT_EQ(describe("nvme0n1", {{"mq/0/cpu_list", "0"}}), "");
}

// A disk whose driver takes bios.
class ZramTest : public KernelMarksTest {
 protected:
  void SetUp() override {
    KernelMarksTest::SetUp();
    if (IsSkipped()) return;
    std::ifstream("/sys/class/zram-control/hot_add") >> number_;  // reading makes a new one
    if (number_ < 0) GTEST_SKIP() << "no zram can be had here";
    std::ofstream("/sys/block/zram" + std::to_string(number_) + "/disksize") << kSize;
    for (int i = 0; i < 100 && ::access(path().c_str(), F_OK) != 0; ++i) ::usleep(20'000);
  }
  void TearDown() override {
    KernelMarksTest::TearDown();
    if (number_ >= 0) std::ofstream("/sys/class/zram-control/hot_remove") << number_;
  }
  std::string path() const { return "/dev/zram" + std::to_string(number_); }
  int number_ = -1;
};

TEST_F(ZramTest, BiosAreMarked) {
  track({path()});
  write_to(path(), 8, 1, 8);
  EXPECT_EQ(take(), range(1, 1));
  write_to(path(), 80, 2, 1024);
  EXPECT_EQ(take(), range(10, 128));
  clear(path(), BLKDISCARD, 10, 4);
  EXPECT_EQ(take(), range(10, 4));
  clear(path(), BLKDISCARD, 0, kSize / kGranule);
  EXPECT_EQ(take(), range(0, kSize / kGranule));
  clear(path(), BLKZEROOUT, 5, 66);
  EXPECT_EQ(take(), range(5, 66));
  EXPECT_TRUE(ends([&] { write_to(path(), 80, 2, 1024); }));
  EXPECT_EQ(marks_->control().missed, 0u);
}

}  // namespace
}  // namespace tidemark::agent
