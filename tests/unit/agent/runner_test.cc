// The agent against a server in memory: real TLS, real sessions, real files; cut links and worse.
#include "agent/runner.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>

#include "agent/text_file.h"
#include "base/random.h"
#include "tests/unit/agent/loop_device.h"
#include "tests/unit/agent/model_server.h"

namespace tidemark::agent {
namespace {

std::string noise(std::uint64_t seed, std::size_t size) {
  std::string bytes(size, '\0');
  Random random(seed);
  random.fill(std::as_writable_bytes(std::span(bytes)));
  return bytes;
}

std::string slurp(const std::filesystem::path& path) { return *read_text_file(path, 1 << 30); }

void patch(const std::filesystem::path& path, std::uint64_t offset, const std::string& bytes) {
  const FileDescriptor fd(::open(path.c_str(), O_WRONLY));
  ASSERT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
            static_cast<ssize_t>(bytes.size()));
}

// Buffers, queues and sockets hold less than this: when the server sees the first block, the last is not read yet.
constexpr std::size_t kLargerThanWhatIsUnderWay = 48 << 20;

class RunnerTest : public testing::Test {
 protected:
  void protect(std::vector<std::string> disks, const std::string& more = "") {
    disks_ = std::move(disks);
    server_.enroll(dir_, "tracking = \"digests\"\n" + more);  // also of loop devices
  }
  Config config() {
    Config config = *load_config(dir_.config());
    config.disks = disks_;
    return config;
  }
  Result<RunOutcome> sync(bool want_point = true, std::stop_token stop = {}) {
    RunOptions options;
    options.once = true;
    options.want_point = want_point;
    options.retry_for = std::chrono::seconds(60);
    return run_agent(config(), dir_, options, Clock::system(), std::move(stop));
  }
  EpochReport last(const Result<RunOutcome>& outcome) {
    EXPECT_TRUE(outcome) << outcome.error().message();
    if (!outcome || outcome->epochs.empty()) return {};
    return outcome->epochs.back();
  }
  Memory memory() { return *load_memory(dir_.memory(), *dir_.machine()); }
  std::string server_has(const std::filesystem::path& path) { return server_.content("file:" + path.string()); }

