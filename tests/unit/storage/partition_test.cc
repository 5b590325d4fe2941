#include "storage/partition.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <thread>

#include "storage/changes.h"
#include "storage/disk_view.h"
#include "storage/system_files.h"
#include "storage/uring_queue.h"
#include "tests/sim/forwarding_files.h"
#include "tests/sim/store_rig.h"
#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::machine_id;
using fixtures::TemporaryDirectory;
using sim::StoreRig;
using namespace std::chrono_literals;

constexpr std::uint64_t kDiskSize = 3 << 20;

PartitionOptions small_options() {
  PartitionOptions options;
  options.segment_size = 256 << 10;
  options.reserve_segments = 1;
  options.free_space_min = 0;
  options.index = {.cache_bytes = 4 << 20, .write_buffer_bytes = 4 << 20};
  return options;
}

pb::MachineRecord named(unsigned number, const std::string& name) {
  pb::MachineRecord record;
  record.set_machine(machine_to_bytes(machine_id(number)));
  record.set_name(name);
  return record;
}

pb::DiskRecord disk_record(const std::string& identity, std::uint64_t size) {
  pb::DiskRecord disk;
  disk.set_identity(identity);
  disk.set_name(identity);
  disk.set_size(size);
  return disk;
}

pb::EpochBeginRecord begin_record(std::uint64_t number, std::uint32_t kind, std::uint64_t size = kDiskSize) {
  pb::EpochBeginRecord begin;
  begin.set_number(number);
  begin.set_kind(kind);
  auto* disk = begin.add_disks();
  disk->set_disk(0);
  disk->set_size(size);
  return begin;
}

pb::EpochCommitRecord commit_record(std::uint64_t number, std::int64_t time_us = 0, std::uint32_t consistency = 2) {
  pb::EpochCommitRecord commit;
  commit.set_number(number);
  commit.set_time_us(time_us);
  commit.set_consistency(consistency);
  commit.set_digest(hash_to_bytes({number, ~number}));
  return commit;
}

pb::EpochAbortRecord abort_record(std::uint64_t number) {
  pb::EpochAbortRecord abort;
  abort.set_number(number);
  abort.set_reason("test");
  return abort;
}

std::vector<std::byte> block(const MachineId& machine, std::uint64_t epoch, std::uint64_t granule, sim::Token token,
                             DiskId disk = DiskId(0)) {
  wire::BlockEncoder encoder(machine);
  encoder.start(disk, EpochNumber(epoch));
  std::vector<std::byte> plain(limits::kGranuleSize);
  sim::granule_of(token, plain);
  encoder.add(granule, plain);
  return encoder.take();
}

class PartitionTest : public ::testing::Test {
 protected:
  void start(PartitionOptions options = small_options()) {
    rig_ = std::make_unique<StoreRig>(42, std::move(options));
    ASSERT_TRUE(rig_->create());
    open();
  }
  void open() {
    const auto opened = rig_->open();
    ASSERT_TRUE(opened) << opened.error().message();
  }
  void add_machine() {
    ASSERT_TRUE(store().put_machine(named(1, "web1"), {}));
    ASSERT_TRUE(store().open_disk(machine_, disk_record("a", kDiskSize)));
  }
  void good(const Status& status) { ASSERT_TRUE(status) << status.error().message(); }
  void epoch(std::uint64_t number, std::uint64_t granule, sim::Token token) {
    good(store().begin_epoch(machine_, begin_record(number, 2)));
    good(store().append_blocks(machine_, DiskId(0), block(machine_, number, granule, token)));
    good(store().commit_epoch(machine_, commit_record(number, static_cast<std::int64_t>(number) * 1000)));
    rig_->pump(true);
  }
  sim::Token token_at(std::uint64_t epoch_number, std::uint64_t granule) {
    auto reader = store().read(machine_, DiskId(0), EpochNumber(epoch_number), 0ms);
    if (!reader) return ~0ull;
    std::vector<std::byte> bytes(limits::kGranuleSize);
    if (!(*reader)->read(granule * limits::kGranuleSize, bytes)) return ~0ull;
    sim::Token token = 0;
    std::memcpy(&token, bytes.data(), sizeof token);
    return token;
  }
  Partition& store() { return rig_->store(); }

  const MachineId machine_ = machine_id(1);
  std::unique_ptr<StoreRig> rig_;
};

