// How much room each machine takes, through all that happens to what it wrote, and what goes on when there is none
// left.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "storage/cold_segment.h"
#include "storage/partition.h"
#include "storage/space.h"
#include "tests/sim/store_rig.h"
#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::machine_id;
using sim::StoreRig;
using namespace std::chrono_literals;

constexpr std::uint64_t kDiskSize = 3_MiB;
constexpr WallMicros kHour = 3'600'000'000;

class SpaceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.segment_size = 256_KiB;
    options_.reserve_segments = 1;
    options_.free_space_min = 0;
    options_.index = {.cache_bytes = 4_MiB, .write_buffer_bytes = 4_MiB};
    options_.index_flush_bytes = 1;  // after every commit
    options_.settler.settle_after_us = kHour;
    options_.settler.mature_after = 1;
    options_.settler.log_garbage_max = -1;
    options_.settler.fold_every_us = kHour;
    options_.settler.cold_segment_size = 128_KiB;
  }
  void start() {
    rig_ = std::make_unique<StoreRig>(42, options_);
    good(rig_->create());
    good(rig_->open());
  }
  static void good(const Status& status) { ASSERT_TRUE(status) << status.error().message(); }
  Partition& store() { return rig_->store(); }

  MachineId add_machine(unsigned number, std::uint32_t disks = 1) {
    pb::MachineRecord record;
    record.set_machine(machine_to_bytes(machine_id(number)));
    record.set_name("web" + std::to_string(number));
    good(store().put_machine(record, {}));
    for (std::uint32_t i = 0; i < disks; ++i) {
      pb::DiskRecord disk;
      disk.set_identity("disk" + std::to_string(i));
      disk.set_size(kDiskSize);
      EXPECT_TRUE(store().open_disk(machine_id(number), disk));
    }
    return machine_id(number);
  }
  void begin(const MachineId& machine, std::uint64_t number, std::uint32_t disks = 1) {
    pb::EpochBeginRecord record;
    record.set_number(number);
    record.set_kind(2);
    for (std::uint32_t i = 0; i < disks; ++i) {
      auto* disk = record.add_disks();
      disk->set_disk(i);
      disk->set_size(kDiskSize);
    }
    good(store().begin_epoch(machine, record));
  }
  // Blocks of 8 granules that do not compress, at each of these places; gives the bytes they are stored in.
  std::uint64_t write(const MachineId& machine, std::uint64_t number, const std::vector<std::uint64_t>& places,
                      std::uint32_t disk = 0, std::uint32_t granules = 8) {
    wire::BlockEncoder encoder(machine);
    encoder.start(DiskId(disk), EpochNumber(number));
    std::vector<std::byte> plain(granules * limits::kGranuleSize);
    for (const std::uint64_t place : places) {
      for (std::size_t at = 0; at < plain.size(); at += sizeof(std::uint64_t)) {
        const std::uint64_t bits = random_.next();
        std::memcpy(plain.data() + at, &bits, sizeof bits);
      }
      encoder.add(place, plain);
    }
    const auto payload = encoder.take();
    good(store().append_blocks(machine, DiskId(disk), payload));
    return payload.size();
  }
  void commit(const MachineId& machine, std::uint64_t number) {
    pb::EpochCommitRecord record;
    record.set_number(number);
    record.set_time_us(static_cast<std::int64_t>(number) * 1000);
    record.set_consistency(2);
    record.set_digest(hash_to_bytes({number, ~number}));
    good(store().commit_epoch(machine, record));
    rig_->pump(true);
  }
  std::uint64_t epoch(const MachineId& machine, std::uint64_t number, const std::vector<std::uint64_t>& places) {
    begin(machine, number);
    const std::uint64_t bytes = write(machine, number, places);
    commit(machine, number);
    return bytes;
  }
  void work() {
    for (int turn = 0; turn < 12; ++turn) {
      store().on_idle();
      rig_->pump(true);
    }
  }
  void drop(const MachineId& machine, std::uint64_t from, std::uint64_t to) {
    std::vector<EpochNumber> dropped;
    for (std::uint64_t number = from; number <= to; ++number) dropped.emplace_back(number);
    store().drop_points(machine, dropped);
    work();
  }
  void expect_stored(const std::map<MachineId, std::uint64_t>& expected, const char* when) {
    SCOPED_TRACE(when);
    std::map<MachineId, std::uint64_t> got;
    std::uint64_t all = 0;
    for (const auto& space : store().machine_space()) all += got[space.machine] = space.stored_bytes;
    EXPECT_EQ(got, expected);
    EXPECT_EQ(store().stats().stored_bytes, all);
    good(store().check_counts());
  }

  PartitionOptions options_;
  std::unique_ptr<StoreRig> rig_;
  Random random_{7};
};

