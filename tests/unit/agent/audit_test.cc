#include "agent/audit.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <set>

#include "agent/file_descriptor.h"
#include "agent/text_file.h"
#include "base/crypto.h"
#include "base/limits.h"
#include "base/random.h"
#include "base/units.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

constexpr std::uint64_t kChunk = limits::kDigestChunkSize;
constexpr std::uint64_t kGranules = kChunk / limits::kGranuleSize;
using namespace std::chrono_literals;

// Knows what it is told; what is wanted is sent, and so right, with the next epoch.
class ToldTracker final : public Tracker {
 public:
  bool exact() const override { return true; }
  WallMicros since_us() const override { return 1; }
  Result<Suspects> begin_round(const RoundStart&) override { return Suspects{}; }
  Status cut() override { return {}; }
  WallMicros cut_us() const override { return 0; }
  void want(std::size_t disk, const GranuleRange& range) override {
    wanted.emplace_back(disk, range.first, range.count);
  }
  std::vector<GranuleRange> next(std::size_t&, std::uint64_t) override { return {}; }
  std::uint64_t hits(std::size_t disk, const GranuleRange& range) const override {
    std::uint64_t sum = 0;
    for (std::uint64_t i = range.first; i < range.first + range.count; ++i) sum += written.contains({disk, i}) ? 1 : 0;
    return sum;
  }
  bool sound() override { return is_sound; }
  void sent(EpochNumber) override {}
  void durable(EpochNumber) override {}
  void failed() override {}

  std::set<std::pair<std::size_t, std::uint64_t>> written;
  std::vector<std::tuple<std::size_t, std::uint64_t, std::uint64_t>> wanted;
  bool is_sound = true;
};

class AuditTest : public testing::Test {
 protected:
  AuditTest() {
    paths_ = {temp_.write("a.img", noise(1, 40 * kChunk)), temp_.write("b.img", noise(2, 3 * kChunk + 5000))};
    sources_.emplace(std::vector<std::string>(paths_.begin(), paths_.end()));
    EXPECT_TRUE(sources_->refresh());
    for (const auto& path : paths_) replica_.push_back(*read_text_file(path, 1 << 30));
    for (std::string& disk : replica_) disk.resize(round_up(disk.size(), limits::kGranuleSize));
    Memory memory;
    memory.machine = machine_;
    EpochFacts facts;
    facts.number = EpochNumber(7);
    facts.consistency = Consistency::crash;
    for (std::size_t i = 0; i < 2; ++i) {
      facts.disks.push_back(
          {DiskId(static_cast<std::uint32_t>(i + 1)), (*sources_)[i].identity(), "", (*sources_)[i].size()});
    }
    memory.durable = facts;
    keeper_.emplace(temp_ / "memory", memory, "boot");
    for (std::size_t i = 0; i < 2; ++i) skipped_.replace((*sources_)[i].identity(), 0, {});
    start();
  }

  static std::string noise(std::uint64_t seed, std::size_t size) {
    std::string bytes(size, '\0');
    Random(seed).fill(std::as_writable_bytes(std::span(bytes)));
    return bytes;
  }

  void start() { audit_.emplace(kPeriod, *sources_, tracker_, *keeper_, skipped_, clock_, std::stop_token()); }

