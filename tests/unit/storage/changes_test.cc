// What was written between two points, against a model of the disks; and Index::written, on which it stands.
#include "storage/changes.h"

#include <algorithm>
#include <set>

#include "tests/unit/storage/settling_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::CommitMaker;
using fixtures::kDiskGranules;
using fixtures::kDiskSize;
using fixtures::machine_id;
using fixtures::machine_record;
using fixtures::TemporaryDirectory;
using namespace std::chrono_literals;

using Granules = std::set<std::uint64_t>;

class ChangesTest : public fixtures::SettlingFixture {
 protected:
  static Granules granules_of(const std::vector<ByteRange>& ranges) {
    Granules granules;
    for (const ByteRange& range : ranges)
      for (std::uint64_t at = range.offset; at < range.offset + range.length; at += limits::kGranuleSize)
        EXPECT_TRUE(granules.insert(at / limits::kGranuleSize).second) << "told twice";
    return granules;
  }
  static Granules difference(const sim::DiskContent& from, const sim::DiskContent& to) {
    Granules granules;
    for (std::uint64_t i = 0; i < to.granules.size(); ++i)
      if (i >= from.granules.size() || from.granules[i] != to.granules[i]) granules.insert(i);
    return granules;
  }
  std::vector<ByteRange> all(Changes& changes) {
    std::vector<ByteRange> ranges;
    for (;;) {
      const auto some = changes.next();
      EXPECT_TRUE(some) << some.error().message();
      if (!some || some->empty()) return ranges;
      for (const ByteRange& range : *some) {
        EXPECT_TRUE(ranges.empty() || ranges.back().offset + ranges.back().length <= range.offset) << "out of order";
        ranges.push_back(range);
      }
    }
  }
  void expect_changes(const MachineId& machine, std::uint64_t from, std::uint64_t to, const sim::DiskContent& before,
                      const sim::DiskContent& now) {
    SCOPED_TRACE("from " + std::to_string(from) + " to " + std::to_string(to));
    auto changes = store().changes(machine, DiskId(0), EpochNumber(from), EpochNumber(to), 0ms);
    ASSERT_TRUE(changes) << changes.error().message();
    const auto written = all(**changes);
    for (const ByteRange& range : written) {
      if (!range.zero) continue;
      for (std::uint64_t at = range.offset / limits::kGranuleSize;
           at < (range.offset + range.length) / limits::kGranuleSize; ++at)
        EXPECT_EQ(now.granules[at], 0u) << "granule " << at << " is said to be zero";
    }
    const Granules told = granules_of(written), differ = difference(before, now);
    EXPECT_TRUE(std::ranges::includes(told, differ)) << "something changed and is not told";
    const auto compared = (*changes)->differing(written);
    ASSERT_TRUE(compared) << compared.error().message();
    EXPECT_EQ(granules_of(*compared), differ);
  }
  // Of each two points of the machine.
  void expect_all_changes(const MachineId& machine) {
    for (const auto& [from, before] : points_[machine])
      for (const auto& [to, now] : points_[machine])
        if (from <= to) expect_changes(machine, from, to, before, now);
  }
};

TEST_F(ChangesTest, BetweenAnyTwoPointsWhateverWasFoldedAndMoved) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 8);
  expect_all_changes(web);
  drop(web, {2, 3, 6});
  expect_all_changes(web);
  epochs(web, 9, 12);
  settle();
  expect_all_changes(web);
  good(rig_->close());
  lose_index_and_open();
  expect_all_changes(web);
}

TEST_F(ChangesTest, AnEpochThatWasAbortedChangedNothing) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 2);
  const sim::DiskContent kept = current_[web];
  begin(web, 3);
  write(web, 3, {{300, 16}});
  pb::EpochAbortRecord abort;
  abort.set_number(3);
  good(store().abort_epoch(web, abort));
  rig_->pump(true);
  current_[web] = kept;
  begin(web, 4);
  write(web, 4, {{5, 1}});
  commit(web, 4);
  expect_changes(web, 2, 4, points_[web][2], points_[web][4]);
  auto changes = store().changes(web, DiskId(0), EpochNumber(2), EpochNumber(4), 0ms);
  ASSERT_TRUE(changes);
  EXPECT_TRUE(std::ranges::includes(Granules{5}, granules_of(all(**changes))));
}

