// In which partition a machine lives, and where new ones go.
//
// A machine's id tells: random bits modulo the number of partitions that there were when the server was made; or, for
// one that lives in a partition that was added since, the number itself, under a checksum by which such an id is known
// (a random one passes for it once in 2^64). So any shard can route a connection without a lookup, and adding
// partitions moves nobody.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "server/directory.h"

namespace tidemark::server {

PartitionId partition_of(const Superblock& superblock, const MachineId& machine);
// A new id that leads there.
MachineId draw_machine(const Superblock& superblock, PartitionId partition);

struct PlacementView {
  PartitionId partition;
  std::size_t machines = 0;
  std::size_t directory = 0;    // whichever numbers: those of one directory are equal
  std::uint64_t available = 0;  // bytes in its directory
};
// In the directory with the most free space for each machine in it, the partition with the fewest machines. nullopt:
// there is none to choose from.
std::optional<PartitionId> choose_partition(std::span<const PlacementView> partitions);

// What the partitions last told of themselves. Thread-safe.
class Occupancy {
 public:
  explicit Occupancy(std::uint32_t partitions) : machines_(partitions) {}
  void tell(PartitionId partition, std::size_t machines);
  void closed(PartitionId partition);                                // takes no new ones now
  void expect(PartitionId partition);                                // one more is about to come
  std::optional<std::size_t> machines(PartitionId partition) const;  // nullopt: closed

 private:
  mutable std::mutex mutex_;
  std::vector<std::optional<std::size_t>> machines_;
};

}  // namespace tidemark::server
