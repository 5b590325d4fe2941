// Where machines live, and where new ones go.
#include "server/placement.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "base/random.h"

namespace tidemark::server {
namespace {

Superblock superblock_of(std::uint32_t first, std::uint32_t partitions) {
  Superblock superblock;
  superblock.server_id = "00112233445566778899aabbccddeeff";
  superblock.first_partitions = first;
  superblock.partitions = partitions;
  return superblock;
}

TEST(Placement, EveryPartitionCanBeDrawnAndAddingSomeMovesNobody) {
  const Superblock before = superblock_of(3, 3), later = superblock_of(3, 5), still_later = superblock_of(3, 64);
  std::set<MachineId> all;
  for (int round = 0; round < 50; ++round) {
    for (std::uint32_t i = 0; i < 3; ++i) {
      const MachineId machine = draw_machine(before, PartitionId(i));
      EXPECT_EQ(partition_of(before, machine), PartitionId(i));
      EXPECT_EQ(partition_of(later, machine), PartitionId(i));
      all.insert(machine);
    }
    for (std::uint32_t i = 0; i < 5; ++i) {
      const MachineId machine = draw_machine(later, PartitionId(i));
      EXPECT_EQ(partition_of(later, machine), PartitionId(i));
      EXPECT_EQ(partition_of(still_later, machine), PartitionId(i));
      all.insert(machine);
    }
  }
  EXPECT_EQ(all.size(), 400u) << "no id comes twice";
}

TEST(Placement, IdsOfOldAreRoutedAsEver) {
  Random random(7);
  for (int i = 0; i < 1000; ++i) {
    std::array<std::byte, MachineId::kSize> bytes;
    random.fill(bytes);
    const MachineId machine(bytes);
    EXPECT_EQ(partition_of(superblock_of(4, 4), machine), tidemark::partition_of(machine, 4));
    EXPECT_EQ(partition_of(superblock_of(4, 9), machine), tidemark::partition_of(machine, 4));
  }
}

TEST(Placement, NewMachinesGoToWhereThereIsMostRoomForEach) {
  constexpr std::uint64_t kTiB = std::uint64_t{1} << 40;
  EXPECT_FALSE(choose_partition({}));
  const auto chosen = [](const std::vector<PlacementView>& all) { return choose_partition(all)->value(); };
  EXPECT_EQ(chosen({{PartitionId(0), 5, 0, kTiB}, {PartitionId(1), 4, 0, kTiB}, {PartitionId(2), 4, 0, kTiB}}), 1u)
      << "in one directory the partition with the fewest machines";
  EXPECT_EQ(chosen({{PartitionId(0), 5, 0, kTiB}, {PartitionId(1), 5, 1, kTiB / 2}}), 0u);
  EXPECT_EQ(chosen({{PartitionId(0), 15, 0, kTiB}, {PartitionId(1), 5, 1, kTiB / 2}}), 1u);
  EXPECT_EQ(chosen({{PartitionId(0), 0, 0, 0}, {PartitionId(1), 1000, 1, kTiB}}), 1u) << "a full disk gets none";

  // A disk of twice the size gets twice the machines.
  std::vector<PlacementView> all = {{PartitionId(0), 0, 0, kTiB}, {PartitionId(1), 0, 1, 2 * kTiB}};
  for (int i = 0; i < 300; ++i) ++all[choose_partition(all)->value()].machines;
  EXPECT_NEAR(static_cast<double>(all[0].machines), 100, 1);
  EXPECT_NEAR(static_cast<double>(all[1].machines), 200, 1);
}

}  // namespace
}  // namespace tidemark::server