  ModelServer server_;
  TempDir temp_;
  StateDir dir_{temp_ / "state"};
  std::vector<std::string> disks_;
};

TEST_F(RunnerTest, FirstSyncThenUnchangedThenOnlyWhatChanged) {
  const auto disk = temp_.write("a.img", noise(1, (3 << 20) + 777));
  protect({disk});
  const EpochReport first = last(sync());
  EXPECT_EQ(first.kind, pb::INITIAL);
  EXPECT_TRUE(first.point);
  EXPECT_EQ(first.consistency, Consistency::filesystem);
  EXPECT_EQ(server_has(disk), slurp(disk));

  const EpochReport second = last(sync());
  EXPECT_TRUE(second.unchanged);
  EXPECT_TRUE(second.point);
  EXPECT_EQ(second.epoch, first.epoch);
  EXPECT_EQ(server_.unchanged(), 1U);
  EXPECT_EQ(server_.epochs().size(), 1U);

  patch(disk, 1 << 20, "changed");
  patch(disk, (3 << 20) + 770, "tail");
  const EpochReport third = last(sync());
  EXPECT_EQ(third.kind, pb::DELTA);
  EXPECT_TRUE(third.point);
  EXPECT_EQ(third.changed_bytes, (64U << 10) + 4096U);
  EXPECT_EQ(server_has(disk), slurp(disk));
  EXPECT_EQ(memory().newest_point, third.epoch);
}

TEST_F(RunnerTest, SeveralSparseDisksInOneEpoch) {
  const auto a = temp_.write("a.img", "");
  std::filesystem::resize_file(a, 40 << 20);
  patch(a, 5 << 20, noise(2, 300'000));
  const auto b = temp_.write("sub/a.img", noise(3, 100));
  const auto c = temp_.write("c.img", std::string(2 << 20, '\0'));
  protect({a, b, c});
  const EpochReport report = last(sync());
  EXPECT_TRUE(report.point);
  EXPECT_EQ(server_.epochs().size(), 1U);
  EXPECT_EQ(server_has(a), slurp(a));
  EXPECT_EQ(server_has(b), slurp(b));
  EXPECT_EQ(server_has(c), slurp(c));
  EXPECT_LT(report.sent_bytes, 1U << 20) << "zeroes travel as ranges";
  // Data that becomes a hole arrives as zeroes.
  std::filesystem::resize_file(a, 5 << 20);
  std::filesystem::resize_file(a, 40 << 20);
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(a), slurp(a));
}

TEST_F(RunnerTest, CutInitialSyncGoesOnWhereItWasAndIsStillAPoint) {
  const auto disk = temp_.write("a.img", noise(4, 24 << 20));
  protect({disk});
  server_.cut_after(10 << 20);
  const auto outcome = sync();
  const EpochReport report = last(outcome);
  EXPECT_EQ(outcome->reconnects, 1);
  EXPECT_TRUE(report.resumed);
  EXPECT_TRUE(report.point) << report.reason;
  EXPECT_EQ(outcome->epochs.size(), 1U);
  EXPECT_EQ(server_has(disk), slurp(disk));
  EXPECT_LT(server_.blocks_bytes(), 30U << 20) << "it was not sent twice";
}

TEST_F(RunnerTest, InitialSyncContinuedByAnotherRunIsFuzzyAndThenBecomesAPoint) {
  const auto disk = temp_.write("a.img", noise(5, kLargerThanWhatIsUnderWay));
  protect({disk});
  std::stop_source stop;
  server_.on_blocks([&](std::uint64_t total) {
    if (total > 8 << 20) stop.request_stop();
  });
  const auto stopped = sync(true, stop.get_token());
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Code::cancelled);
  server_.on_blocks({});
  patch(disk, 0, "changed between the runs");
  const auto outcome = sync();
  ASSERT_TRUE(outcome) << outcome.error().message();
  ASSERT_EQ(outcome->epochs.size(), 2U);
  EXPECT_TRUE(outcome->epochs[0].resumed);
  EXPECT_FALSE(outcome->epochs[0].point);
  EXPECT_FALSE(outcome->epochs[0].reason.empty());
  EXPECT_TRUE(outcome->epochs[1].point);
  EXPECT_EQ(server_has(disk), slurp(disk));
  EXPECT_EQ(server_.epochs()[0].consistency, pb::FUZZY);
}

TEST_F(RunnerTest, SourceWrittenWhileItIsReadIsFuzzyAndSaidSo) {
  const auto disk = temp_.write("a.img", noise(6, kLargerThanWhatIsUnderWay));
  protect({disk});
  std::atomic<int> writes = 0;
  server_.on_blocks([&](std::uint64_t) {
    if (writes++ == 0) patch(disk, 0, "written while it was read");
  });
  const EpochReport fuzzy = last(sync(false));
  EXPECT_FALSE(fuzzy.point);
  EXPECT_EQ(fuzzy.consistency, Consistency::fuzzy);
  EXPECT_NE(fuzzy.reason.find("a.img"), std::string::npos);
  EXPECT_EQ(server_.epochs().back().consistency, pb::FUZZY);
  EXPECT_EQ(memory().newest_point.value(), 0U);
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(disk), slurp(disk));
}

TEST_F(RunnerTest, FuzzyEpochThatHappensToBeEqualIsCommittedAsAPointWhenProven) {
  const auto disk = temp_.write("a.img", noise(7, 1 << 20));
  protect({disk});
  {
    const FileDescriptor writer(::open(disk.c_str(), O_RDWR));
    EXPECT_FALSE(last(sync(false)).point);
    const EpochReport again = last(sync(false));
    EXPECT_FALSE(again.point);
    EXPECT_FALSE(again.committed) << "nothing differs and nothing is proven: no new epoch";
  }
  const EpochReport point = last(sync());
  EXPECT_TRUE(point.point);
  EXPECT_TRUE(point.committed);
  EXPECT_EQ(point.changed_bytes, 0U);
  EXPECT_EQ(server_.epochs().size(), 2U);
}