  Result<std::vector<std::byte>> digests(DiskId disk, std::uint64_t first, std::uint32_t count, EpochNumber epoch) {
    EXPECT_EQ(epoch, EpochNumber(7));
    asked_ += count;
    if (failure_) return std::unexpected(*failure_);
    const std::string& bytes = replica_[disk.value() - 1];
    std::vector<std::byte> all;
    for (std::uint64_t chunk = first; chunk < first + count && chunk * kChunk < bytes.size(); ++chunk) {
      const Sha256 digest = sha256(std::string_view(bytes).substr(chunk * kChunk, kChunk));
      const auto view = std::as_bytes(std::span(digest));
      all.insert(all.end(), view.begin(), view.end());
    }
    return all;
  }
  Status step() {
    return audit_->step([this](DiskId disk, std::uint64_t first, std::uint32_t count,
                               EpochNumber epoch) { return digests(disk, first, count, epoch); },
                        clock_.monotonic() + 1s);
  }
  void steps(std::chrono::seconds span) {
    for (auto passed = 0s; passed < span; passed += 1s) {
      clock_.advance(1s);
      ASSERT_TRUE(step());
    }
  }
  void write(std::size_t disk, std::uint64_t offset, const std::string& bytes) {
    const FileDescriptor fd(::open(paths_[disk].c_str(), O_WRONLY));
    ASSERT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes.size()));
  }
  AuditRecord record() { return load_memory(temp_ / "memory", machine_)->audit; }

  static constexpr auto kPeriod = 44s;  // a chunk a second
  TempDir temp_;
  MachineId machine_ = *MachineId::parse("000102030405060708090a0b0c0d0e0f");
  ManualClock clock_{1'700'000'000'000'000};
  std::vector<std::filesystem::path> paths_;
  std::vector<std::string> replica_;
  std::optional<SourceSet> sources_;
  std::optional<MemoryKeeper> keeper_;
  ToldTracker tracker_;
  SkippedChunks skipped_{temp_ / "unread"};
  std::optional<Audit> audit_;
  std::uint64_t asked_ = 0;
  std::optional<Error> failure_;
};