TEST_F(PartitionTest, CommittedEpochsAreAcknowledgedAndReadAsTheyWere) {
  start();
  add_machine();
  epoch(1, 5, 100);
  epoch(2, 5, 101);
  epoch(3, 6, 102);
  const auto acks = rig_->take_acks();
  ASSERT_EQ(acks.size(), 3u);
  EXPECT_EQ(acks[2].epoch, EpochNumber(3));
  EXPECT_EQ(acks[2].digest, (Hash128{3, ~3ull}));
  EXPECT_EQ(token_at(1, 5), 100u);
  EXPECT_EQ(token_at(2, 5), 101u);
  EXPECT_EQ(token_at(3, 5), 101u);
  EXPECT_EQ(token_at(2, 6), 0u);
  EXPECT_EQ(token_at(3, 6), 102u);
  rig_->cut_power();
  open();
  EXPECT_EQ(store().find(machine_)->durable_epoch, EpochNumber(3));
  EXPECT_EQ(store().find(machine_)->next_epoch, EpochNumber(4));
  EXPECT_EQ(token_at(3, 5), 101u);
}

TEST_F(PartitionTest, BlocksWithoutAnOpenEpochAreRefused) {
  start();
  add_machine();
  const auto payload = block(machine_, 1, 0, 4);
  EXPECT_EQ(store().append_blocks(machine_, DiskId(0), payload).error().code, Code::protocol);
  EXPECT_EQ(store().append_blocks(machine_id(9), DiskId(0), payload).error().code, Code::not_found);
  good(store().begin_epoch(machine_, begin_record(1, 2)));
  EXPECT_EQ(store().append_blocks(machine_, DiskId(7), payload).error().code, Code::protocol);
  EXPECT_EQ(store().begin_epoch(machine_, begin_record(2, 2)).error().code, Code::protocol);
  EXPECT_EQ(store().commit_epoch(machine_, commit_record(2)).error().code, Code::protocol);
  good(store().commit_epoch(machine_, commit_record(1)));
  EXPECT_EQ(store().append_blocks(machine_, DiskId(0), payload).error().code, Code::protocol);
  EXPECT_EQ(store().commit_epoch(machine_, commit_record(1)).error().code, Code::protocol);
  EXPECT_EQ(store().begin_epoch(machine_, begin_record(1, 2)).error().code, Code::protocol)
      << "numbers are not taken twice";
}

TEST_F(PartitionTest, InitialEpochIsResumedWhereItIsDurable) {
  start();
  add_machine();
  good(store().begin_epoch(machine_, begin_record(1, 1)));
  good(store().append_blocks(machine_, DiskId(0), block(machine_, 1, 10, 100)));
  rig_->pump(true);
  good(store().append_blocks(machine_, DiskId(0), block(machine_, 1, 11, 102)));
  rig_->cut_power();
  open();
  const MachineState* state = store().find(machine_);
  ASSERT_TRUE(state->open_epoch);
  EXPECT_EQ(state->open_epoch->number(), 1u);
  EXPECT_EQ(state->open_epoch->blocks(), 1u);
  ASSERT_EQ(state->open_epoch->positions_size(), 1);
  EXPECT_EQ(state->open_epoch->positions(0).size(), 11u);
  good(store().begin_epoch(machine_, begin_record(1, 1)));
  good(store().append_blocks(machine_, DiskId(0), block(machine_, 1, 11, 104)));
  good(store().commit_epoch(machine_, commit_record(1)));
  EXPECT_FALSE(store().find(machine_)->open_epoch) << "its commit is appended";
  rig_->pump(true);
  EXPECT_EQ(token_at(1, 10), 100u);
  EXPECT_EQ(token_at(1, 11), 104u);
}

