// A segment that is used again while what refers to it on the disk is only known to be gone in memory: found by a short
// history that leads there, for a segment of the log and for a cold one.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include "base/planted.h"
#include "tests/unit/storage/settling_fixture.h"

namespace tidemark::storage {
namespace {

using namespace fixtures;

class PlantedFreedSegment : public SettlingFixture {
 protected:
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
  void TearDown() override {
    planted_bug = Planted::none;
    spdlog::set_level(spdlog::level::info);
  }

  // Epochs that overwrite each other; all but the newest go, and are folded away, while the index is written out only
  // when somebody asks. Then the process dies. What it finds wrong after that; empty: nothing.
  std::string found(Planted bug, bool cold) {
    planted_bug = Planted::none;
    PartitionOptions options = settling_options();
    options.index_flush_bytes = 1_GiB;
    if (!cold) options.settler.settle_after_us = 1'000'000'000'000;
    options.settler.garbage_max = 1;  // nothing is compacted: a fold alone frees
    start(options);
    const MachineId machine = add_machine(1);
    for (std::uint64_t number = 1; number <= 10; ++number) overwrite(machine, number);
    if (cold) {
      settle();
      EXPECT_FALSE(cold_files().empty());
    }
    // The index is written out. From now on the log keeps what it has: only the fold is to free anything.
    good(rig_->close());
    rig_->options().settler.settle_after_us = 1'000'000'000'000;
    good(rig_->open());
    for (std::uint64_t number = 11; number <= 14; ++number) overwrite(machine, number);
    planted_bug = bug;
    std::vector<std::uint64_t> gone;
    for (std::uint64_t number = 1; number < 14; ++number) gone.push_back(number);
    drop(machine, gone);
    rig_->kill();
    if (const auto opened = rig_->open(); !opened) return opened.error().message();
    store().checker().start_scrub();
    while (store().checker().step()) {
    }
    for (const DamageReport& report : store().checker().damage()) return report.extent.what;
    expect_points("after the process died");
    return "";
  }

 private:
  void overwrite(const MachineId& machine, std::uint64_t number) {
    begin(machine, number);
    for (std::uint64_t at = 0; at < 4; ++at) write(machine, number, {{at * 8, 8}});
    commit(machine, number);
  }
};

TEST_F(PlantedFreedSegment, OfTheLogIsFound) {
  EXPECT_EQ(found(Planted::none, false), "");
  EXPECT_NE(found(Planted::freed_before_flush, false), "");
}

TEST_F(PlantedFreedSegment, OfTheVolumesIsFound) {
  EXPECT_EQ(found(Planted::none, true), "");
  EXPECT_NE(found(Planted::freed_before_flush, true), "");
}

}  // namespace
}  // namespace tidemark::storage