TEST_F(AuditTest, APassProvesThatAllWasRightWhenItBegan) {
  steps(40s);
  EXPECT_EQ(record().proven_us, 0);
  EXPECT_GT(asked_, 20U);
  EXPECT_LE(asked_, 41U) << "no faster than its period allows";
  steps(10s);
  EXPECT_GT(record().proven_us, 1'700'000'000'000'000);
  EXPECT_LT(record().proven_us, 1'700'000'005'000'000) << "its first look, not its last";
  EXPECT_EQ(record().differences, 0U);
  EXPECT_TRUE(tracker_.wanted.empty());
  // And again.
  steps(50s);
  EXPECT_GT(record().proven_us, 1'700'000'040'000'000);
}

TEST_F(AuditTest, WhatDiffersWithoutAWriteIsToldAndSentAgain) {
  steps(60s);
  const WallMicros proven = record().proven_us;
  write(0, 21 * kChunk + 4096, "unseen");
  write(1, 3 * kChunk + 4990, "the tail");
  steps(60s);
  ASSERT_EQ(tracker_.wanted.size(), 2U);
  EXPECT_EQ(tracker_.wanted[0], std::tuple(0U, 21 * kGranules, kGranules));
  EXPECT_EQ(tracker_.wanted[1], std::tuple(1U, 3 * kGranules, 2U)) << "no further than the disk goes";
  const AuditRecord found = record();
  EXPECT_EQ(found.differences, 2U);
  EXPECT_NE(found.difference.find("b.img: 8192 bytes at 196608 differed"), std::string::npos) << found.difference;
  EXPECT_NE(found.difference.find("recovery points from " + format_rfc3339(proven)), std::string::npos)
      << found.difference;
  EXPECT_GT(found.difference_us, proven);
  EXPECT_GT(found.proven_us, proven) << "it was sent: the pass is whole";
}

TEST_F(AuditTest, WhatIsWrittenToIsLookedAtAgainAndThenSent) {
  write(0, 5 * kChunk, "a write that the tracker saw");
  write(0, 9 * kChunk, "one that travels with the next epoch");
  tracker_.written = {{0, 5 * kGranules}, {0, 9 * kGranules}};
  steps(17s);
  EXPECT_TRUE(tracker_.wanted.empty());
  // The second has arrived, the first is written to again and again.
  std::memcpy(replica_[0].data() + 9 * kChunk, "one that travels with the next epoch", 36);
  tracker_.written = {{0, 5 * kGranules}};
  steps(3s);
  ASSERT_EQ(tracker_.wanted.size(), 1U);
  EXPECT_EQ(tracker_.wanted[0], std::tuple(0U, 5 * kGranules, kGranules));
  EXPECT_EQ(record().differences, 0U);
  steps(40s);
  EXPECT_NE(record().proven_us, 0);
}

TEST_F(AuditTest, NothingIsSaidOfAReplicaWhileWritesMayHaveEscaped) {
  write(0, 0, "x");
  tracker_.is_sound = false;
  steps(60s);
  EXPECT_EQ(record().differences, 0U);
  EXPECT_FALSE(tracker_.wanted.empty()) << "it is sent all the same";
}

TEST_F(AuditTest, WhatTheServerHasNoDigestOfIsSent) {
  replica_[0].resize(39 * kChunk);
  steps(60s);
  ASSERT_EQ(tracker_.wanted.size(), 1U);
  EXPECT_EQ(tracker_.wanted[0], std::tuple(0U, 39 * kGranules, kGranules));
  EXPECT_EQ(record().differences, 0U);
}

TEST_F(AuditTest, WhatWasLeftOutUnreadIsNotCompared) {
  ChunkSet free;
  free.add({3, 2});
  skipped_.add((*sources_)[0].identity(), free);
  for (const std::uint64_t chunk : {3, 4, 5}) write(0, chunk * kChunk, "what was deleted");
  steps(60s);
  ASSERT_EQ(tracker_.wanted.size(), 1U);
  EXPECT_EQ(tracker_.wanted[0], std::tuple(0U, 5 * kGranules, kGranules));
  EXPECT_EQ(record().differences, 1U);
}

TEST_F(AuditTest, NothingIsComparedWhileItIsNotKnownWhatWasLeftOut) {
  skipped_.keep_only({(*sources_)[1].identity()});
  steps(60s);
  EXPECT_EQ(asked_, 0U);
  EXPECT_EQ(record().proven_us, 0);
}

TEST_F(AuditTest, GoesOnAfterARestartWhereItWas) {
  steps(36s);
  const std::uint64_t before = asked_;
  const WallMicros began = record().pass_began_us;
  ASSERT_NE(began, 0);
  start();
  steps(32s);
  EXPECT_LT(asked_ - before, 43U) << "it did not begin anew";
  EXPECT_EQ(record().proven_us, began);
}

TEST_F(AuditTest, WaitsForAPointAndForTime) {
  ASSERT_TRUE(keeper_->change([](Memory& memory) { memory.durable->consistency = Consistency::fuzzy; }));
  steps(20s);
  EXPECT_EQ(asked_, 0U);
  ASSERT_TRUE(keeper_->change([](Memory& memory) { memory.durable->consistency = Consistency::crash; }));
  clock_.advance(1s);
  ASSERT_TRUE(audit_->step([&](auto... all) { return digests(all...); }, clock_.monotonic()));
  EXPECT_EQ(asked_, 0U);
}

TEST_F(AuditTest, ALinkThatFailsIsToldAndLosesNothing) {
  failure_ = Error{Code::unavailable, "link", "cut", ""};
  clock_.advance(30s);
  EXPECT_FALSE(step());
  failure_.reset();
  steps(60s);
  EXPECT_NE(record().proven_us, 0);
}

TEST_F(AuditTest, ALinkThatFailsDoesNotMakeItForgetWhatWasBusy) {
  for (const std::uint64_t chunk : {5, 9}) {
    write(0, chunk * kChunk, "a write that the tracker saw");
    tracker_.written.insert({0, chunk * kGranules});
  }
  steps(17s);
  ASSERT_TRUE(tracker_.wanted.empty());
  failure_ = Error{Code::unavailable, "link", "cut", ""};
  clock_.advance(1s);
  EXPECT_FALSE(step());
  failure_.reset();
  steps(40s);
  ASSERT_EQ(tracker_.wanted.size(), 2U) << "looked at again, and then sent";
  EXPECT_NE(record().proven_us, 0);
}

TEST_F(AuditTest, WhatCannotBeReadIsNoProof) {
  steps(2s);
  std::filesystem::resize_file(paths_[0], 8 * kChunk);
  steps(60s);
  EXPECT_EQ(record().proven_us, 0);
  EXPECT_EQ(record().differences, 0U);
}

}  // namespace
}  // namespace tidemark::agent
