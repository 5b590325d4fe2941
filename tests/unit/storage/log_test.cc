#include "storage/log.h"

#include "log_fixture.h"

namespace tidemark::storage {
namespace {

using namespace log_fixture;

struct LogTest : ::testing::Test {
  std::unique_ptr<SimDisk> disk = new_disk(1);
  Random random{2};
  std::vector<Written> written;

  Result<Lsn> append(Life& life, RecordType type, std::string payload, unsigned of = 0) {
    auto lsn = life.log->append(type, machine(of), DiskId(type == RecordType::blocks ? 1 : 0), bytes_of(payload));
    if (lsn) written.push_back({type, machine(of), DiskId(1), std::move(payload)});
    return lsn;
  }
  void append_some(Life& life, unsigned records) {
    for (unsigned i = 0; i < records; ++i) {
      if (random.chance(0.5))
        ASSERT_TRUE(append(life, RecordType::blocks, blocks_payload(random, machine(0), DiskId(1), EpochNumber(4), 2)));
      else
        ASSERT_TRUE(append(life, RecordType::epoch_begin, "begin " + std::to_string(i)));
    }
  }
  void expect_all_read_back(FileSystem& files, const std::vector<CommitInfo>& commits) {
    std::size_t next = 0;
    for (const CommitInfo& commit : commits) {
      for (std::size_t i = 0; i < commit.records.size(); ++i, ++next) {
        ASSERT_LT(next, written.size());
        EXPECT_EQ(commit.records[i].lsn.value(), next + 1);
        EXPECT_EQ(commit.records[i].type, written[next].type);
        EXPECT_EQ(read_record(files, commit, i), written[next].payload) << "LSN " << next + 1;
      }
    }
    EXPECT_EQ(next, written.size());
  }
};

TEST_F(LogTest, ReportsWhatItWroteAndRecoveryMakesTheSameOfIt) {
  Life life(*disk);
  for (int turn = 0; turn < 30; ++turn) {
    append_some(life, 3);
    life.settle();
  }
  EXPECT_EQ(life.durable, life.log->last_lsn());
  EXPECT_GT(life.log->counters().segments, 5U) << "the history spans segments";
  expect_all_read_back(disk->files(), life.commits);

  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_EQ(recovered->commits, life.commits);
  EXPECT_EQ(recovered->result.tail.last_lsn, life.durable);
  EXPECT_EQ(recovered->result.tail.last_checksum, life.commits.back().checksum);
  EXPECT_TRUE(recovered->result.damaged.empty());
}

TEST_F(LogTest, NothingIsReportedBeforeItsWriteCompletes) {
  Life life(*disk);
  append_some(life, 1);
  life.queue->hold(true);
  life.turn();
  ASSERT_EQ(life.queue->submitted(), 1U) << "the segment's header goes first, alone";
  life.queue->complete(0);
  life.queue->submit();
  ASSERT_EQ(life.queue->submitted(), 1U);
  EXPECT_EQ(life.durable, Lsn(0));
  EXPECT_EQ(life.log->durable_lsn(), Lsn(0));
  life.queue->complete(0);
  EXPECT_EQ(life.durable, Lsn(1));
}

TEST_F(LogTest, CommitsThatCompleteOutOfOrderAreReportedInOrder) {
  Life life(*disk);
  append_some(life, 1);
  life.settle();
  life.queue->hold(true);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(append(life, RecordType::machine, "m"));
    life.turn();
  }
  ASSERT_EQ(life.queue->submitted(), 3U);
  life.queue->complete(2);
  life.queue->complete(1);
  EXPECT_EQ(life.durable, Lsn(1)) << "the oldest is still in flight";
  life.queue->complete(0);
  EXPECT_EQ(life.durable, Lsn(4));
}

TEST_F(LogTest, GathersWhileTheMostCommitsAreInFlight) {
  Life life(*disk);
  append_some(life, 1);
  life.settle();
  const auto commits_before = life.log->counters().commits;
  life.queue->hold(true);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(append(life, RecordType::machine, "tiny " + std::to_string(i)));
    life.turn();
  }
  EXPECT_EQ(life.log->counters().commits - commits_before, 3U);
  life.queue->complete(1);
  EXPECT_EQ(life.log->counters().commits - commits_before, 3U) << "its place is free only when it is reported";
  life.queue->complete(0);
  EXPECT_EQ(life.log->counters().commits - commits_before, 4U) << "all that was gathered, in one";
  life.queue->submit();
  life.queue->hold(false);
  life.settle();
  EXPECT_EQ(life.durable, Lsn(21));
}

