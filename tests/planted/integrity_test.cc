// A checker that does not read what it calls verified must be found out: rot in a block that was just stored, and the
// point that shows it is verified although it cannot be read.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <cstring>

#include "base/planted.h"
#include "tests/sim/store_rig.h"

namespace tidemark::sim {
namespace {

using namespace storage;
using namespace std::chrono_literals;

class PlantedIntegrity : public ::testing::Test {
 protected:
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
  void TearDown() override {
    planted_bug = Planted::none;
    spdlog::set_level(spdlog::level::info);
  }
  // True: a point is called verified that cannot be read.
  static bool verified_and_unreadable(Planted bug) {
    planted_bug = bug;
    PartitionOptions options;
    options.segment_size = 256 << 10;
    options.reserve_segments = 1;
    options.free_space_min = 0;
    options.index = {.cache_bytes = 4 << 20, .write_buffer_bytes = 4 << 20};
    StoreRig rig(1, options);
    EXPECT_TRUE(rig.create());
    EXPECT_TRUE(rig.open());
    std::array<std::byte, 16> id{};
    id[0] = std::byte{7};
    const MachineId machine(id);
    pb::MachineRecord record;
    record.set_machine(machine_to_bytes(machine));
    record.set_name("web1");
    EXPECT_TRUE(rig.store().put_machine(record, {}));
    pb::DiskRecord disk;
    disk.set_identity("a");
    disk.set_name("vda");
    disk.set_size(1 << 20);
    EXPECT_TRUE(rig.store().open_disk(machine, disk));
    pb::EpochBeginRecord begin;
    begin.set_number(1);
    begin.set_kind(1);
    begin.add_disks()->set_size(1 << 20);
    EXPECT_TRUE(rig.store().begin_epoch(machine, begin));
    wire::BlockEncoder encoder(machine, 0);
    encoder.start(DiskId(0), EpochNumber(1));
    std::vector<std::byte> plain(limits::kGranuleSize, std::byte{0x5a});
    encoder.add(3, plain);
    EXPECT_TRUE(rig.store().append_blocks(machine, DiskId(0), encoder.take()));
    pb::EpochCommitRecord commit;
    commit.set_number(1);
    commit.set_consistency(2);
    commit.set_digest(hash_to_bytes({1, 2}));
    EXPECT_TRUE(rig.store().commit_epoch(machine, commit));
    rig.pump(true);
    // Rot: where the block's bytes stand.
    const auto names = rig.files().list("/p0/log");
    bool rotten = false;
    for (const std::string& name : *names) {
      const auto bytes = read_whole_file(rig.files(), "/p0/log/" + name, 1 << 20);
      const auto found = std::search(bytes->begin(), bytes->end(), plain.begin(), plain.end());
      if (found == bytes->end()) continue;
      rotten = rig.disk().flip_bit("/p0/log/" + name, static_cast<std::uint64_t>(found - bytes->begin()) + 5, 1);
    }
    EXPECT_TRUE(rotten);
    for (int turn = 0; turn < 3; ++turn) {
      rig.store().on_idle();
      rig.pump(true);
    }
    const auto points = rig.store().epochs(machine, 1, false, 0ms);
    EXPECT_TRUE(points && points->size() == 1);
    const auto reader = rig.store().read(machine, DiskId(0), EpochNumber(1), 0ms);
    EXPECT_TRUE(reader);
    std::vector<std::byte> got(1 << 20);
    const bool readable = (*reader)->read(0, got).has_value();
    EXPECT_FALSE(readable);
    return points->front().verified() && !readable;
  }
};

TEST_F(PlantedIntegrity, NothingIsFoundWhereNothingIsPlanted) { EXPECT_FALSE(verified_and_unreadable(Planted::none)); }

TEST_F(PlantedIntegrity, VerifiedWithoutReadingIsFound) {
  EXPECT_TRUE(verified_and_unreadable(Planted::verified_unread));
}

}  // namespace
}  // namespace tidemark::sim
