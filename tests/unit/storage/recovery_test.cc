#include "storage/recovery.h"

#include "log_fixture.h"

namespace tidemark::storage {
namespace {

using namespace log_fixture;

// A seeded small history: some turns of records of every kind, idle moments, and what was promised on the way.
struct History {
  explicit History(std::uint64_t seed) : random(seed) {}

  void run(Life& life, unsigned turns) {
    for (unsigned i = 0; i < turns && !life.log->stopped(); ++i) {
      const unsigned records = 1 + static_cast<unsigned>(random.below(3));
      for (unsigned j = 0; j < records; ++j) {
        Written record;
        record.of = machine(static_cast<unsigned>(random.below(2)));
        record.type = random.chance(0.6) ? RecordType::blocks : RecordType::epoch_commit;
        record.disk = DiskId(record.type == RecordType::blocks ? 3 : 0);
        record.payload = record.type == RecordType::blocks
                             ? blocks_payload(random, record.of, record.disk, EpochNumber(9), 1 + random.below(2))
                             : "control " + std::to_string(random.next());
        if (life.log->append(record.type, record.of, record.disk, bytes_of(record.payload)))
          written.push_back(std::move(record));
      }
      life.turn();
      if (random.chance(0.2)) life.idle();
    }
    if (random.chance(0.7)) life.settle();
    if (random.chance(0.5)) life.idle();
  }

  // Every record recovered is the one that was written at its LSN, in order from the first, byte for byte.
  void check(FileSystem& files, const std::vector<CommitInfo>& commits, bool bytes = true) const {
    std::uint64_t next = 1;
    for (const CommitInfo& commit : commits) {
      ASSERT_EQ(commit.first_lsn.value(), next);
      for (std::size_t i = 0; i < commit.records.size(); ++i, ++next) {
        ASSERT_LE(next, written.size());
        const Written& record = written[next - 1];
        ASSERT_EQ(commit.records[i].type, record.type);
        ASSERT_EQ(commit.records[i].machine, record.of);
        if (bytes) {
          ASSERT_EQ(read_record(files, commit, i), record.payload) << "LSN " << next;
        }
        if (record.type != RecordType::blocks) {
          ASSERT_EQ(commit.records[i].control, record.payload);
        }
      }
    }
  }

  // After a crash, what was not recovered never was.
  void forget_after(Lsn last) { written.resize(last.value()); }

  Random random;
  std::vector<Written> written;
  std::uint64_t promised = 0;  // the highest LSN that was ever reported durable
};

// Runs two lives with the power cut at `operation` of the first, recovers, checks; goes on in a second life, ends well,
// recovers again. False when the history was over before the cut.
bool crash_and_check(std::uint64_t seed, std::uint64_t operation) {
  SCOPED_TRACE(::testing::Message() << "seed " << seed << " operation " << operation);
  auto disk = new_disk(seed);
  disk->cut_power_at(operation);
  History history(seed);
  Lsn promised;
  {
    Life life(*disk);
    if (life.log) history.run(life, 12);
    promised = life.durable;
  }
  const bool cut = disk->powered_off();
  auto after = disk->crash();
  if (!after->files().exists(kDirectory).value()) return cut;  // cut before there was a log
  const auto recovered = recover(*after);
  EXPECT_TRUE(recovered) << recovered.error().message();
  if (!recovered) return false;
  EXPECT_GE(recovered->result.tail.last_lsn, promised) << "acknowledged and lost";
  EXPECT_TRUE(recovered->result.damaged.empty());
  history.check(after->files(), recovered->commits);
  history.forget_after(recovered->result.tail.last_lsn);

  {
    Life second(*after, recovered->result);
    second.durable = recovered->result.tail.last_lsn;
    EXPECT_TRUE(second.log.has_value());
    history.run(second, 4);
    second.settle();
    second.idle();
    promised = second.durable;
  }
  auto again = after->crash();
  const auto whole = recover(*again);
  EXPECT_TRUE(whole) << whole.error().message();
  if (!whole) return false;
  EXPECT_EQ(whole->result.tail.last_lsn, promised);
  history.check(again->files(), whole->commits);
  return cut && !::testing::Test::HasFailure();
}

TEST(Recovery, EveryCrashPointOfSmallHistoriesKeepsWhatWasAcknowledged) {
  std::uint64_t points = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    for (std::uint64_t operation = 0; operation < 2000; ++operation, ++points) {
      if (!crash_and_check(seed, operation)) break;
      ASSERT_LT(operation, 1999U);
    }
    ASSERT_FALSE(HasFailure());
  }
  RecordProperty("crash_points", static_cast<int>(points));
  EXPECT_GT(points, 2000U);
}

struct Damage : ::testing::Test {
  void SetUp() override {
    for (int i = 0; i < 3; ++i) {
      append(RecordType::epoch_begin, "begin " + std::to_string(i));
      append(RecordType::blocks, blocks_payload(random, machine(0), DiskId(3), EpochNumber(1), 2));
      life->settle();
    }
  }
  void append(RecordType type, const std::string& payload) {
    ASSERT_TRUE(life->log->append(type, machine(0), DiskId(type == RecordType::blocks ? 3 : 0), bytes_of(payload)));
  }
  const CommitInfo& last() const { return life->commits.back(); }
  void flip(const CommitInfo& commit, std::uint64_t at) {
    ASSERT_TRUE(disk->flip_bit(segment_path(kDirectory, commit.segment), commit.offset + at, 3));
  }

