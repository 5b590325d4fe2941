#include "agent/freeze.h"

#include <gtest/gtest.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "agent/text_file.h"
#include "tests/unit/agent/loop_device.h"

namespace tidemark::agent {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class FreezeTest : public testing::Test {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_LOOP(loop_);
    if (!loop_.mount_ext4(mount_)) GTEST_SKIP() << "no ext4 can be mounted here";
    std::filesystem::create_directories(state_);
  }
  void TearDown() override {
    // Whatever a failed test left: nothing may stay frozen.
    const FileDescriptor folder(::open(mount_.c_str(), O_RDONLY));
    if (folder && std::filesystem::exists(mount_ / "lost+found")) ::ioctl(folder.get(), FITHAW, 0);
  }

  // Writes in a thread of its own; done() tells whether it got through.
  struct Writer {
    explicit Writer(const std::filesystem::path& path)
        : thread([this, path] {
            std::ofstream(path) << "x";
            written = true;
          }) {}
    ~Writer() { thread.join(); }
    bool done_within(milliseconds patience) const {
      const auto deadline = std::chrono::steady_clock::now() + patience;
      while (!written && std::chrono::steady_clock::now() < deadline) ::usleep(5'000);
      return written;
    }
    std::atomic<bool> written{false};
    std::thread thread;
  };

  TempDir dir_;
  LoopDevice loop_{dir_, "disk", 32 << 20};
  std::filesystem::path mount_ = dir_ / "mnt";
  std::filesystem::path state_ = dir_ / "state";
};

TEST_F(FreezeTest, HoldsWritersUntilItThaws) {
  auto freeze = Freeze::start({mount_}, seconds(60), state_);
  ASSERT_TRUE(freeze) << freeze.error().message();
  EXPECT_TRUE((*freeze)->intact());
  EXPECT_TRUE(std::filesystem::exists(state_ / "frozen"));
  Writer writer(mount_ / "file");
  EXPECT_FALSE(writer.done_within(milliseconds(200)));
  EXPECT_TRUE(*(*freeze)->thaw());
  EXPECT_TRUE(writer.done_within(seconds(30)));
  EXPECT_FALSE(std::filesystem::exists(state_ / "frozen"));
}

TEST_F(FreezeTest, WatchdogThawsAtTheLimit) {
  auto freeze = Freeze::start({mount_}, milliseconds(300), state_);
  ASSERT_TRUE(freeze) << freeze.error().message();
  Writer writer(mount_ / "file");
  EXPECT_TRUE(writer.done_within(seconds(30))) << "nobody but the watchdog thawed";
  EXPECT_FALSE((*freeze)->intact());
  const auto thawed = (*freeze)->thaw();
  ASSERT_TRUE(thawed);
  EXPECT_FALSE(*thawed);
}

TEST_F(FreezeTest, AgentThawsWhenTheWatchdogIsKilled) {
  auto freeze = Freeze::start({mount_}, seconds(60), state_);
  ASSERT_TRUE(freeze) << freeze.error().message();
  ASSERT_EQ(::kill((*freeze)->watchdog(), SIGKILL), 0);
  Writer writer(mount_ / "file");
  bool intact = true;
  for (int i = 0; i < 3000 && intact; ++i) {
    intact = (*freeze)->intact();
    ::usleep(10'000);
  }
  EXPECT_FALSE(intact);
  EXPECT_TRUE(writer.done_within(seconds(30)));
  EXPECT_FALSE(*(*freeze)->thaw());
}

TEST_F(FreezeTest, WatchdogThawsWhenTheAgentIsKilled) {
  // The agent is a child of this test: it freezes and is killed with SIGKILL.
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t agent = ::fork();
  if (agent == 0) {
    auto freeze = Freeze::start({mount_}, seconds(600), state_);
    const char sign = freeze ? 'y' : 'n';
    (void)!::write(ready[1], &sign, 1);
    ::pause();
    ::_exit(0);
  }
  char sign = 0;
  ASSERT_EQ(::read(ready[0], &sign, 1), 1);
  ::close(ready[0]);
  ::close(ready[1]);
  ASSERT_EQ(sign, 'y');
  Writer writer(mount_ / "file");
  EXPECT_FALSE(writer.done_within(milliseconds(200)));
  ::kill(agent, SIGKILL);
  ::waitpid(agent, nullptr, 0);
  EXPECT_TRUE(writer.done_within(seconds(30)));
}

TEST_F(FreezeTest, LeftoversAreThawedAtTheNextStart) {
  const FileDescriptor folder(::open(mount_.c_str(), O_RDONLY));
  ASSERT_EQ(::ioctl(folder.get(), FIFREEZE, 0), 0);
  ASSERT_TRUE(write_file_atomically(state_ / "frozen", mount_.string() + "\n/no/such/place\n", 0600));
  const auto thawed = thaw_leftovers(state_);
  ASSERT_TRUE(thawed);
  EXPECT_EQ(*thawed, std::vector<std::string>{mount_.string()});
  std::ofstream(mount_ / "file") << "x";
  EXPECT_TRUE(thaw_leftovers(state_)->empty());
}

TEST_F(FreezeTest, RefusesToFreezeItsOwnStateDirectory) {
  std::filesystem::create_directories(mount_ / "state");
  const auto freeze = Freeze::start({mount_}, seconds(60), mount_ / "state");
  ASSERT_FALSE(freeze);
  EXPECT_EQ(freeze.error().code, Code::permission_denied);
  EXPECT_NE(freeze.error().remedy.find("--state-dir"), std::string::npos);
  std::ofstream(mount_ / "file") << "x";  // nothing was frozen
}

TEST_F(FreezeTest, WhatSomebodyElseFrozeIsLeftToThem) {
  const FileDescriptor folder(::open(mount_.c_str(), O_RDONLY));
  ASSERT_EQ(::ioctl(folder.get(), FIFREEZE, 0), 0);
  const auto freeze = Freeze::start({mount_}, seconds(60), state_);
  ASSERT_FALSE(freeze);
  EXPECT_EQ(freeze.error().code, Code::busy);
  EXPECT_EQ(::ioctl(folder.get(), FITHAW, 0), 0) << "it is still frozen";
}

TEST_F(FreezeTest, AFailureInTheMiddleThawsWhatWasFrozenBefore) {
  // The second place is frozen first, the first one (no file system that can be frozen) fails.
  const auto freeze = Freeze::start({"/proc", mount_}, seconds(60), state_);
  ASSERT_FALSE(freeze);
  Writer writer(mount_ / "file");
  EXPECT_TRUE(writer.done_within(seconds(30)));
}

}  // namespace
}  // namespace tidemark::agent