TEST_F(LogTest, SaysBusyWhenAllBuffersAreInFlightAndGoesOnAfterwards) {
  Life life(*disk);
  append_some(life, 1);
  life.settle();
  life.queue->hold(true);
  std::optional<Error> refused;
  for (int i = 0; i < 1000 && !refused; ++i) {
    const std::size_t room = life.log->room();
    auto lsn = append(life, RecordType::blocks, blocks_payload(random, machine(0), DiskId(1), EpochNumber(1), 3));
    if (!lsn) {
      refused = lsn.error();
      EXPECT_LT(room, 32_KiB);
    }
    life.turn();
  }
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->code, Code::busy);
  life.queue->hold(false);
  life.settle();
  EXPECT_EQ(life.durable, life.log->last_lsn());
  append_some(life, 1);
  life.settle();
  expect_all_read_back(disk->files(), life.commits);
}

TEST_F(LogTest, ARecordThatCannotFitOrIsMalformedIsRefusedAndLosesNothing) {
  Life life(*disk);
  EXPECT_EQ(life.log->append(RecordType::machine, machine(0), DiskId(0), std::vector<std::byte>(70'000)).error().code,
            Code::invalid_argument);
  append_some(life, 2);
  EXPECT_FALSE(life.log->append(RecordType::blocks, machine(0), DiskId(1), bytes_of("not blocks")));
  const auto foreign = blocks_payload(random, machine(0), DiskId(2), EpochNumber(1), 1);
  EXPECT_FALSE(life.log->append(RecordType::blocks, machine(0), DiskId(1), bytes_of(foreign)));
  append_some(life, 2);
  life.settle();
  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered);
  EXPECT_EQ(recovered->commits, life.commits);
  expect_all_read_back(disk->files(), recovered->commits);
}

TEST_F(LogTest, AfterAFailedWriteWhatWasNotAcknowledgedGoesToAFreshSegment) {
  for (const int result : {-EIO, -ENOSPC, 512}) {
    for (const std::size_t failing : {0U, 1U, 2U}) {
      disk = new_disk(3);
      written.clear();
      Life life(*disk);
      append_some(life, 2);
      life.settle();
      const SegmentId poisoned = life.commits.back().segment;
      life.queue->hold(true);
      for (int i = 0; i < 3; ++i) {
        ASSERT_TRUE(append(life, RecordType::machine, "m" + std::to_string(i)));
        life.turn();
      }
      ASSERT_EQ(life.queue->submitted(), 3U);
      life.queue->fail(failing, result);
      EXPECT_EQ(life.log->counters().failures, 0U) << "others are still in flight";
      life.queue->hold(false);
      append_some(life, 1);
      life.settle();
      ASSERT_FALSE(life.stopped);
      EXPECT_EQ(life.log->counters().failures, 1U);
      EXPECT_EQ(life.log->counters().rewritten, 3U - failing);
      EXPECT_EQ(life.durable, life.log->last_lsn());
      for (const CommitInfo& commit : life.commits)
        EXPECT_EQ(commit.segment > poisoned, commit.first_lsn.value() > 2 + failing) << commit.first_lsn.value();
      expect_all_read_back(disk->files(), life.commits);
      const auto recovered = recover(*disk);
      ASSERT_TRUE(recovered) << recovered.error().message();
      EXPECT_EQ(recovered->commits, life.commits);
    }
  }
}

TEST_F(LogTest, ASecondFailureInARowStopsItForGood) {
  Life life(*disk);
  append_some(life, 2);
  life.settle();
  const std::vector<CommitInfo> before = life.commits;
  while (life.keeper->step()) {
  }
  SimFaults faults;
  faults.write_error = 1;
  disk->set_faults(faults);
  ASSERT_TRUE(life.log->append(RecordType::machine, machine(0), DiskId(0), bytes_of("lost")));
  life.settle();
  ASSERT_TRUE(life.stopped);
  EXPECT_EQ(life.stopped->code, Code::io);
  EXPECT_TRUE(life.log->stopped());
  EXPECT_EQ(life.log->append(RecordType::machine, machine(0), DiskId(0), bytes_of("m")).error(), *life.stopped);
  EXPECT_EQ(life.log->room(), 0U);
  EXPECT_EQ(life.commits, before);
  disk->set_faults({});
  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_GE(recovered->commits.size(), before.size()) << "what was acknowledged is there";
}

TEST_F(LogTest, FailuresThatAreNotInARowAreEachSurvived) {
  Life life(*disk);
  for (int i = 0; i < 5; ++i) {
    append_some(life, 1);
    life.settle();
    life.queue->hold(true);
    append_some(life, 1);
    life.turn();
    life.queue->fail(0, -EIO);
    life.queue->hold(false);
    life.settle();
    ASSERT_FALSE(life.stopped);
  }
  EXPECT_EQ(life.log->counters().failures, 5U);
  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_EQ(recovered->commits, life.commits);
}

TEST_F(LogTest, AnEmptyCommitCarriesTheDurableLsnOutOnceIdle) {
  Life life(*disk);
  life.idle();
  EXPECT_TRUE(life.commits.empty()) << "nothing to say yet";
  append_some(life, 1);
  life.settle();
  ASSERT_EQ(life.commits.size(), 1U);
  life.idle();
  ASSERT_EQ(life.commits.size(), 2U);
  EXPECT_TRUE(life.commits[1].records.empty());
  EXPECT_EQ(life.commits[1].first_lsn, Lsn(2));
  EXPECT_EQ(life.commits[1].last_lsn, Lsn(1));
  EXPECT_EQ(life.commits[1].size, limits::kIoAlignment);
  life.idle();
  EXPECT_EQ(life.commits.size(), 2U) << "said once";
  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered);
  EXPECT_EQ(recovered->commits, life.commits);
}