TEST_F(PartitionTest, DeltaEpochThatWasCutOffStaysUntilItIsAborted) {
  start();
  add_machine();
  epoch(1, 5, 100);
  good(store().begin_epoch(machine_, begin_record(2, 2)));
  good(store().append_blocks(machine_, DiskId(0), block(machine_, 2, 5, 200)));
  rig_->pump(true);
  rig_->cut_power();
  open();
  ASSERT_TRUE(store().find(machine_)->open_epoch);
  EXPECT_EQ(store().find(machine_)->begun_epoch, EpochNumber(2));
  good(store().abort_epoch(machine_, abort_record(2)));
  EXPECT_FALSE(store().find(machine_)->open_epoch);
  good(store().abort_epoch(machine_, abort_record(2)));
  epoch(3, 6, 300);
  EXPECT_EQ(token_at(3, 5), 100u);
  rig_->kill();
  rig_->lose_index();
  open();
  EXPECT_FALSE(rig_->opened().index_rebuilt.empty());
  EXPECT_EQ(token_at(3, 5), 100u);
  EXPECT_EQ(token_at(3, 6), 300u);
  EXPECT_EQ(store().find(machine_)->next_epoch, EpochNumber(4));
}

TEST_F(PartitionTest, MachineIsKnownOnceItsRecordIsDurable) {
  start();
  int called = 0;
  good(store().put_machine(named(1, "web1"), [&](const Status& status) { called += status ? 1 : 100; }));
  EXPECT_EQ(called, 0);
  bool settled = false;
  store().when_durable([&](const Status& status) { settled = status.has_value(); });
  EXPECT_FALSE(settled);
  EXPECT_EQ(store().put_machine(named(2, "web1"), {}).error().code, Code::already_exists);
  rig_->pump(true);
  EXPECT_EQ(called, 1);
  EXPECT_TRUE(settled);
  settled = false;
  store().when_durable([&](const Status& status) { settled = status.has_value(); });
  EXPECT_TRUE(settled) << "nothing is in flight";
  rig_->cut_power();
  open();
  ASSERT_NE(store().find_by_name("web1"), nullptr);
  good(store().put_machine(named(1, "web2"), {}));
  EXPECT_EQ(store().find_by_name("web1"), nullptr);
  EXPECT_NE(store().find_by_name("web2"), nullptr);
}

TEST_F(PartitionTest, DisksAreRecognisedByTheirIdentity) {
  start();
  add_machine();
  const auto second = store().open_disk(machine_, disk_record("b", 4096));
  ASSERT_TRUE(second);
  EXPECT_EQ(second->disk(), 1u);
  const auto again = store().open_disk(machine_, disk_record("a", 2 * kDiskSize));
  ASSERT_TRUE(again);
  EXPECT_EQ(again->disk(), 0u);
  EXPECT_EQ(again->size(), 2 * kDiskSize);
  EXPECT_NE(again->volume(), second->volume());
  EXPECT_EQ(store().open_disk(machine_, disk_record("c", 0)).error().code, Code::invalid_argument);
  EXPECT_EQ(store().open_disk(machine_, disk_record("c", limits::kDiskSizeMax + 1)).error().code,
            Code::invalid_argument);
  EXPECT_EQ(store().open_disk(machine_, disk_record("", 4096)).error().code, Code::invalid_argument);
}

TEST_F(PartitionTest, RemovedMachineIsGoneAndItsSegmentsAreUsedAgain) {
  auto options = small_options();
  options.index_flush_bytes = 1;  // after every commit
  start(options);
  add_machine();
  for (std::uint64_t number = 1; number <= 60; ++number) {
    good(store().begin_epoch(machine_, begin_record(number, 2)));
    for (std::uint64_t i = 0; i < 8; ++i) {
      good(store().append_blocks(machine_, DiskId(0), block(machine_, number, i, number * 100 + i * 2)));
    }
    good(store().commit_epoch(machine_, commit_record(number)));
    rig_->pump(true);
  }
  auto reader = store().read(machine_, DiskId(0), EpochNumber(3), 0ms);
  ASSERT_TRUE(reader);
  auto removed = store().find(machine_)->record;
  removed.set_removed(true);
  good(store().put_machine(removed, {}));
  EXPECT_EQ(store().find(machine_), nullptr);
  good(store().put_machine(named(2, "web1"), {}));  // the name is free again
  rig_->pump(true);
  store().on_idle();
  EXPECT_EQ(store().put_machine(named(1, "back"), {}).error().code, Code::not_found);
  std::vector<std::byte> bytes(4096);
  const auto read = (*reader)->read(0, bytes);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Code::not_found);
  EXPECT_LE(store().stats().segments, 2u) << "a reader that is not reading keeps nothing";
  reader->reset();
  rig_->cut_power();
  open();
  EXPECT_EQ(store().find(machine_), nullptr);
  EXPECT_NE(store().find_by_name("web1"), nullptr);
}