  std::unique_ptr<SimDisk> disk = new_disk(5);
  Random random{6};
  std::unique_ptr<Life> life = std::make_unique<Life>(*disk);
};

TEST_F(Damage, OfTheLastCommitIsATornTailWhenNothingStatesItDurable) {
  const CommitInfo rotted = last();
  flip(rotted, 5);
  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_EQ(recovered->commits.size(), 2U);
  EXPECT_EQ(recovered->result.tail.last_lsn.value(), rotted.first_lsn.value() - 1);
}

TEST_F(Damage, OfTheLastCommitIsCorruptionWhenTheIdleCommitStatesItDurable) {
  const CommitInfo rotted = last();
  life->idle();
  for (const std::uint64_t at :
       {std::uint64_t{5}, std::uint64_t{124}, sizeof(CommitHeader) + 2, std::uint64_t{rotted.size} - 4000}) {
    flip(rotted, at);
    const auto recovered = recover(*disk);
    if (at > sizeof(CommitHeader) + 100) {
      // Within a block's bytes, or the padding behind everything: the chain holds.
      EXPECT_TRUE(recovered);
    } else {
      ASSERT_FALSE(recovered) << at;
      EXPECT_EQ(recovered.error().code, Code::corrupt);
      EXPECT_EQ(recovered.error().object, segment_path(kDirectory, rotted.segment));
      EXPECT_NE(recovered.error().what.find("offset " + std::to_string(rotted.offset)), std::string::npos)
          << recovered.error().what;
      EXPECT_NE(recovered.error().what.find("LSNs 5 to 6"), std::string::npos) << recovered.error().what;
    }
    flip(rotted, at);
  }
  EXPECT_TRUE(recover(*disk)) << "nothing was changed";
}

TEST_F(Damage, OfAnOlderCommitIsCorruption) {
  flip(life->commits[0], 40);
  const auto recovered = recover(*disk);
  ASSERT_FALSE(recovered);
  EXPECT_EQ(recovered.error().code, Code::corrupt);
}

TEST_F(Damage, OfABlocksBytesThatWereDurableIsListedAndTheRestHandedOn) {
  life->idle();
  const CommitInfo& commit = life->commits[1];
  const BlockPlace& place = commit.blocks[1];
  flip(commit, place.offset - commit.offset + sizeof(wire::BlockHeader) + 17);
  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_EQ(recovered->commits, life->commits);
  ASSERT_EQ(recovered->result.damaged.size(), 1U);
  const DamagedBlock& damaged = recovered->result.damaged[0];
  EXPECT_EQ(damaged.segment, commit.segment);
  EXPECT_EQ(damaged.machine, machine(0));
  EXPECT_EQ(damaged.disk, DiskId(3));
  EXPECT_EQ(damaged.epoch, EpochNumber(1));
  EXPECT_EQ(damaged.place, place);
}

TEST_F(Damage, OfABlocksBytesAboveTheDurableMarkIsATornTail) {
  const CommitInfo torn = last();
  flip(torn, torn.blocks[0].offset - torn.offset + sizeof(wire::BlockHeader) + 100);
  const auto recovered = recover(*disk);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_EQ(recovered->commits.size(), 2U);
  EXPECT_TRUE(recovered->result.damaged.empty());
  EXPECT_EQ(recovered->result.torn_bytes, torn.size);
}

TEST_F(Damage, OfTheSegmentsHeaderIsCorruptionWhileItHoldsCommits) {
  ASSERT_TRUE(disk->flip_bit(segment_path(kDirectory, last().segment), 60, 0));
  const auto recovered = recover(*disk);
  ASSERT_FALSE(recovered);
  EXPECT_EQ(recovered.error().code, Code::corrupt);
}

TEST_F(Damage, AMissingSegmentInTheMiddleIsCorruption) {
  while (last().segment < SegmentId(4)) {
    append(RecordType::blocks, blocks_payload(random, machine(0), DiskId(3), EpochNumber(1), 3));
    life->settle();
  }
  ASSERT_TRUE(disk->files().remove(segment_path(kDirectory, SegmentId(2))));
  const auto recovered = recover(*disk);
  ASSERT_FALSE(recovered);
  EXPECT_EQ(recovered.error().code, Code::corrupt);
  EXPECT_NE(recovered.error().message().find("0000000000000002.segment: is missing"), std::string::npos)
      << recovered.error().message();
}

TEST_F(Damage, ASegmentCutShortIsCorruptionWhereAcknowledgedDataWas) {
  const CommitInfo lost = last();
  life->idle();
  // The tail of the file reads as zeroes, as after a repair of the file system; the idle commit is in another place.
  std::vector<std::byte> zeroes(lost.size);
  ASSERT_TRUE(disk->overwrite(segment_path(kDirectory, lost.segment), lost.offset, zeroes));
  const auto recovered = recover(*disk);
  ASSERT_FALSE(recovered);
  EXPECT_EQ(recovered.error().code, Code::corrupt);
}

TEST_F(Damage, FromTheMarkOnOnlyWhatFollowsIsHandedOn) {
  life->idle();
  const auto& commits = life->commits;
  for (std::size_t i = 0; i < commits.size(); ++i) {
    const LogMark mark{commits[i].segment, commits[i].offset + commits[i].size, commits[i].last_lsn,
                       commits[i].checksum};
    const auto recovered = recover(*disk, mark);
    ASSERT_TRUE(recovered) << recovered.error().message();
    EXPECT_EQ(recovered->commits,
              std::vector<CommitInfo>(commits.begin() + static_cast<std::ptrdiff_t>(i) + 1, commits.end()));
    EXPECT_EQ(recovered->result.tail.last_lsn, life->durable);
  }
}

TEST_F(Damage, BelowTheMarkIsCorruption) {
  LogMark mark{last().segment, last().offset + last().size, last().last_lsn, last().checksum};
  mark.checksum ^= 1;
  EXPECT_TRUE(recover(*disk, mark)) << "nothing follows: nothing contradicts";
  life->idle();
  auto recovered = recover(*disk, mark);
  ASSERT_FALSE(recovered) << "the commit there follows another one";
  EXPECT_EQ(recovered.error().code, Code::corrupt);
  mark.segment = SegmentId(99);
  recovered = recover(*disk, mark);
  ASSERT_FALSE(recovered) << "an index of another, or a later, log";
  EXPECT_EQ(recovered.error().code, Code::corrupt);
}

TEST_F(Damage, TheMarksSegmentMayBeRecycledOnceItsSuccessorStands) {
  while (last().segment < SegmentId(2)) {
    append(RecordType::blocks, blocks_payload(random, machine(0), DiskId(3), EpochNumber(1), 3));
    life->settle();
  }
  const auto& commits = life->commits;
  const CommitInfo& end = commits[commits.size() - 2];
  ASSERT_EQ(end.segment, SegmentId(1));
  const LogMark mark{end.segment, end.offset + end.size, end.last_lsn, end.checksum};
  life->keeper->recycle(SegmentId(1));
  while (life->keeper->step()) {
  }
  const auto recovered = recover(*disk, mark);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_EQ(recovered->commits, (std::vector<CommitInfo>{last()}));
  LogMark earlier = mark;
  earlier.offset -= end.size;
  earlier.lsn = Lsn(end.first_lsn.value() - 1);
  const auto broken = recover(*disk, earlier);
  ASSERT_FALSE(broken) << "not from within it";
  EXPECT_EQ(broken.error().code, Code::corrupt);
}

TEST_F(Damage, AnotherPartitionsSegmentAndANewerFormatAreRefused) {
  const std::string path = segment_path(kDirectory, SegmentId(1));
  SegmentHeader header;
  {
    auto file = disk->files().open(path, OpenMode::read, false);
    ASSERT_TRUE((*file)->read_at(0, std::as_writable_bytes(std::span(&header, 1))));
  }
  SegmentHeader changed = header;
  changed.partition = 8;
  ASSERT_TRUE(disk->overwrite(path, 0, std::as_bytes(std::span(&changed, 1))));
  auto recovered = recover(*disk);
  ASSERT_FALSE(recovered);
  EXPECT_EQ(recovered.error().code, Code::corrupt);
  EXPECT_NE(recovered.error().message().find("names partition 8 instead of 7"), std::string::npos);
  changed = header;
  changed.version = 2;
  seal(changed, kSalt);
  ASSERT_TRUE(disk->overwrite(path, 0, std::as_bytes(std::span(&changed, 1))));
  recovered = recover(*disk);
  ASSERT_FALSE(recovered);
  EXPECT_EQ(recovered.error().code, Code::unsupported);
}

TEST_F(Damage, WhatARecycledSegmentStillHoldsIsNeverTaken) {
  while (last().segment < SegmentId(3)) {
    append(RecordType::blocks, blocks_payload(random, machine(0), DiskId(3), EpochNumber(1), 3));
    life->settle();
  }
  const CommitInfo& end =
      *std::ranges::find_if(life->commits, [](const CommitInfo& c) { return c.segment == SegmentId(3); });
  const LogMark mark{end.segment, end.offset + end.size, end.last_lsn, end.checksum};
  for (const SegmentId dead : {SegmentId(1), SegmentId(2)}) life->keeper->recycle(dead);
  while (life->keeper->step()) {
  }
  const std::uint64_t formatted = life->keeper->stats().formatted;
  std::size_t before = life->commits.size();
  while (last().segment < SegmentId(5)) {  // both were recycled
    append(RecordType::blocks, blocks_payload(random, machine(0), DiskId(3), EpochNumber(1), 3));
    life->settle();
    const auto recovered = recover(*disk, mark);
    ASSERT_TRUE(recovered) << recovered.error().message();
    EXPECT_EQ(recovered->commits.size(), life->commits.size() - before + 0U) << "stale commits were taken";
  }
  EXPECT_EQ(life->keeper->stats().formatted, formatted) << "recycled, not formatted";
}

TEST_F(Damage, AnEmptyLogIsEmpty) {
  disk = new_disk(9);
  auto recovered = recover(*disk);
  ASSERT_TRUE(recovered);
  EXPECT_EQ(recovered->result.tail.last_lsn, Lsn(0));
  EXPECT_EQ(recovered->result.tail.last_segment, SegmentId(0));
  EXPECT_TRUE(recovered->result.segments.empty());
  const LogMark mark{SegmentId(3), 4096, Lsn(17), 1};
  recovered = recover(*disk, mark);
  ASSERT_FALSE(recovered) << "the index knows of more";
  EXPECT_EQ(recovered.error().code, Code::corrupt);
}

TEST_F(Damage, TheNewerIncarnationsCommitsHold) {
  // What a first incarnation wrote beyond the tail that a second one recovered stays on the disk, and is not taken.
  auto stale = std::make_unique<Life>(
      *disk, LogTail{life->durable, last().checksum, last().segment, last().offset + last().size, life->durable},
      Incarnation(1), SegmentId(20), std::vector<SegmentId>{SegmentId(1)});
  ASSERT_TRUE(stale->log);
  stale->durable = life->durable;
  auto recovered = recover(*disk);
  ASSERT_TRUE(recovered);
  auto newer = std::make_unique<Life>(*disk, recovered->result);
  newer->durable = recovered->result.tail.last_lsn;
  ASSERT_TRUE(newer->log->append(RecordType::machine, machine(0), DiskId(0), bytes_of("newer")));
  newer->settle();
  // The first one, not fenced, goes on in a segment of a higher id.
  auto zombie = std::make_unique<Life>(*disk, recovered->result.tail, Incarnation(1), SegmentId(40),
                                       std::vector<SegmentId>{SegmentId(1), newer->commits.back().segment});
  ASSERT_TRUE(zombie->log);
  zombie->durable = recovered->result.tail.last_lsn;
  ASSERT_TRUE(zombie->log->append(RecordType::machine, machine(0), DiskId(0), bytes_of("zombie")));
  zombie->settle();
  zombie->idle();
  recovered = recover(*disk);
  ASSERT_TRUE(recovered) << recovered.error().message();
  EXPECT_EQ(recovered->commits.back(), newer->commits.back());
  EXPECT_EQ(recovered->commits.back().records[0].control, "newer");
}

TEST_F(Damage, AnyOneFlippedBitIsFoundOrWithoutEffect) {
  for (int i = 0; i < 12; ++i) {
    append(RecordType::epoch_commit, "commit " + std::to_string(i));
    append(RecordType::blocks, blocks_payload(random, machine(0), DiskId(3), EpochNumber(2), 2));
    life->settle();
  }
  const CommitInfo acked = last();
  life->idle();
  ASSERT_GT(acked.segment, SegmentId(1));
  int corrupt = 0, damaged = 0;
  for (int i = 0; i < 3000; ++i) {
    const CommitInfo& commit = life->commits[random.below(life->commits.size())];
    const std::uint64_t at = random.below(commit.size);
    SCOPED_TRACE(::testing::Message() << "flip " << i << " of commit at LSN " << commit.first_lsn.value() << ", byte "
                                      << at);
    flip(commit, at);
    const auto recovered = recover(*disk);
    flip(commit, at);
    if (!recovered) {
      ASSERT_EQ(recovered.error().code, Code::corrupt);
      ++corrupt;
      continue;
    }
    ASSERT_EQ(recovered->result.tail.last_lsn, life->durable) << "an acknowledged record was dropped";
    const std::size_t whole = acked.records.empty() ? 0 : life->commits.size() - 1;  // the idle one may itself be hit
    ASSERT_GE(recovered->commits.size(), whole);
    ASSERT_TRUE(std::equal(recovered->commits.begin(), recovered->commits.end(), life->commits.begin()));
    for (const DamagedBlock& block : recovered->result.damaged) {
      ++damaged;
      const std::uint64_t byte = commit.offset + at;
      ASSERT_EQ(block.segment, commit.segment);
      ASSERT_GE(byte, block.place.offset + sizeof(wire::BlockHeader));
      ASSERT_LT(byte, block.place.offset + sizeof(wire::BlockHeader) + block.place.stored_size);
    }
    const bool in_block = std::ranges::any_of(commit.blocks, [&](const BlockPlace& place) {
      return commit.offset + at >= place.offset &&
             commit.offset + at < place.offset + sizeof(wire::BlockHeader) + place.stored_size;
    });
    ASSERT_EQ(recovered->result.damaged.size(), in_block ? 1U : 0U);
  }
  EXPECT_GT(corrupt, 50);
  EXPECT_GT(damaged, 1000);
}

// Writes that the disk says it did and did not, or did elsewhere: nothing wrong is ever handed on, and what is lost
// is said, unless it was the very end and nothing later could tell.
TEST(Recovery, LostAndMisdirectedWritesAreFoundOrTheVeryEnd) {
  int found = 0, unsaid = 0, well = 0;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    auto disk = new_disk(seed);
    History history(seed);
    SimFaults faults;
    faults.lost_write = 0.01;
    faults.misdirect = 0.01;
    std::unique_ptr<SimDisk> after;
    std::vector<CommitInfo> commits;
    {
      Life life(*disk);
      ASSERT_TRUE(life.log);
      disk->set_faults(faults);
      history.run(life, 25);
      commits = life.commits;
      after = disk->crash();
    }
    const auto recovered = recover(*after);
    if (!recovered) {
      ASSERT_EQ(recovered.error().code, Code::corrupt) << recovered.error().message();
      ++found;
      continue;
    }
    history.check(after->files(), recovered->commits, recovered->result.damaged.empty());
    const std::size_t kept = recovered->commits.size();
    if (kept >= commits.size()) {
      ++well;
    } else {
      ++unsaid;
      ASSERT_GE(kept + limits::kCommitsInFlightMax, commits.size())
          << "only what was in flight together can be lost unsaid";
    }
  }
  EXPECT_GT(found, 20);
  EXPECT_GT(well, 100);
  EXPECT_LT(unsaid, 80);
  std::printf("lost or misdirected: %d found, %d at the very end, %d without effect\n", found, unsaid, well);
}