TEST_F(ChangesTest, OfACloneSinceThePointThatItStandsOn) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 3);
  const auto base = store().clone_base(web, EpochNumber(2), 0ms);
  ASSERT_TRUE(base);
  const MachineId check = machine_id(9);
  const std::vector<CloneName> names{{check, "clone:check"}};
  good(store().create_clones(*base, names, "test", 1, [](const Status&) {}));
  rig_->pump(true);
  current_[check] = points_[web][2];
  expect_changes(check, 0, 0, points_[web][2], points_[web][2]);
  epochs(check, 1, 2);
  expect_changes(check, 0, 2, points_[web][2], points_[check][2]);
  expect_changes(check, 1, 2, points_[check][1], points_[check][2]);
}

TEST_F(ChangesTest, PointsStayWhileTheyAreCompared) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 4);
  auto changes = store().changes(web, DiskId(0), EpochNumber(1), EpochNumber(3), 0ms);
  ASSERT_TRUE(changes);
  store().drop_points(web, {EpochNumber(1), EpochNumber(2), EpochNumber(3)});
  settle();
  EXPECT_EQ(code_of_reading(web, 1), Code::ok);
  EXPECT_EQ(code_of_reading(web, 3), Code::ok);
  EXPECT_EQ(code_of_reading(web, 2), Code::not_found);
  EXPECT_EQ(granules_of((*changes)->differing(all(**changes)).value()), difference(points_[web][1], points_[web][3]));
}

TEST_F(ChangesTest, WhatCannotBeComparedIsSaid) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 2);
  EXPECT_EQ(store().changes(web, DiskId(0), EpochNumber(2), EpochNumber(1), 0ms).error().code, Code::invalid_argument);
  EXPECT_EQ(store().changes(web, DiskId(0), EpochNumber(1), EpochNumber(7), 0ms).error().code, Code::not_found);
  EXPECT_EQ(store().changes(web, DiskId(3), EpochNumber(1), EpochNumber(2), 0ms).error().code, Code::not_found);
  EXPECT_EQ(store().changes(machine_id(8), DiskId(0), EpochNumber(1), EpochNumber(2), 0ms).error().code,
            Code::not_found);
}

TEST(IndexWritten, TellsRegionByRegionWhatRecordsBetweenTwoLsnsWrote) {
  TemporaryDirectory directory;
  auto index =
      Index::open(directory.path() + "/index", {.cache_bytes = 4 << 20, .write_buffer_bytes = 4 << 20}).value();
  CommitMaker log;
  const MachineId m = machine_id(1);
  const VolumeId volume(1);
  log.machine(machine_record(1, 1, 64 << 20, 1));
  log.begin(m, 1, 64 << 20);
  log.blocks(m, DiskId(0), {{0, 16}, {5 * 256, 2}});
  const Lsn first = log.commit_epoch(m, 1);
  log.begin(m, 2, 64 << 20);
  log.blocks(m, DiskId(0), {{4, 2}, {2 * 256 + 7, 1, wire::Encoding::zero}});
  const Lsn second = log.commit_epoch(m, 2);
  log.begin(m, 3, 64 << 20);
  log.blocks(m, DiskId(0), {{9 * 256, 1}});
  log.abort_epoch(m, 3);
  log.begin(m, 4, 64 << 20);
  log.blocks(m, DiskId(0), {{4, 1}, {5 * 256 + 1, 1}});
  const Lsn fourth = log.commit_epoch(m, 4);
  const CommitInfo commit = log.take();
  ASSERT_TRUE(index->apply(std::span(&commit, 1)));

  const auto written = [&](Lsn after, Lsn upto) {
    Granules granules;
    for (std::uint32_t from = 0;;) {
      const auto region = index->written(m, volume, after, upto, from);
      EXPECT_TRUE(region) << region.error().message();
      if (!region || !*region) return granules;
      EXPECT_GE((*region)->region, from);
      EXPECT_TRUE((*region)->granules.any());
      for (std::uint32_t i = 0; i < limits::kRegionGranules; ++i)
        if ((*region)->granules[i]) granules.insert(std::uint64_t{(*region)->region} * limits::kRegionGranules + i);
      from = (*region)->region + 1;
    }
  };
  Granules of_first{5 * 256, 5 * 256 + 1};
  for (std::uint64_t i = 0; i < 16; ++i) of_first.insert(i);
  EXPECT_EQ(written(Lsn(), first), of_first);
  EXPECT_EQ(written(first, second), (Granules{4, 5, 2 * 256 + 7}));
  EXPECT_EQ(written(second, fourth), (Granules{4, 5 * 256 + 1})) << "the third was aborted";
  EXPECT_EQ(written(first, fourth), (Granules{4, 5, 2 * 256 + 7, 5 * 256 + 1}));
  EXPECT_EQ(written(fourth, fourth), Granules());
  EXPECT_EQ(index->written(machine_id(7), VolumeId(9), Lsn(), fourth, 0).error().code, Code::not_found);
}

}  // namespace
}  // namespace tidemark::storage