TEST_F(PartitionTest, ADeadSegmentWithARottenHeaderKeepsNoOtherFromBeingGivenBack) {
  auto options = small_options();
  options.index_flush_bytes = 1;  // after every commit
  start(options);
  add_machine();
  for (std::uint64_t number = 1; number <= 160; ++number) epoch(number, number % 8, number * 2 + 100);
  const std::uint64_t before = store().stats().segments;
  ASSERT_GT(before, 4u);
  const auto names = rig_->files().list("/p0/log");
  ASSERT_TRUE(names);
  const std::string oldest = "/p0/log/" + names->at(0), second = "/p0/log/" + names->at(1);
  for (const std::string& rotten : {second, oldest}) ASSERT_TRUE(rig_->disk().flip_bit(rotten, 20, 1));
  auto removed = store().find(machine_)->record;
  removed.set_removed(true);
  good(store().put_machine(removed, {}));  // all of it is dead
  const auto turns = [&] {
    for (int i = 0; i < 3; ++i) {
      rig_->pump(true);
      store().on_idle();
    }
  };
  turns();
  EXPECT_LE(store().stats().segments, 4u) << "of " << before << ": those two, and those that are written to";
  for (const std::string& rotten : {second, oldest}) {
    EXPECT_TRUE(*rig_->files().exists(rotten));
    ASSERT_TRUE(rig_->disk().flip_bit(rotten, 20, 1));  // it was the reading that failed
    turns();
    EXPECT_FALSE(*rig_->files().exists(rotten));
  }
  EXPECT_LE(store().stats().segments, 2u);
  rig_->cut_power();
  rig_->lose_index();
  open();
  EXPECT_EQ(store().find(machine_), nullptr);
}

TEST_F(PartitionTest, FullDiskRefusesNewDataAndStillTakesCommits) {
  start();
  add_machine();
  good(store().begin_epoch(machine_, begin_record(1, 2)));
  good(store().append_blocks(machine_, DiskId(0), block(machine_, 1, 1, 100)));
  rig_->pump(true);
  rig_->kill();
  auto options = small_options();
  options.free_space_min = 1 << 20;
  rig_.reset();
  start(options);
  add_machine();
  good(store().begin_epoch(machine_, begin_record(1, 2)));
  good(store().append_blocks(machine_, DiskId(0), block(machine_, 1, 1, 100)));
  rig_->pump(true);
  rig_->disk().set_capacity(1 << 20);
  const auto refused = store().append_blocks(machine_, DiskId(0), block(machine_, 1, 1, 102));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::no_space);
  EXPECT_NE(refused.error().message().find("MiB"), std::string::npos);
  good(store().commit_epoch(machine_, commit_record(1)));
  rig_->pump(true);
  EXPECT_EQ(rig_->take_acks().size(), 1u);
  EXPECT_EQ(store().begin_epoch(machine_, begin_record(2, 2)).error().code, Code::no_space);
  rig_->disk().set_capacity(1 << 30);
  epoch(2, 2, 104);
  EXPECT_EQ(token_at(2, 1), 100u);
}

TEST_F(PartitionTest, AnotherServersOrADamagedPartitionIsRefused) {
  start();
  rig_->kill();
  ManualClock clock(0);
  auto queue = rig_->disk().make_queue();
  auto options = small_options();
  const auto other =
      Partition::open(rig_->files(), StoreRig::kDirectory, PartitionId(0), "another", options, *queue, clock, *rig_);
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().what.find("another"), std::string::npos);
  EXPECT_EQ(rig_->create().error().code, Code::already_exists);
  ASSERT_TRUE(rig_->disk().flip_bit("/p0/partition", 30, 1));
  EXPECT_EQ(rig_->open().error().code, Code::corrupt);
}

TEST_F(PartitionTest, IndexAheadOfTheLogIsRefused) {
  start();
  add_machine();
  epoch(1, 5, 100);
  good(rig_->close());
  // The log of an older copy: its files are gone.
  auto& files = rig_->files();
  const auto names = files.list("/p0/log");
  ASSERT_TRUE(names);
  for (const std::string& name : *names) ASSERT_TRUE(files.remove("/p0/log/" + name));
  const auto opened = rig_->open();
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, Code::corrupt);
}