// Long histories over many crashes, on a disk that fails writes and syncs and runs full.
TEST(Recovery, LongRandomHistoriesWithFailuresKeepWhatWasAcknowledged) {
  std::uint64_t failures = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    auto disk = new_disk(seed);
    History history(seed);
    for (int life_number = 0; life_number < 12; ++life_number) {
      SCOPED_TRACE(::testing::Message() << "life " << life_number);
      const auto recovered = recover(*disk);
      ASSERT_TRUE(recovered) << recovered.error().message();
      ASSERT_GE(recovered->result.tail.last_lsn.value(), history.promised);
      history.check(disk->files(), recovered->commits);
      ASSERT_FALSE(::testing::Test::HasFailure());
      history.forget_after(recovered->result.tail.last_lsn);
      SimFaults faults;
      faults.write_error = 0.03;
      faults.short_write = 0.01;
      faults.sync_error = 0.05;
      std::unique_ptr<SimDisk> after;
      {
        Life life(*disk, recovered->result);
        ASSERT_TRUE(life.log) << life.open_error->message();
        life.durable = recovered->result.tail.last_lsn;
        disk->set_faults(faults);
        if (history.random.chance(0.2)) disk->set_capacity(history.random.below(2_MiB));
        history.run(life, 5 + static_cast<unsigned>(history.random.below(40)));
        failures += life.log->counters().failures;
        history.promised = life.durable.value();
        disk->set_capacity(1_GiB);
        after = disk->crash();  // with whatever is in flight
      }
      disk = std::move(after);
    }
  }
  EXPECT_GT(failures, 100U) << "the test is to meet them";
}

