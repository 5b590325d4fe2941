// What passes leave out, against a server in memory. The disks are files, and what of them is unused is the test's
// word.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <deque>
#include <functional>

#include "agent/runner.h"
#include "agent/skipped_chunks.h"
#include "agent/text_file.h"
#include "base/limits.h"
#include "base/random.h"
#include "tests/unit/agent/model_server.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

constexpr std::uint64_t kChunk = limits::kDigestChunkSize;
constexpr std::uint64_t kGranules = kChunk / limits::kGranuleSize;

// Tracks as the script says.
struct Script {
  std::vector<std::string> calls;
  std::function<void()> at_cut;
  std::deque<GranuleRange> due;  // of the first disk, from the first cut on
  bool everything = true;
};
Script script;

class Scripted final : public Tracker {
 public:
  bool exact() const override { return true; }
  WallMicros since_us() const override { return 1; }
  Result<Suspects> begin_round(const RoundStart&) override {
    script.calls.emplace_back("begin");
    return Suspects{script.everything, "a test", false};
  }
  Status cut() override {
    script.calls.emplace_back("cut");
    if (script.at_cut) script.at_cut();
    return {};
  }
  WallMicros cut_us() const override { return Clock::system().wall_us(); }
  void want(std::size_t, const GranuleRange& range) override { script.due.push_back(range); }
  std::vector<GranuleRange> next(std::size_t& disk, std::uint64_t) override {
    disk = 0;
    if (script.due.empty()) return {};
    const GranuleRange range = script.due.front();
    script.due.pop_front();
    return {range};
  }
  std::uint64_t hits(std::size_t, const GranuleRange&) const override { return 0; }
  bool sound() override { return true; }
  void sent(EpochNumber) override {}
  void durable(EpochNumber) override {}
  void failed() override {}
};
Result<ChosenTracker> choose_scripted(const Config&, const MachineId&, const std::string&, SourceSet&, bool,
                                      const Clock&) {
  return ChosenTracker{std::make_unique<Scripted>(), {}};
}

class EngineSkip : public testing::Test {
 protected:
  static constexpr std::size_t kSize = 40 * kChunk + 5000;

  void SetUp() override {
    script = {};
    server_.enroll(dir_, "");
    options_.once = true;
    options_.want_point = false;
    options_.unused = [this](BlockSource&) {
      script.calls.emplace_back("ask");
      return unused_;
    };
  }
  static std::string noise(std::uint64_t seed, std::size_t size) {
    std::string bytes(size, '\0');
    Random random(seed);
    random.fill(std::as_writable_bytes(std::span(bytes)));
    return bytes;
  }
  Result<RunOutcome> sync(std::stop_token stop = {}) {
    Config config = *load_config(dir_.config());
    config.disks = {disk_};
    config.skip_free_space = skip_;
    return run_agent(config, dir_, options_, Clock::system(), std::move(stop));
  }
  EpochReport synced() {
    const auto outcome = sync();
    EXPECT_TRUE(outcome) << outcome.error().message();
    return outcome ? outcome->epochs.back() : EpochReport{};
  }
  std::string identity() const { return "file:" + disk_.string(); }
  std::string content() const { return *read_text_file(disk_, 1 << 30); }
  std::string server_has() { return server_.content(identity()); }
  SkippedChunks list() {
    SkippedChunks chunks(dir_.path() / "unread");
    EXPECT_TRUE(chunks.load());
    return chunks;
  }
  void patch(std::uint64_t offset, const std::string& bytes) {
    const FileDescriptor fd(::open(disk_.c_str(), O_WRONLY));
    ASSERT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
  }
  // What the server should have when these were left out.
  std::string without(std::string bytes, std::uint64_t first, std::uint64_t count) {
    return bytes.replace(first * kChunk, count * kChunk, count * kChunk, '\0');
  }