TEST_F(PartitionTest, PointsAreFoundByTheirTime) {
  start();
  add_machine();
  epoch(1, 1, 100);
  epoch(2, 1, 102);
  good(store().begin_epoch(machine_, begin_record(3, 2)));
  good(store().commit_epoch(machine_, commit_record(3, 2500, 1)));  // fuzzy
  rig_->pump(true);
  EXPECT_EQ(store().point_at(machine_, std::nullopt, 0ms)->number(), 2u);
  EXPECT_EQ(store().point_at(machine_, 1999, 0ms)->number(), 1u);
  EXPECT_EQ(store().point_at(machine_, 2000, 0ms)->number(), 2u);
  const auto before = store().point_at(machine_, 999, 0ms);
  ASSERT_FALSE(before);
  EXPECT_EQ(before.error().code, Code::not_found);
  EXPECT_EQ(store().epochs(machine_, 0, true, 0ms)->size(), 3u);
  EXPECT_EQ(store().find(machine_)->newest_point, EpochNumber(2));
  EXPECT_EQ(store().find(machine_)->durable_epoch, EpochNumber(3));
  EXPECT_EQ(store().read(machine_, DiskId(0), EpochNumber(9), 0ms).error().code, Code::not_found);
  EXPECT_EQ(store().read(machine_, DiskId(3), EpochNumber(1), 0ms).error().code, Code::not_found);
}

// The indexer's thread looks after the space between two commits: there it can be held.
class IndexerHeld final : public sim::ForwardingFiles {
 public:
  using ForwardingFiles::ForwardingFiles;
  Result<SpaceInfo> space(const std::string& path) override {
    std::array<char, 16> thread{};  // others look there too
    ::pthread_getname_np(::pthread_self(), thread.data(), thread.size());
    if (hold_ && std::string_view(thread.data()) == "tm-index") {
      held_ = true;
      held_.notify_all();
      hold_.wait(true);
    }
    return ForwardingFiles::space(path);
  }
  void hold() {
    hold_ = true;
    held_.wait(false);
  }
  void let_go() {
    hold_ = false;
    hold_.notify_all();
  }

 private:
  std::atomic<bool> hold_{false};
  std::atomic<bool> held_{false};
};

// A real partition: files of the kernel, the ring, all threads. The test's thread is its shard.
class PartitionOnTheKernel : public ::testing::Test, public Partition::Listener {
 protected:
  void SetUp() override {
    auto queue = make_uring_queue(64);
    if (!queue) GTEST_SKIP() << "no io_uring here: " << queue.error().message();
    queue_ = *std::move(queue);
    ASSERT_TRUE(Partition::create(system_files(), path_, PartitionId(0), "server"));
  }
  void TearDown() override { files_.let_go(); }
  void open() {
    PartitionOptions options;
    options.segment_size = 8 << 20;
    options.free_space_min = 0;
    durable_ = EpochNumber();
    durable_bytes_ = 0;
    auto opened = Partition::open(files_, path_, PartitionId(0), "server", options, *queue_, Clock::system(), *this);
    ASSERT_TRUE(opened) << opened.error().message();
    partition_ = std::move(opened->partition);
  }
  Partition& store() { return *partition_; }
  void turn() {
    store().on_idle();
    queue_->submit();
    if (queue_->in_flight() != 0) {
      queue_->wait();
      queue_->submit();
    } else {
      std::this_thread::sleep_for(1ms);
    }
  }
  void good(const auto& call) {
    Status status = call();
    for (; !status && status.error().code == Code::busy; status = call()) turn();
    ASSERT_TRUE(status) << status.error().message();
  }
  void commit(std::uint64_t number) {
    good([&] { return store().commit_epoch(machine_, commit_record(number)); });
    while (durable_ != EpochNumber(number)) turn();
  }

  void on_epoch_durable(const MachineId&, EpochNumber epoch, const Hash128&) override { durable_ = epoch; }
  void on_bytes_durable(const MachineId&, std::uint64_t bytes) override { durable_bytes_ += bytes; }
  void on_room() override {}
  void on_stopped(const Error& why) override { FAIL() << why.message(); }