TEST_F(RunnerTest, CommitWhoseAnswerWasLostIsNotMadeTwice) {
  const auto disk = temp_.write("a.img", noise(8, 1 << 20));
  protect({disk});
  EXPECT_TRUE(last(sync()).point);
  patch(disk, 5000, "second");
  server_.lose_next_durable();
  const auto outcome = sync();
  EXPECT_TRUE(last(outcome).point);
  EXPECT_EQ(last(outcome).epoch.value(), 2U);
  EXPECT_EQ(outcome->reconnects, 1);
  EXPECT_EQ(server_.epochs().size(), 2U);
  EXPECT_EQ(memory().durable->number.value(), 2U);
}

TEST_F(RunnerTest, CutDeltaIsMadeAnew) {
  const auto disk = temp_.write("a.img", noise(9, 8 << 20));
  protect({disk});
  EXPECT_TRUE(last(sync()).point);
  patch(disk, 0, noise(10, 6 << 20));
  server_.cut_after(2 << 20);
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(disk), slurp(disk));
  EXPECT_EQ(server_.epochs().size(), 2U);
}

TEST_F(RunnerTest, ServerThatForgotIsAnAlarmAndARescan) {
  const auto disk = temp_.write("a.img", noise(11, 2 << 20));
  protect({disk});
  EXPECT_TRUE(last(sync()).point);
  patch(disk, 0, "second");
  EXPECT_TRUE(last(sync()).point);
  server_.forget_newest_epoch();
  patch(disk, 1 << 20, "third");
  // The first try fails before its commit: the alarm stays.
  std::stop_source stop;
  server_.cut_after(1);
  server_.on_blocks([&](std::uint64_t) { stop.request_stop(); });
  EXPECT_FALSE(sync(true, stop.get_token()));
  EXPECT_FALSE(memory().alarm.empty());
  server_.on_blocks({});

  const EpochReport report = last(sync());
  EXPECT_EQ(report.kind, pb::RESCAN);
  EXPECT_TRUE(report.point);
  EXPECT_GT(report.epoch.value(), 2U) << "a number is never used for two contents";
  EXPECT_EQ(server_has(disk), slurp(disk));
  EXPECT_TRUE(memory().alarm.empty()) << "a new point ends the alarm";
}

TEST_F(RunnerTest, ServerThatForgotEverythingGetsEverythingAgain) {
  const auto disk = temp_.write("a.img", noise(12, 1 << 20));
  protect({disk});
  EXPECT_TRUE(last(sync()).point);
  server_.forget_newest_epoch();
  const EpochReport report = last(sync());
  EXPECT_EQ(report.kind, pb::INITIAL);
  EXPECT_TRUE(report.point);
  EXPECT_EQ(server_has(disk), slurp(disk));
}

TEST_F(RunnerTest, LostMemoryIsARescanThatSendsOnlyDifferences) {
  const auto disk = temp_.write("a.img", noise(13, 4 << 20));
  protect({disk});
  EXPECT_TRUE(last(sync()).point);
  std::filesystem::remove(dir_.memory());
  patch(disk, 0, "changed");
  const EpochReport report = last(sync());
  EXPECT_EQ(report.kind, pb::RESCAN);
  EXPECT_EQ(report.changed_bytes, 64U << 10);
  EXPECT_EQ(server_has(disk), slurp(disk));
}

TEST_F(RunnerTest, DamagedMemoryStopsWithARemedy) {
  const auto disk = temp_.write("a.img", noise(14, 4096));
  protect({disk});
  EXPECT_TRUE(last(sync()).point);
  std::ofstream(dir_.memory(), std::ios::app) << "x";
  const auto outcome = sync();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::corrupt);
  EXPECT_NE(outcome.error().remedy.find("remove it"), std::string::npos);
}

TEST_F(RunnerTest, DisksGrowShrinkComeAndGo) {
  const auto a = temp_.write("a.img", noise(15, 1'000'000));
  const auto b = temp_.write("b.img", noise(16, 500'000));
  protect({a});
  EXPECT_TRUE(last(sync()).point);
  std::filesystem::resize_file(a, 2'000'000);
  patch(a, 1'999'000, "end");
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(a), slurp(a));
  std::filesystem::resize_file(a, 300'001);
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(a), slurp(a));
  std::filesystem::resize_file(a, 1'000'000);  // only zeroes come back
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(a), slurp(a));
  disks_ = {a, b};
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(b), slurp(b));
  disks_ = {b};
  const EpochReport gone = last(sync());
  EXPECT_TRUE(gone.committed);
  EXPECT_EQ(server_.epochs().back().disks.size(), 1U);
}

