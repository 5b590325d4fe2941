// An index made again while no server runs, and one compared with what log and cold segments tell.
#include "storage/rebuild_index.h"

#include "tests/unit/storage/settling_fixture.h"

namespace tidemark::storage {
namespace {

class RebuildIndexTest : public fixtures::SettlingFixture {
 protected:
  Result<RebuildReport> rebuild(RebuildMode mode, bool call_off = false) {
    OpenProgress progress;
    progress.cancelled = call_off;
    return rebuild_index(rig_->files(), tidemark::sim::StoreRig::kDirectory, PartitionId(0),
                         tidemark::sim::StoreRig::kServer, fixtures::settling_options().index, mode, progress,
                         rig_->index_directory());
  }
  std::vector<std::string> differences() {
    const auto report = rebuild(RebuildMode::check);
    EXPECT_TRUE(report) << report.error().message();
    return report ? report->differences : std::vector<std::string>{"it failed"};
  }
};

TEST_F(RebuildIndexTest, ItIsWholeAndShowsWhatTheFormerOneShowed) {
  const MachineId a = add_machine(1), b = add_machine(2);
  epochs(a, 1, 15);
  epochs(b, 1, 3);
  settle();
  drop(a, {1, 2, 3, 5, 6, 8, 9, 10, 11, 13, 14});
  epoch(a, 16);
  good(rig_->close());
  auto report = rebuild(RebuildMode::check);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(report->differences, std::vector<std::string>());
  EXPECT_EQ(report->machines, 2u);
  EXPECT_EQ(report->epochs, points_[a].size() + points_[b].size());
  EXPECT_GT(report->cold_segments, 0u);

  report = rebuild(RebuildMode::replace);
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_FALSE(Index::exists(unfinished_index(rig_->index_directory())));
  good(rig_->open());
  EXPECT_TRUE(rig_->opened().index_rebuilt.empty()) << "there is one, and it is whole";
  EXPECT_EQ(rig_->opened().recovery.commits, 0u);
  expect_points("rebuilt");
  EXPECT_EQ(code_of_reading(a, 5), Code::not_found);
  epoch(a, 17);
  settle();
  expect_points("it goes on");
}

TEST_F(RebuildIndexTest, OneThatWasCutOffAtTheStartIsToldAndMadeAgain) {
  const MachineId a = add_machine(1);
  epochs(a, 1, 15);
  settle();
  good(rig_->close());
  rig_->lose_index();
  // What a start that was killed while it made it leaves: an index with nothing in it.
  ASSERT_TRUE(Index::open(rig_->index_directory(), fixtures::settling_options().index));
  good(rig_->open());
  EXPECT_EQ(rig_->opened().index_rebuilt, "the making of it was cut off");
  expect_points("made again");
}

TEST_F(RebuildIndexTest, AYoungOneThatIsEmptyAfterACrashIsNothingOutOfTheOrdinary) {
  const MachineId a = add_machine(1);
  epoch(a, 1);
  rig_->cut_power();
  rig_->lose_index();
  ASSERT_TRUE(Index::open(rig_->index_directory(), fixtures::settling_options().index));
  good(rig_->open());
  EXPECT_EQ(rig_->opened().index_rebuilt, "");
  expect_points("replayed");
}

TEST_F(RebuildIndexTest, WhatAnIndexShowsOtherwiseIsTold) {
  const MachineId a = add_machine(1);
  epochs(a, 1, 4);
  good(rig_->close());
  EXPECT_EQ(differences(), std::vector<std::string>());
  {
    auto index = Index::open(rig_->index_directory(), fixtures::settling_options().index);
    ASSERT_TRUE(index) << index.error().message();
    const auto volume = VolumeId((*index)->machine(a)->disks(0).volume());
    const auto history = (*index)->history(a, volume, 0, Lsn((*index)->newest_epoch(a)->commit_lsn()));
    ASSERT_TRUE(history);
    ASSERT_FALSE(history->keys.empty());
    good((*index)->change(std::vector<RegionChange>{{a, volume, 0, history->keys, {}}}, {}));
    good((*index)->flush());
  }
  const auto told = differences();
  ASSERT_FALSE(told.empty());
  EXPECT_NE(told.front().find("web1: vda, epoch "), std::string::npos) << told.front();
  ASSERT_TRUE(rebuild(RebuildMode::replace));
  EXPECT_EQ(differences(), std::vector<std::string>());
  good(rig_->open());
  expect_points("mended");
  good(rig_->close());
  rig_->lose_index();
  EXPECT_EQ(differences(), std::vector<std::string>{"there is no index"});
  EXPECT_FALSE(Index::exists(rig_->index_directory())) << "a check changes nothing";
}

TEST_F(RebuildIndexTest, CalledOffOrBeforeAHoleItChangesNothing) {
  const MachineId a = add_machine(1);
  epochs(a, 1, 15);
  settle();
  good(rig_->close());
  auto report = rebuild(RebuildMode::replace, true);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::cancelled);
  const auto cold = cold_files();
  ASSERT_FALSE(cold.empty());
  good(rig_->files().rename(cold.front(), cold.front() + ".elsewhere"));
  report = rebuild(RebuildMode::replace);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, Code::corrupt);
  EXPECT_EQ(report.error().object, cold.front());
  EXPECT_FALSE(Index::exists(unfinished_index(rig_->index_directory())));
  good(rig_->files().rename(cold.front() + ".elsewhere", cold.front()));
  good(rig_->open());
  EXPECT_TRUE(rig_->opened().index_rebuilt.empty()) << "the old one was kept";
  expect_points("as before");
}

}  // namespace
}  // namespace tidemark::storage
