// Which segments of the log the settler leaves as they are, and which it waits for.
#include <gtest/gtest.h>

#include "tests/unit/storage/settling_fixture.h"

namespace tidemark::storage {
namespace {

using namespace fixtures;

PartitionOptions keeping_options() {
  PartitionOptions options = settling_options();
  options.settler.log_garbage_max = 0.3;  // three blocks of 64 KiB fill three quarters of a segment
  return options;
}

class SettlingChoice : public SettlingFixture {
 protected:
  void SetUp() override { start(keeping_options()); }
  // Every granule of the disk once, in blocks of 64 KiB, none of them zeroes: what an initial sync is.
  void bulk(const MachineId& machine, std::uint64_t number) {
    begin(machine, number, 1);
    fill(machine, number, 0, kDiskGranules);
    commit(machine, number);
  }
  void fill(const MachineId& machine, std::uint64_t number, std::uint64_t from, std::uint64_t to) {
    for (std::uint64_t first = from; first < to; first += limits::kBlockGranulesMax) {
      wire::BlockEncoder encoder(machine, 0);
      encoder.start(DiskId(0), EpochNumber(number));
      std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
      for (std::uint64_t i = 0; i < limits::kBlockGranulesMax; ++i) {
        const Token token = random_.next() | 1;
        current_[machine].granules[first + i] = token & ~Token{1};
        sim::granule_of(token & ~Token{1}, std::span(plain).subspan(i * limits::kGranuleSize, limits::kGranuleSize));
      }
      encoder.add(first, plain);
      good(store().append_blocks(machine, DiskId(0), encoder.take()));
      rig_->pump(true);
    }
  }
};

TEST_F(SettlingChoice, WhatIsAllLiveIsNotWrittenTwice) {
  const MachineId machine = add_machine(1);
  bulk(machine, 1);
  settle();
  const auto stats = store().stats();
  EXPECT_GT(stats.settler.segments_kept, 8u);
  EXPECT_LE(stats.settler.blocks_moved, 2 * (256u / 64))
      << "a segment or two at the begin and the end may be half full";
  EXPECT_GT(stats.segments, 8u);
  expect_points("kept");
}

TEST_F(SettlingChoice, WhatIsDueIsCountedUntilItIsSettled) {
  start(settling_options());
  const MachineId machine = add_machine(1);
  epochs(machine, 1, 24);
  const auto space = rig_->files().space(StoreRig::kDirectory);
  ASSERT_TRUE(space);
  rig_->disk().set_capacity(space->total - space->available);  // no room for a cold segment
  store().on_idle();
  rig_->pump(true);
  EXPECT_GT(store().stats().settler.segments_due, 3u);
  rig_->disk().set_capacity(1_GiB);
  settle();
  EXPECT_EQ(store().stats().settler.segments_due, 0u);
  expect_points("settled");
}

TEST_F(SettlingChoice, KeptSegmentsAreNotReadAgainAfterARestart) {
  const MachineId machine = add_machine(1);
  bulk(machine, 1);
  settle();
  const std::uint64_t segments = store().stats().segments;
  good(rig_->close());
  good(rig_->open());
  settle();
  EXPECT_LE(store().stats().settler.segments_kept, 1u) << "the one that was the newest before";
  EXPECT_GE(store().stats().segments + 1, segments);
  expect_points("opened again");
}

TEST_F(SettlingChoice, WhatGoesOfAKeptSegmentIsNoticed) {
  const MachineId machine = add_machine(1);
  bulk(machine, 1);
  settle();
  const std::uint64_t before = store().stats().segments;
  // Every third block again, and the first point goes: every segment is a third dead.
  begin(machine, 2);
  for (std::uint64_t at = 0; at < kDiskGranules; at += 3 * limits::kBlockGranulesMax)
    fill(machine, 2, at, at + limits::kBlockGranulesMax);
  commit(machine, 2);
  settle();
  EXPECT_GE(store().stats().segments, before) << "both points show everything";
  drop(machine, {1});
  settle();
  EXPECT_LT(store().stats().segments, before);
  EXPECT_GT(store().stats().settler.blocks_moved, 20u);
  expect_points("moved");
}

TEST_F(SettlingChoice, AnIndexThatIsLostIsMadeAnewAcrossKeptAndRemovedNeighbours) {
  const MachineId a = add_machine(1), b = add_machine(2);
  // Segments that stay, of a, between those of b, which go.
  std::uint64_t number = 1;
  for (int turn = 0; turn < 3; ++turn) {
    begin(a, number, 2);
    fill(a, number, static_cast<std::uint64_t>(turn) * 256, static_cast<std::uint64_t>(turn + 1) * 256);
    commit(a, number);
    epochs(b, number, number + 9);
    number += 10;
    std::vector<std::uint64_t> gone;
    for (std::uint64_t n = 1; n + 1 < number; ++n)
      if (points_[b].contains(n)) gone.push_back(n);
    drop(b, gone);
    settle();
  }
  EXPECT_GT(store().stats().settler.segments_kept, 3u);
  expect_points("settled");
  rig_->cut_power();
  lose_index_and_open();
  expect_points("without an index");
  settle();
  expect_points("settled again");
  rig_->cut_power();
  good(rig_->open());
  expect_points("after another power cut");
}

TEST_F(SettlingChoice, WhatIsStillLiveWaitsUntilItIsADayOld) {
  PartitionOptions options = keeping_options();
  options.settler.settle_after_us = 3'600'000'000;
  start(std::move(options));
  const MachineId machine = add_machine(1);
  epochs(machine, 1, 30);
  rig_->clock().advance(2h);
  settle();
  EXPECT_EQ(store().stats().settler.blocks_moved, 0u) << "everything is live and may go within a day";
  rig_->clock().advance(24h);
  settle();
  EXPECT_GT(store().stats().settler.blocks_moved + store().stats().settler.segments_kept, 0u);
  expect_points("a day later");
}

TEST_F(SettlingChoice, WithLittleSpaceWhatWasLeftIsMovedForWhatItGives) {
  PartitionOptions options = keeping_options();
  options.free_space_min = 1 << 20;
  start(std::move(options));
  const MachineId machine = add_machine(1);
  bulk(machine, 1);
  settle();
  const auto before = store().stats();
  ASSERT_GT(before.settler.segments_kept, 8u);
  const auto space = rig_->files().space("/p0");
  ASSERT_TRUE(space);
  rig_->disk().set_capacity((1 << 20) + space->total - space->available);
  settle();
  EXPECT_GT(store().stats().settler.blocks_moved, before.settler.blocks_moved);
  EXPECT_LT(store().stats().segments, before.segments) << "a quarter of each is not filled";
  expect_points("moved");
}

TEST_F(SettlingChoice, WhatIsMostlyDeadDoesNotWait) {
  PartitionOptions options = keeping_options();
  options.settler.settle_after_us = 3'600'000'000;
  start(std::move(options));
  const MachineId machine = add_machine(1);
  epochs(machine, 1, 40);
  settle();
  const std::uint64_t before = store().stats().segments;
  std::vector<std::uint64_t> gone;
  for (std::uint64_t number = 1; number < 38; ++number) gone.push_back(number);
  rig_->clock().advance(2h);
  drop(machine, gone);
  settle();
  EXPECT_LT(store().stats().segments, before);
  expect_points("thinned out");
}

}  // namespace
}  // namespace tidemark::storage