TEST_F(RunnerTest, DiskThatChangesItsSizeInTheMiddleBeginsAnew) {
  const auto disk = temp_.write("a.img", noise(17, kLargerThanWhatIsUnderWay));
  protect({disk});
  std::atomic<int> calls = 0;
  server_.on_blocks([&](std::uint64_t) {
    if (calls++ == 2) std::filesystem::resize_file(disk, 5'000'000);
  });
  const EpochReport report = last(sync());
  EXPECT_TRUE(report.point) << report.reason;
  EXPECT_EQ(server_has(disk), slurp(disk));
  EXPECT_EQ(server_.epochs().size(), 1U) << "what was begun before was aborted";
}

TEST_F(RunnerTest, DiskThatGoesAwayIsNamed) {
  const auto disk = temp_.write("a.img", noise(18, 4096));
  protect({disk, temp_ / "none.img"});
  const auto outcome = sync();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::not_found);
  EXPECT_NE(outcome.error().object.find("none.img"), std::string::npos);
  EXPECT_TRUE(server_.epochs().empty());
}

TEST_F(RunnerTest, RunningAgentStallsWhileADiskIsAwayAndRecovers) {
  const auto disk = temp_.write("a.img", noise(19, 4096));
  protect({disk}, "interval_s = 0.1\n");
  std::filesystem::rename(disk, temp_ / "away.img");
  std::stop_source stop;
  Result<RunOutcome> outcome;
  std::thread agent([&] { outcome = run_agent(config(), dir_, {}, Clock::system(), stop.get_token()); });
  const auto eventually = [&](auto condition) {
    for (int i = 0; i < 6000 && !condition(); ++i) ::usleep(10'000);
    return condition();
  };
  EXPECT_TRUE(eventually([&] {
    const auto states = server_.states();
    return std::find(states.begin(), states.end(), "stalled") != states.end();
  }));
  std::filesystem::rename(temp_ / "away.img", disk);
  EXPECT_TRUE(eventually([&] { return !server_.epochs().empty(); }));
  EXPECT_TRUE(eventually([&] { return server_.unchanged() > 2; }));
  stop.request_stop();
  agent.join();
  EXPECT_TRUE(outcome) << outcome.error().message();
  EXPECT_EQ(server_has(disk), slurp(disk));
}

TEST_F(RunnerTest, ServersRefusalIsFinalUnlessItSaysWhenToComeBack) {
  const auto disk = temp_.write("a.img", noise(20, 4096));
  protect({disk});
  server_.refuse(Error{Code::quarantined, "machine test", "its fingerprint changed", "an administrator decides"}, 0, 1);
  const auto refused = sync();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::quarantined);
  EXPECT_EQ(refused.error().what, "its fingerprint changed");
  EXPECT_EQ(refused.error().remedy, "an administrator decides");

  server_.refuse(Error{Code::busy, "server", "too many sessions", ""}, 50, 2);
  const auto outcome = sync();
  EXPECT_TRUE(last(outcome).point);
  EXPECT_EQ(outcome->reconnects, 2);
}

TEST_F(RunnerTest, AnotherAuthoritysServerIsRefused) {
  const auto disk = temp_.write("a.img", noise(21, 4096));
  protect({disk});
  ModelServer other;
  const std::string text = slurp(dir_.config());
  ASSERT_TRUE(write_file_atomically(dir_.config(), *with_key(text, "c", "server", other.address()), 0600));
  const auto outcome = sync();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::unauthenticated) << outcome.error().message();
}