TEST_F(SpaceTest, TheAccountsAreExactThroughAllThatHappensToABlock) {
  start();
  const MachineId a = add_machine(1), b = add_machine(2, 2);
  std::map<MachineId, std::uint64_t> stored;
  std::uint64_t newest = 0;
  for (std::uint64_t number = 1; number <= 20; ++number) stored[a] += newest = epoch(a, number, {0, 40, 300});
  begin(b, 1, 2);
  stored[b] += write(b, 1, {0, 100});
  stored[b] += write(b, 1, {200}, 1);
  rig_->pump(true);
  expect_stored(stored, "an open epoch counts as well");
  commit(b, 1);
  for (const auto& space : store().machine_space()) {
    EXPECT_EQ(space.logical_bytes, space.machine == a ? kDiskSize : 2 * kDiskSize);
    EXPECT_EQ(space.cold_bytes, 0u);
  }
  rig_->cut_power();
  good(rig_->open());
  expect_stored(stored, "after a power cut");
  good(rig_->close());
  rig_->lose_index();
  good(rig_->open());
  expect_stored(stored, "counted anew from the log");

  rig_->clock().advance(std::chrono::microseconds(2 * kHour));
  work();
  ASSERT_GT(store().stats().settler.blocks_moved, 0u);
  ASSERT_GT(store().stats().cold_bytes, 0u);
  expect_stored(stored, "settled whole: every point shows another version");
  std::uint64_t settled = 0;
  for (const auto& space : store().machine_space()) {
    EXPECT_LE(space.cold_bytes, space.stored_bytes);
    settled += space.cold_bytes;
  }
  EXPECT_GT(settled, 0u);
  EXPECT_LE(settled, store().stats().cold_bytes) << "there are headers and tables beside them";

  drop(a, 1, 19);
  rig_->clock().advance(std::chrono::microseconds(2 * kHour));
  work();
  stored[a] = newest;
  expect_stored(stored, "one point is left");
  rig_->cut_power();
  rig_->lose_index();
  good(rig_->open());
  rig_->clock().advance(std::chrono::microseconds(2 * kHour));
  work();
  expect_stored(stored, "counted anew from log and cold segments");

  pb::MachineRecord gone = store().find(a)->record;
  gone.set_removed(true);
  good(store().put_machine(gone, {}));
  rig_->pump(true);
  work();
  stored.erase(a);
  expect_stored(stored, "a removed machine takes nothing");
  std::uint64_t cold = 0;
  const auto segments = list_cold_segments(rig_->files(), "/p0/cold");
  ASSERT_TRUE(segments);
  for (const SegmentId segment : *segments) {
    auto file = rig_->files().open(cold_path("/p0/cold", segment), OpenMode::read, false);
    ASSERT_TRUE(file);
    cold += (*file)->size().value();
  }
  EXPECT_EQ(store().stats().cold_bytes, cold);
}

TEST_F(SpaceTest, WhatAMachineTakesInTheIndexIsAboutKnown) {
  start();
  const MachineId large = add_machine(1), small = add_machine(2);
  for (std::uint64_t number = 1; number <= 600; ++number) epoch(large, number, {0, 40, 300, 500});
  epoch(small, 1, {0});
  good(rig_->close());
  good(rig_->open());
  const auto bytes = store().index_bytes(std::array{large, small, machine_id(9)});
  EXPECT_GT(bytes[0], 1000u) << "compressed";
  EXPECT_LT(bytes[0], 2400u * 100);
  EXPECT_LE(bytes[1], bytes[0] / 2);
  EXPECT_EQ(bytes[2], 0u) << "there is none";
}

TEST_F(SpaceTest, ABlockOfWhichAPartIsLeftCountsByThatPartOnceItWasMoved) {
  start();
  const MachineId machine = add_machine(1);
  const std::uint64_t whole = epoch(machine, 1, {0});
  begin(machine, 2);
  const std::uint64_t half = write(machine, 2, {4}, 0, 4);
  commit(machine, 2);
  drop(machine, 1, 1);
  expect_stored({{machine, whole + half}}, "a fold keeps whole blocks");
  for (std::uint64_t number = 3; number <= 12; ++number) epoch(machine, number, {256, 300, 512, 600});
  drop(machine, 2, 11);
  rig_->clock().advance(std::chrono::microseconds(2 * kHour));
  work();
  const std::uint64_t newest = 4 * (limits::kBlockHeaderSize + 8 * limits::kGranuleSize);
  expect_stored({{machine, newest + 2 * (limits::kBlockHeaderSize + 4 * limits::kGranuleSize)}}, "a move cuts them");
}

TEST_F(SpaceTest, AnAbortedEpochCountsUntilItIsFoldedAway) {
  start();
  const MachineId machine = add_machine(1);
  const std::uint64_t first = epoch(machine, 1, {0});
  begin(machine, 2);
  const std::uint64_t aborted = write(machine, 2, {0, 16});
  pb::EpochAbortRecord record;
  record.set_number(2);
  good(store().abort_epoch(machine, record));
  rig_->pump(true);
  expect_stored({{machine, first + aborted}}, "aborted");
  const std::uint64_t third = epoch(machine, 3, {0});
  drop(machine, 1, 1);
  expect_stored({{machine, third}}, "folded");
}

TEST_F(SpaceTest, WithLittleSpaceNothingWaitsToGrowOld) {
  options_.free_space_min = 1_MiB;
  start();
  const MachineId machine = add_machine(1);
  // Something of each stays.
  for (std::uint64_t number = 1; number <= 30; ++number) epoch(machine, number, {0, 40, 300, 400 + 8 * number});
  drop(machine, 1, 29);
  const std::uint64_t before = store().stats().segments;
  ASSERT_GT(before, 8u) << "they are young";
  rig_->disk().set_capacity(1_MiB + store().stats().space.total - store().stats().space.available);
  work();
  rig_->clock().advance(std::chrono::seconds(11));
  work();
  EXPECT_LT(store().stats().segments, before) << "as many settle as are needed";
  EXPECT_GE(store().stats().space.available, 1_MiB + 1_MiB / 2) << "and the file system has it back";
  epoch(machine, 31, {0});
  good(store().check_counts());
}

TEST(FreeSpace, GrowsWithTheSegments) {
  EXPECT_EQ(free_space_needed(64_MiB), 4 * 64_MiB + kIndexReserve);
  EXPECT_EQ(free_space_needed(8_MiB), 4 * 8_MiB + kIndexReserve);
}

}  // namespace
}  // namespace tidemark::storage