  ModelServer server_;
  TempDir temp_;
  StateDir dir_{temp_ / "state"};
  std::filesystem::path disk_ = temp_.write("a.img", noise(1, kSize));
  std::vector<DataRange> unused_ = {{10 * kChunk - 4096, 20 * kChunk + 4096}};
  bool skip_ = true;
  RunOptions options_;
};

TEST_F(EngineSkip, InitialSyncLeavesItOutAndNotesIt) {
  const EpochReport report = synced();
  EXPECT_EQ(report.kind, pb::INITIAL);
  EXPECT_TRUE(report.point) << report.reason;
  EXPECT_EQ(report.skipped_bytes, 10 * kChunk);
  EXPECT_EQ(report.compared_bytes + report.skipped_bytes, round_up(kSize, limits::kGranuleSize));
  EXPECT_LT(report.sent_bytes, 31 * kChunk + kChunk / 2);
  EXPECT_EQ(server_has(), without(content(), 10, 10));
  EXPECT_EQ(list().count(identity()), 10U);
  EXPECT_TRUE(list().covers(identity(), 10, 11));
  EXPECT_FALSE(list().covers(identity(), 0, 10));
  EXPECT_FALSE(list().covers(identity(), 20, 41));
}

TEST_F(EngineSkip, AComparisonMakesItZeroesOnceAndThenFindsItUnchanged) {
  unused_.clear();
  EXPECT_EQ(synced().skipped_bytes, 0U);
  EXPECT_EQ(server_has(), content());
  EXPECT_EQ(list().count(identity()), 0U);
  unused_ = {{10 * kChunk, 20 * kChunk}};
  const EpochReport second = synced();
  EXPECT_EQ(second.kind, pb::DELTA);
  EXPECT_EQ(second.skipped_bytes, 10 * kChunk);
  EXPECT_EQ(second.zero_bytes, 10 * kChunk);
  EXPECT_LT(second.sent_bytes, 4096U);
  EXPECT_EQ(server_has(), without(content(), 10, 10));
  patch(15 * kChunk, "written, and nobody refers to it");
  const EpochReport third = synced();
  EXPECT_TRUE(third.unchanged) << third.reason;
  // It is in use again.
  unused_ = {{10 * kChunk, 15 * kChunk}};
  EXPECT_EQ(synced().changed_bytes, 5 * kChunk);
  EXPECT_EQ(server_has(), without(content(), 10, 5));
  EXPECT_EQ(list().count(identity()), 5U);
}

TEST_F(EngineSkip, NotWhenTheConfigurationSaysSo) {
  synced();
  skip_ = false;
  EXPECT_EQ(synced().skipped_bytes, 0U);
  EXPECT_EQ(server_has(), content());
  EXPECT_EQ(list().count(identity()), 0U);
}

TEST_F(EngineSkip, WhatTheServerLostIsSentWhateverItIs) {
  synced();
  // Two granules at the ends of two chunks.
  server_.ask_again(*server_.disk_of(identity()), 13 * kGranules - 1, 2);
  const EpochReport report = synced();
  EXPECT_EQ(report.skipped_bytes, 8 * kChunk);
  EXPECT_EQ(server_has(), without(without(content(), 10, 2), 14, 6));
  EXPECT_FALSE(list().covers(identity(), 12, 14));
  EXPECT_EQ(list().count(identity()), 8U);
}