TEST_F(RunnerTest, CertificateIsRenewedInItsLastThird) {
  const auto disk = temp_.write("a.img", noise(23, 4096));
  disks_ = {disk};
  server_.enroll(dir_, "", 55);
  const std::string before = slurp(dir_.certificate());
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(slurp(dir_.certificate()), before) << "not yet";
  server_.enroll(dir_, "", 70);
  const std::string old = slurp(dir_.certificate());
  EXPECT_TRUE(last(sync()).point);
  EXPECT_NE(slurp(dir_.certificate()), old);
  EXPECT_TRUE(dir_.machine());
  EXPECT_TRUE(last(sync()).point) << "and it is good";
}

TEST_F(RunnerTest, ExpiredCertificateIsRefusedInWords) {
  const auto disk = temp_.write("a.img", noise(24, 4096));
  disks_ = {disk};
  server_.enroll(dir_, "", 100);
  const auto outcome = sync();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::unauthenticated);
  EXPECT_NE(outcome.error().message().find("expired"), std::string::npos) << outcome.error().message();
}

TEST_F(RunnerTest, SmallCreditThrottleAndRateLimitOnlySlowItDown) {
  const auto disk = temp_.write("a.img", noise(22, 6 << 20));
  protect({disk}, "rate_limit_mib_s = 40\n");
  server_.set_credit(limits::kSessionCreditMin);
  server_.throttle_next(100);
  EXPECT_TRUE(last(sync()).point);
  EXPECT_EQ(server_has(disk), slurp(disk));
}

TEST_F(RunnerTest, RateChangesAtItsHourOnALiveConnection) {
  const auto disk = temp_.write("a.img", noise(18, 6 << 20));
  protect({disk});
  // A moment of the machine's time zone, so that the windows need not know it.
  ManualClock clock(1'764'241'200'000'000);
  const auto seconds = static_cast<std::time_t>(clock.wall_us() / 1'000'000);
  std::tm local{};
  ::localtime_r(&seconds, &local);
  const int hour = local.tm_hour * 60;
  Config slow = config();
  slow.rate_schedule = {{hour, hour + 60, 0x7f, 1e-6}};  // the second payload is due in days
  RunOptions options;
  options.once = true;
  std::atomic<bool> jumped = false, done = false;
  server_.on_blocks([&](std::uint64_t) {
    EXPECT_FALSE(done);
    if (!jumped.exchange(true)) clock.jump_wall(std::chrono::hours(1));
  });
  const auto outcome = run_agent(slow, dir_, options, clock, {});
  done = true;
  EXPECT_TRUE(jumped);
  EXPECT_TRUE(last(outcome).point);
  EXPECT_EQ(server_has(disk), slurp(disk));
}

TEST_F(RunnerTest, WhatTheServerLostIsSentAgainAlthoughItDidNotChange) {
  const auto disk = temp_.write("a.img", noise(23, 3 << 20));
  protect({disk});
  EXPECT_TRUE(last(sync()).point);
  EXPECT_TRUE(last(sync()).unchanged);
  const std::uint64_t before = server_.blocks_bytes();
  server_.ask_again(0, 20, 3);       // within one chunk
  server_.ask_again(0, 766, 100);    // over the end of the disk
  server_.ask_again(0, 100'000, 1);  // behind it
  server_.ask_again(7, 0, 1);        // another machine's, or of a disk that is not protected any more
  const EpochReport again = last(sync());
  EXPECT_TRUE(again.committed);
  EXPECT_TRUE(again.point);
  EXPECT_EQ(again.changed_bytes, 2 * limits::kDigestChunkSize) << "by whole chunks, and nothing else";
  EXPECT_GE(server_.blocks_bytes() - before, 2 * limits::kDigestChunkSize);
  EXPECT_EQ(server_has(disk), slurp(disk));
  EXPECT_TRUE(last(sync()).unchanged) << "once is enough";
}

TEST_F(RunnerTest, DiskThatFailsToReadIsNamedWithThePlace) {
  LoopDevice loop(temp_, "disk", 8 << 20);
  SKIP_WITHOUT_LOOP(loop);
  std::filesystem::resize_file(loop.file(), 2 << 20);  // reads behind it fail
  protect({loop.path()});
  const auto outcome = sync();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::io) << outcome.error().message();
  EXPECT_NE(outcome.error().what.find("at 2097152"), std::string::npos) << outcome.error().what;
  EXPECT_TRUE(server_.epochs().empty());
}

TEST_F(RunnerTest, BusyMountedDiskBecomesAPointByAFreeze) {
  TempDir place;
  LoopDevice loop(place, "disk", 48 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!loop.mount_ext4(place / "mnt")) GTEST_SKIP() << "no ext4 can be mounted here";
  protect({loop.path()});
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (std::uint64_t i = 0; !stop; ++i) {
      const FileDescriptor fd(::open((place / "mnt/f").c_str(), O_RDWR | O_CREAT, 0600));
      const std::string line = std::to_string(i) + std::string(5000, 'w');
      (void)!::pwrite(fd.get(), line.data(), line.size(), static_cast<off_t>(i % 100 * 4096));
      ::fsync(fd.get());
    }
  });
  const auto outcome = sync();
  stop = true;
  writer.join();
  const EpochReport report = last(outcome);
  EXPECT_TRUE(report.point) << report.reason;
  EXPECT_EQ(report.consistency, Consistency::filesystem);
  EXPECT_GT(report.frozen_seconds, 0);
  EXPECT_FALSE(outcome->epochs.front().point) << "the disk was being written to";
  // The point is a clean file system: nothing to repair.
  const auto copy = place.write("copy", server_.content("loop:" + loop.file().string()));
  EXPECT_EQ(std::system(("e2fsck -fn " + copy.string() + " >/dev/null 2>&1").c_str()), 0);
}

