// Which way of finding changes is taken, and what is said where it is not the one that was asked for. By the kernel
// only as root, on a loop device.
#include "agent/choose_tracker.h"

#include <gtest/gtest.h>

#include "agent/kernel_marks.h"
#include "tests/unit/agent/loop_device.h"

namespace tidemark::agent {
namespace {

class ChooseTrackerTest : public testing::Test {
 protected:
  ChooseTrackerTest() { config_.bpffs = (dir_ / "bpf").string(); }
  ~ChooseTrackerTest() override {
    (void)KernelMarks::unpin(pins());
    for (int i = 0; mounted_ && ::umount((dir_ / "bpf").c_str()) != 0 && i < 100; ++i) ::usleep(20'000);
  }
  bool mount_bpffs() {
    std::filesystem::create_directories(dir_ / "bpf");
    return mounted_ = ::mount("bpf", (dir_ / "bpf").c_str(), "bpf", 0, nullptr) == 0;
  }
  std::filesystem::path pins() const { return pins_of(config_, machine_); }
  Result<ChosenTracker> choose(Tracking tracking, const std::vector<std::string>& disks, bool once = false) {
    config_.tracking = tracking;
    sources_ = std::make_unique<SourceSet>(disks);
    if (auto opened = sources_->refresh(); !opened) return std::unexpected(opened.error());
    return choose_tracker(config_, machine_, std::string(16, 'b'), *sources_, once, Clock::system());
  }
  std::string file() { return dir_.write("image", std::string(65536, 'x')).string(); }

  TempDir dir_;
  Config config_;
  const MachineId machine_{};
  std::unique_ptr<SourceSet> sources_;
  bool mounted_ = false;
};

TEST_F(ChooseTrackerTest, DigestsWhereTheConfigurationSaysSo) {
  const auto chosen = choose(Tracking::digests, {file()});
  ASSERT_TRUE(chosen) << chosen.error().message();
  EXPECT_FALSE(chosen->tracker->exact());
  EXPECT_EQ(chosen->why, "the configuration says so");
}

TEST_F(ChooseTrackerTest, WhatTheKernelCannotTrackMeansDigestsAndTheReason) {
  const auto chosen = choose(Tracking::automatic, {file()});
  ASSERT_TRUE(chosen) << chosen.error().message();
  EXPECT_FALSE(chosen->tracker->exact());
  EXPECT_NE(chosen->why.find("a regular file"), std::string::npos) << chosen->why;
}

TEST_F(ChooseTrackerTest, WhoInsistsOnTheKernelIsRefused) {
  const auto chosen = choose(Tracking::ebpf, {file()});
  ASSERT_FALSE(chosen);
  EXPECT_EQ(chosen.error().code, Code::unsupported);
  EXPECT_NE(chosen.error().remedy.find("digests"), std::string::npos) << chosen.error().message();
}

TEST_F(ChooseTrackerTest, ASingleSyncLeavesNothingInTheKernel) {
  LoopDevice loop(dir_, "disk", 4 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!mount_bpffs()) GTEST_SKIP() << "no BPF file system can be mounted here";
  const auto chosen = choose(Tracking::automatic, {loop.path()}, true);
  ASSERT_TRUE(chosen) << chosen.error().message();
  EXPECT_FALSE(chosen->tracker->exact());
  EXPECT_NE(chosen->why.find("a single sync"), std::string::npos) << chosen->why;
  EXPECT_FALSE(std::filesystem::exists(pins()));
}

TEST_F(ChooseTrackerTest, TheKernelWhereItCanAndASingleSyncUsesWhatIsThere) {
  LoopDevice loop(dir_, "disk", 4 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!mount_bpffs()) GTEST_SKIP() << "no BPF file system can be mounted here";
  WallMicros since = 0;
  {
    const auto chosen = choose(Tracking::automatic, {loop.path()});
    ASSERT_TRUE(chosen) << chosen.error().message();
    EXPECT_TRUE(chosen->tracker->exact()) << chosen->why;
    EXPECT_EQ(chosen->why, "");
    since = chosen->tracker->since_us();
    EXPECT_NE(since, 0);
  }
  EXPECT_TRUE(std::filesystem::exists(pins())) << "it outlives who began it";
  const auto again = choose(Tracking::automatic, {loop.path()}, true);
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_TRUE(again->tracker->exact()) << again->why;
  EXPECT_EQ(again->tracker->since_us(), since);
}

TEST_F(ChooseTrackerTest, WithDigestsNothingIsLeftInTheKernel) {
  LoopDevice loop(dir_, "disk", 4 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!mount_bpffs()) GTEST_SKIP() << "no BPF file system can be mounted here";
  ASSERT_TRUE(choose(Tracking::automatic, {loop.path()}));
  ASSERT_TRUE(std::filesystem::exists(pins()));
  const auto chosen = choose(Tracking::automatic, {loop.path(), file()});
  ASSERT_TRUE(chosen) << chosen.error().message();
  EXPECT_FALSE(chosen->tracker->exact());
  EXPECT_TRUE(chosen->again) << "the file may be taken off the list";
  EXPECT_FALSE(std::filesystem::exists(pins()));
  ASSERT_TRUE(choose(Tracking::automatic, {loop.path()}));
  const auto configured = choose(Tracking::digests, {loop.path()});
  ASSERT_TRUE(configured);
  EXPECT_FALSE(configured->again);
  EXPECT_FALSE(std::filesystem::exists(pins()));
}

TEST_F(ChooseTrackerTest, OneDiskThatCannotBeTrackedMeansDigestsForAllOfThem) {
  LoopDevice loop(dir_, "disk", 4 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!mount_bpffs()) GTEST_SKIP() << "no BPF file system can be mounted here";
  const auto chosen = choose(Tracking::automatic, {loop.path(), file()});
  ASSERT_TRUE(chosen) << chosen.error().message();
  EXPECT_FALSE(chosen->tracker->exact());
  EXPECT_FALSE(std::filesystem::exists(pins()));
  EXPECT_FALSE(choose(Tracking::ebpf, {loop.path(), file()}));
}

TEST_F(ChooseTrackerTest, WithoutABpfFileSystemTheReasonNamesIt) {
  LoopDevice loop(dir_, "disk", 4 << 20);
  SKIP_WITHOUT_LOOP(loop);
  config_.bpffs = (dir_ / "nowhere").string();
  const auto chosen = choose(Tracking::automatic, {loop.path()});
  ASSERT_TRUE(chosen) << chosen.error().message();
  EXPECT_FALSE(chosen->tracker->exact());
  EXPECT_NE(chosen->why.find("nowhere"), std::string::npos) << chosen->why;
}

}  // namespace
}  // namespace tidemark::agent