TEST_F(EngineSkip, TheListOutlivesAnAgentThatDiedInAnInitialSync) {
  // Buffers, queues and sockets hold less than what follows.
  disk_ = temp_.write("large.img", noise(2, 64 << 20));
  constexpr std::uint64_t kLate = (60 << 20) / kChunk;
  unused_ = {{0, 4 * kChunk}, {kLate * kChunk, (kLate + 3) * kChunk}};
  std::stop_source stop;
  server_.on_blocks([&](std::uint64_t total) {
    if (total > 8 << 20) stop.request_stop();
  });
  ASSERT_FALSE(sync(stop.get_token()));
  server_.on_blocks({});
  EXPECT_TRUE(list().covers(identity(), 0, 1));
  EXPECT_TRUE(list().covers(identity(), 5, 6)) << "of the rest nothing is known yet";
  // Where it goes on other chunks are unused now; what it left out before stays.
  unused_ = {{kLate * kChunk, (kLate + 1) * kChunk}};
  const EpochReport report = synced();
  EXPECT_TRUE(report.resumed);
  EXPECT_GT(report.resumed_bytes, 4 * kChunk);
  EXPECT_EQ(report.skipped_bytes, kChunk);
  EXPECT_EQ(report.compared_bytes + report.skipped_bytes + report.resumed_bytes, 64U << 20);
  EXPECT_EQ(server_has(), without(without(content(), 0, 4), kLate, 1));
  EXPECT_TRUE(list().covers(identity(), 0, 4));
  EXPECT_TRUE(list().covers(identity(), kLate, kLate + 1));
  EXPECT_FALSE(list().covers(identity(), kLate + 1, kLate + 40));
}

TEST_F(EngineSkip, WhatIsInUseWhenTheListCannotBeKept) {
  // A directory in the place of the file.
  std::filesystem::create_directories(dir_.path() / "unread/x");
  EXPECT_EQ(synced().skipped_bytes, 0U);
  EXPECT_EQ(server_has(), content());
}

TEST_F(EngineSkip, ADamagedListMeansThatNothingIsKnownUntilEverythingWasRead) {
  synced();
  ASSERT_TRUE(write_file_atomically(dir_.path() / "unread", "damaged", 0600));
  SkippedChunks damaged(dir_.path() / "unread");
  EXPECT_FALSE(damaged.load());
  EXPECT_TRUE(damaged.covers(identity(), 0, 1));
  EXPECT_TRUE(synced().unchanged);
  EXPECT_FALSE(list().covers(identity(), 0, 10));
  EXPECT_EQ(list().count(identity()), 10U);
}

TEST_F(EngineSkip, WithTrackingItIsAskedAfterTheTrackingBeganAndWhatIsMarkedIsRead) {
  options_.choose = choose_scripted;
  script.at_cut = [&] {
    patch(12 * kChunk + 8192, "a file of now");
    script.due = {{12 * kGranules + 2, 1}};
  };
  EXPECT_TRUE(synced().point);
  EXPECT_EQ(script.calls, (std::vector<std::string>{"begin", "ask", "cut"}));
  std::string expected = without(content(), 10, 10);
  expected.replace(12 * kChunk + 8192, 4096, content().substr(12 * kChunk + 8192, 4096));
  EXPECT_EQ(server_has(), expected);
  EXPECT_TRUE(list().covers(identity(), 12, 13)) << "the rest of the chunk was not read";
}

TEST_F(EngineSkip, WithTrackingAChunkThatIsReadWholeIsOffTheList) {
  options_.choose = choose_scripted;
  synced();
  script = {};
  script.everything = false;
  script.due = {{11 * kGranules - 3, 2 * kGranules + 3}, {15 * kGranules, kGranules - 1}};
  const EpochReport report = synced();
  EXPECT_TRUE(report.committed);
  EXPECT_EQ(report.skipped_bytes, 0U);
  EXPECT_EQ(script.calls, (std::vector<std::string>{"begin", "cut"})) << "only passes that read everything ask";
  EXPECT_EQ(list().count(identity()), 8U);
  EXPECT_FALSE(list().covers(identity(), 11, 13));
  EXPECT_TRUE(list().covers(identity(), 15, 16));
}

TEST_F(EngineSkip, WhatIsLeftOutCountsAsDone) {
  synced();
  const auto report = parse_report(*read_text_file(dir_.status()), "status");
  ASSERT_TRUE(report);
  EXPECT_EQ(report->done_bytes, report->total_bytes);
  EXPECT_EQ(report->total_bytes, round_up(kSize, limits::kGranuleSize));
}

}  // namespace
}  // namespace tidemark::agent