  const MachineId machine_ = machine_id(1);
  TemporaryDirectory directory_;
  const std::string path_ = directory_.path() + "/p0";
  IndexerHeld files_{system_files()};
  std::unique_ptr<IoQueue> queue_;
  std::unique_ptr<Partition> partition_;
  EpochNumber durable_;
  std::uint64_t durable_bytes_ = 0;
};

TEST_F(PartitionOnTheKernel, WritesReopensAndReads) {
  for (std::uint64_t life = 1; life <= 3; ++life) {
    open();
    if (life == 1) {
      ASSERT_TRUE(store().put_machine(named(1, "web1"), {}));
      ASSERT_TRUE(store().open_disk(machine_, disk_record("a", 64 << 20)));
    } else {
      EXPECT_EQ(store().find(machine_)->durable_epoch, EpochNumber(life - 1));
    }
    good([&] { return store().begin_epoch(machine_, begin_record(life, 2, 64 << 20)); });
    std::uint64_t sent = 0;
    for (std::uint64_t granule = 0; granule < 2000; ++granule) {
      const auto payload = block(machine_, life, granule * 7, 2 * (life * 10000 + granule));
      good([&] { return store().append_blocks(machine_, DiskId(0), payload); });
      sent += payload.size();
    }
    commit(life);
    EXPECT_EQ(durable_bytes_, sent);
    auto reader = store().read(machine_, DiskId(0), EpochNumber(life), 30s);
    ASSERT_TRUE(reader) << reader.error().message();
    std::vector<std::byte> got(4096), expected(4096);
    for (std::uint64_t granule = 0; granule < 2000; granule += 13) {
      ASSERT_TRUE((*reader)->read(granule * 7 * 4096, got));
      sim::granule_of(2 * (life * 10000 + granule), expected);
      ASSERT_EQ(got, expected);
    }
    reader->reset();
    if (life != 2) {
      const auto closed = store().close();
      ASSERT_TRUE(closed) << closed.error().message();
    }
    partition_.reset();
  }
}

// Who asks for an epoch that the index does not have yet has looked up the machine before it waits: the epoch's new
// disk is not in that record.
TEST_F(PartitionOnTheKernel, ADiskIsThereAsSoonAsItsFirstEpochIsDurable) {
  open();
  ASSERT_TRUE(store().put_machine(named(1, "web1"), {}));
  ASSERT_TRUE(store().open_disk(machine_, disk_record("a", kDiskSize)));
  good([&] { return store().begin_epoch(machine_, begin_record(1, 2)); });
  commit(1);
  ASSERT_TRUE(store().read(machine_, DiskId(0), EpochNumber(1), 30s));

  files_.hold();
  ASSERT_TRUE(store().open_disk(machine_, disk_record("b", kDiskSize)));
  auto begin = begin_record(2, 2);
  *begin.add_disks() = begin.disks(0);
  begin.mutable_disks(1)->set_disk(1);
  good([&] { return store().begin_epoch(machine_, begin); });
  good([&] { return store().append_blocks(machine_, DiskId(1), block(machine_, 2, 5, 102, DiskId(1))); });
  commit(2);
  ASSERT_EQ(store().epochs(machine_, 0, false, 0ms).error().code, Code::timed_out) << "the index is not held";
  Result<std::unique_ptr<Reader>> read = nullptr;
  Result<CloneBase> base = CloneBase{};
  Result<std::unique_ptr<Changes>> changes = nullptr;
  {
    const std::jthread reads([&] { read = store().read(machine_, DiskId(1), EpochNumber(2), 30s); });
    const std::jthread clones([&] { base = store().clone_base(machine_, EpochNumber(2), 30s); });
    const std::jthread compares(
        [&] { changes = store().changes(machine_, DiskId(1), EpochNumber(1), EpochNumber(2), 30s); });
    std::this_thread::sleep_for(100ms);  // until all wait, as a rule
    files_.let_go();
  }
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ((*read)->disk_size(), kDiskSize);
  ASSERT_TRUE(base) << base.error().message();
  EXPECT_EQ(base->disks.size(), 2u);
  ASSERT_TRUE(changes) << changes.error().message();
  const auto ranges = (*changes)->next();
  ASSERT_TRUE(ranges);
  ASSERT_EQ(ranges->size(), 1u);
  EXPECT_EQ(ranges->front().offset, 5 * limits::kGranuleSize);
}

}  // namespace
}  // namespace tidemark::storage