// A disk that is written to faster than it can be read, as long as its file system is not frozen.
class Restless final : public Tracker {
 public:
  explicit Restless(std::filesystem::path frozen) : frozen_(std::move(frozen)) {}
  bool exact() const override { return true; }
  WallMicros since_us() const override { return 1; }
  Result<Suspects> begin_round(const RoundStart& start) override { return Suspects{start.whole, "a test", false}; }
  Status cut() override { return due_ = true, Status(); }
  WallMicros cut_us() const override { return Clock::system().wall_us(); }
  void want(std::size_t, const GranuleRange&) override {}
  std::vector<GranuleRange> next(std::size_t& disk, std::uint64_t) override {
    disk = 0;
    return std::exchange(due_, false) ? std::vector<GranuleRange>{{0, 4}} : std::vector<GranuleRange>{};
  }
  std::uint64_t hits(std::size_t, const GranuleRange&) const override {
    return std::filesystem::exists(frozen_) ? 0 : 1;
  }
  bool sound() override { return true; }
  void sent(EpochNumber) override {}
  void durable(EpochNumber) override {}
  void failed() override {}

 private:
  std::filesystem::path frozen_;
  bool due_ = false;
};
std::filesystem::path restless_state;
Result<ChosenTracker> choose_restless(const Config&, const MachineId&, const std::string&, SourceSet&, bool,
                                      const Clock&) {
  return ChosenTracker{std::make_unique<Restless>(restless_state / "frozen"), {}};
}

// A second takes a twentieth of one.
class FastClock final : public Clock {
 public:
  WallMicros wall_us() const override { return Clock::system().wall_us(); }
  std::chrono::steady_clock::time_point monotonic() const override {
    return start_ + 20 * (Clock::system().monotonic() - start_);
  }

 private:
  std::chrono::steady_clock::time_point start_ = Clock::system().monotonic();
};