TEST_F(LogTest, WithLingerATurnsEndWaitsForMore) {
  disk = new_disk(1);
  Life life(*disk);
  LogOptions options;
  options.partition = kPartition;
  options.salt = kSalt;
  options.incarnation = Incarnation(1);
  options.linger = std::chrono::microseconds(1000);
  life.log.emplace(options, *life.queue, *life.keeper, life.clock, LogTail{}, life);
  append_some(life, 1);
  life.settle();
  EXPECT_TRUE(life.commits.empty());
  life.clock.advance(std::chrono::microseconds(1000));
  append_some(life, 1);
  life.settle();
  ASSERT_EQ(life.commits.size(), 1U);
  EXPECT_EQ(life.commits[0].records.size(), 2U);
}

TEST_F(LogTest, WaitsForSpaceWithoutLosingAnything) {
  Life life(*disk);
  append_some(life, 1);
  life.settle();
  disk->set_capacity(0);  // nothing can be formatted any more
  std::optional<Error> refused;
  for (int i = 0; i < 2000 && !refused; ++i) {
    auto lsn = append(life, RecordType::blocks, blocks_payload(random, machine(0), DiskId(1), EpochNumber(1), 2));
    if (!lsn) refused = lsn.error();
    life.settle();
  }
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->code, Code::busy);
  EXPECT_EQ(life.keeper->stats().error->code, Code::no_space);
  EXPECT_FALSE(life.stopped);
  disk->set_capacity(1_GiB);
  life.keeper->retry();
  life.settle();
  append_some(life, 1);
  life.settle();
  EXPECT_EQ(life.durable, life.log->last_lsn());
  expect_all_read_back(disk->files(), life.commits);
}

}  // namespace
}  // namespace tidemark::storage