// As a partition runs it: the index's mark moves on behind the durable LSN, segments below it are recycled in any
// order, and each start replays from the mark only.
TEST(Recovery, LongRandomHistoriesWithAMovingMarkAndRecycledSegments) {
  std::uint64_t recycled = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    auto disk = new_disk(seed);
    History history(seed);
    LogMark mark;
    for (int life_number = 0; life_number < 12; ++life_number) {
      SCOPED_TRACE(::testing::Message() << "life " << life_number);
      auto recovered = recover(*disk, mark);
      ASSERT_TRUE(recovered) << recovered.error().message();
      const RecoveryResult& result = recovered->result;
      ASSERT_GE(result.tail.last_lsn.value(), history.promised);
      std::uint64_t next = mark.lsn.value() + 1;
      for (const CommitInfo& commit : recovered->commits) {
        ASSERT_EQ(commit.first_lsn.value(), next);
        for (std::size_t i = 0; i < commit.records.size(); ++i, ++next)
          ASSERT_EQ(read_record(disk->files(), commit, i), history.written[next - 1].payload) << "LSN " << next;
      }
      ASSERT_EQ(next, result.tail.last_lsn.value() + 1);
      history.forget_after(result.tail.last_lsn);
      std::unique_ptr<SimDisk> after;
      {
        Life life(*disk, result);
        ASSERT_TRUE(life.log) << life.open_error->message();
        life.durable = result.tail.last_lsn;
        std::vector<SegmentId> old = result.segments;
        std::vector<CommitInfo> commits = std::move(recovered->commits);
        for (int part = 0; part < 4; ++part) {
          history.run(life, 1 + static_cast<unsigned>(history.random.below(12)));
          for (CommitInfo& commit : life.commits) {
            if (old.empty() || old.back() != commit.segment) old.push_back(commit.segment);
            commits.push_back(std::move(commit));
          }
          life.commits.clear();
          if (commits.empty() || history.random.chance(0.4)) continue;
          const CommitInfo& applied = commits[history.random.below(commits.size())];
          const LogMark moved{applied.segment, applied.offset + applied.size, applied.last_lsn, applied.checksum};
          if (moved.lsn < mark.lsn || moved.segment < mark.segment ||
              (moved.segment == mark.segment && moved.offset < mark.offset))
            continue;
          mark = moved;
          std::erase_if(old, [&](SegmentId id) {
            if (id >= mark.segment || history.random.chance(0.5)) return false;
            life.keeper->recycle(id);
            ++recycled;
            return true;
          });
        }
        history.promised = life.durable.value();
        after = disk->crash();
      }
      disk = std::move(after);
    }
  }
  EXPECT_GT(recycled, 500U);
}

}  // namespace
}  // namespace tidemark::storage