TEST_F(RunnerTest, WithAllDisksOneThatComesIsProtectedAndOneThatIsExceptedIsNot) {
  const auto first = temp_.write("a.img", noise(31, 70'000));
  const auto second = temp_.write("b.img", noise(32, 80'000));
  const auto excepted = temp_.write("c.img", noise(33, 4096));
  protect({first}, "interval_s = 0.1\nall_disks = true\nexcept_disks = [\"" + excepted.string() + "\"]\n");
  std::atomic<bool> came = false;
  RunOptions options;
  options.whole_disks = [&]() -> Result<std::vector<std::string>> {
    std::vector<std::string> disks{first, excepted};
    if (came) disks.push_back(second);
    return disks;
  };
  FastClock clock;
  std::stop_source stop;
  Result<RunOutcome> outcome;
  std::thread agent([&] { outcome = run_agent(config(), dir_, options, clock, stop.get_token()); });
  const auto eventually = [&](auto condition) {
    for (int i = 0; i < 6000 && !condition(); ++i) ::usleep(10'000);
    return condition();
  };
  EXPECT_TRUE(eventually([&] { return server_.unchanged() > 2; }));
  came = true;
  EXPECT_TRUE(eventually([&] { return server_.epochs().back().disks.size() == 2; }));
  stop.request_stop();
  agent.join();
  EXPECT_TRUE(outcome) << outcome.error().message();
  EXPECT_EQ(server_has(first), slurp(first));
  EXPECT_EQ(server_has(second), slurp(second));
  EXPECT_EQ(load_config(dir_.config())->disks.back(), second) << "it stays protected when it goes";
}

TEST_F(RunnerTest, TrackedDiskThatNeverStandsStillIsFrozenAfterHalfAMinuteWithoutAPoint) {
  TempDir place;
  LoopDevice loop(place, "disk", 16 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!loop.mount_ext4(place / "mnt")) GTEST_SKIP() << "no ext4 can be mounted here";
  protect({loop.path()}, "interval_s = 1\n");
  restless_state = dir_.path();
  RunOptions options;
  options.choose = choose_restless;
  const FastClock clock;
  const auto from = clock.monotonic();
  std::stop_source stop;
  std::thread agent([&] { (void)run_agent(config(), dir_, options, clock, stop.get_token()); });
  const auto point = [&] {
    const auto epochs = server_.epochs();
    return !epochs.empty() && epochs.back().consistency != pb::FUZZY;
  };
  while (!point() && clock.monotonic() - from < std::chrono::minutes(20)) ::usleep(100'000);
  const auto took = clock.monotonic() - from;
  stop.request_stop();
  agent.join();
  ASSERT_TRUE(point());
  EXPECT_EQ(server_.epochs().back().consistency, pb::FILESYSTEM);
  EXPECT_GE(took, std::chrono::seconds(30));
  EXPECT_GT(server_.epochs().size(), 1u) << "those before it are fuzzy, and said to be";
  EXPECT_EQ(server_.epochs().front().consistency, pb::FUZZY);
  // Nothing stays frozen.
  EXPECT_FALSE(std::filesystem::exists(dir_.path() / "frozen"));
  std::ofstream(place / "mnt/file") << "x" << std::flush;
}

TEST_F(RunnerTest, NoPointAlthoughItWasFrozenOrMayNotBeIsAnAlarmUntilThereIsOne) {
  TempDir place;
  LoopDevice loop(place, "disk", 16 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!loop.mount_ext4(place / "mnt")) GTEST_SKIP() << "no ext4 can be mounted here";
  for (const bool may_freeze : {true, false}) {
    SCOPED_TRACE(may_freeze);
    protect({loop.path()}, may_freeze ? "interval_s = 1\n" : "interval_s = 1\nfreeze = false\n");
    restless_state = place / (may_freeze ? "calm" : "calmer");  // it is written to even while it is frozen
    std::filesystem::create_directories(restless_state);
    RunOptions options;
    options.choose = choose_restless;
    const FastClock clock;
    std::stop_source stop;
    std::thread agent([&] { (void)run_agent(config(), dir_, options, clock, stop.get_token()); });
    const auto alarm = [&] {
      const auto known = load_memory(dir_.memory(), *dir_.machine());
      return known ? known->alarm : std::string();
    };
    const auto from = clock.monotonic();
    while (alarm().empty() && clock.monotonic() - from < std::chrono::minutes(20)) ::usleep(50'000);
    EXPECT_NE(alarm().find("no recovery point for"), std::string::npos) << alarm();
    EXPECT_GE(clock.monotonic() - from, std::chrono::seconds(30));
    EXPECT_FALSE(std::filesystem::exists(dir_.path() / "frozen"));
    std::ofstream(restless_state / "frozen") << "from now on nothing is written to it";
    while (!alarm().empty() && clock.monotonic() - from < std::chrono::minutes(40)) ::usleep(50'000);
    EXPECT_EQ(alarm(), "");
    stop.request_stop();
    agent.join();
  }
}

TEST_F(RunnerTest, WithoutLeaveToFreezeItStaysFuzzyAndSaysWhatWouldHelp) {
  TempDir place;
  LoopDevice loop(place, "disk", 16 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!loop.mount_ext4(place / "mnt")) GTEST_SKIP() << "no ext4 can be mounted here";
  protect({loop.path()}, "freeze = false\n");
  restless_state = dir_.path();
  RunOptions options;
  options.once = true;
  options.choose = choose_restless;
  const FastClock clock;
  const auto outcome = run_agent(config(), dir_, options, clock, {});
  const EpochReport report = last(outcome);
  EXPECT_FALSE(report.point);
  EXPECT_EQ(report.frozen_seconds, 0);
  EXPECT_NE(report.reason.find("no exact cut"), std::string::npos) << report.reason;
  EXPECT_NE(report.remedy.find("freeze"), std::string::npos) << report.remedy;
  EXPECT_EQ(server_.epochs().back().consistency, pb::FUZZY);
}

std::atomic<int> refusals_left;
Result<ChosenTracker> choose_later(const Config& config, const MachineId& machine, const std::string& boot_id,
                                   SourceSet& sources, bool once, const Clock& clock) {
  if (refusals_left-- > 0) return ChosenTracker{std::make_unique<DigestComparison>(), "the kernel has no memory", true};
  return choose_restless(config, machine, boot_id, sources, once, clock);
}

TEST_F(RunnerTest, WhatTheKernelRefusedIsTriedAgain) {
  protect({temp_.write("a.img", noise(41, 70'000))}, "interval_s = 0.1\n");
  TempDir place;
  restless_state = place / "calm";
  std::filesystem::create_directories(restless_state);
  std::ofstream(restless_state / "frozen") << "nothing is written to it";
  refusals_left = 3;
  RunOptions options;
  options.choose = choose_later;
  options.track_again = std::chrono::milliseconds(200);
  std::stop_source stop;
  std::thread agent([&] { (void)run_agent(config(), dir_, options, Clock::system(), stop.get_token()); });
  const auto tracking = [&] {
    const std::string text = read_text_file(dir_.status()).value_or("");
    const auto report = parse_report(text, "status");
    return report ? std::pair(report->tracking, report->tracking_reason) : std::pair(std::string(), std::string());
  };
  for (int i = 0; i < 6000 && tracking().first != "digests"; ++i) ::usleep(10'000);
  EXPECT_EQ(tracking().second, "the kernel has no memory");
  for (int i = 0; i < 6000 && tracking().first != "ebpf"; ++i) ::usleep(10'000);
  EXPECT_EQ(tracking(), std::pair(std::string("ebpf"), std::string()));
  const auto before = server_.epochs().size() + server_.unchanged();
  for (int i = 0; i < 6000 && server_.epochs().size() + server_.unchanged() <= before; ++i) ::usleep(10'000);
  EXPECT_GT(server_.epochs().size() + server_.unchanged(), before) << "and goes on";
  stop.request_stop();
  agent.join();
}

TEST(Runner, WhatIsTriedAgain) {
  const auto with = [](Code code) { return LinkEnd{Error{code, "", "", ""}, 0, false, false, ""}; };
  for (const Code code : {Code::unavailable, Code::timed_out, Code::not_found, Code::io, Code::protocol, Code::busy}) {
    EXPECT_TRUE(retry_after(with(code)).again) << to_string(code);
  }
  for (const Code code :
       {Code::unauthenticated, Code::quarantined, Code::invalid_argument, Code::unsupported, Code::corrupt}) {
    EXPECT_FALSE(retry_after(with(code)).again) << to_string(code);
  }
  LinkEnd server = with(Code::busy);
  server.from_server = true;
  EXPECT_FALSE(retry_after(server).again);
  server.retry_after_ms = 1500;
  EXPECT_TRUE(retry_after(server).again);
  EXPECT_EQ(retry_after(server).at_least.count(), 1500);
  server.retry_after_ms = 0;
  server.goodbye = true;
  EXPECT_TRUE(retry_after(server).again);
}

}  // namespace
}  // namespace tidemark::agent
