#include "server/placement.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "base/check.h"
#include "base/checksum.h"
#include "base/random.h"

namespace tidemark::server {
namespace {

constexpr std::size_t kNumberSize = 2, kNamedSize = 8;  // bytes: the partition's number; that with random ones

using Bytes = std::array<std::byte, MachineId::kSize>;

std::array<std::byte, MachineId::kSize - kNamedSize> seal(const Superblock& superblock, const Bytes& bytes) {
  Xxh3Stream stream;
  stream.update(std::as_bytes(std::span(superblock.server_id)));
  stream.update(std::span(bytes).first(kNamedSize));
  const Hash128 hash = stream.digest();
  std::array<std::byte, MachineId::kSize - kNamedSize> sealed;
  static_assert(sizeof hash >= sealed.size());
  std::memcpy(sealed.data(), &hash, sealed.size());
  return sealed;
}

}  // namespace

PartitionId partition_of(const Superblock& superblock, const MachineId& machine) {
  if (superblock.partitions > superblock.first_partitions) {
    const Bytes& bytes = machine.bytes();
    const auto number =
        static_cast<std::uint32_t>(std::to_integer<unsigned>(bytes[0]) << 8 | std::to_integer<unsigned>(bytes[1]));
    const auto sealed = seal(superblock, bytes);
    if (number < superblock.partitions && std::equal(sealed.begin(), sealed.end(), bytes.begin() + kNamedSize))
      return PartitionId(number);
  }
  return tidemark::partition_of(machine, superblock.first_partitions);
}

MachineId draw_machine(const Superblock& superblock, PartitionId partition) {
  TIDEMARK_CHECK(partition.value() < superblock.partitions);
  while (true) {
    Bytes bytes;
    secure_random(bytes);
    if (partition.value() >= superblock.first_partitions) {
      static_assert(kNumberSize == 2);
      bytes[0] = std::byte(partition.value() >> 8);
      bytes[1] = std::byte(partition.value() & 0xff);
      std::ranges::copy(seal(superblock, bytes), bytes.begin() + kNamedSize);
    }
    if (const MachineId machine(bytes); partition_of(superblock, machine) == partition) return machine;
  }
}

std::optional<PartitionId> choose_partition(std::span<const PlacementView> partitions) {
  std::map<std::size_t, std::size_t> machines;  // by directory
  for (const PlacementView& one : partitions) machines[one.directory] += one.machines;
  const auto better = [&](const PlacementView& a, const PlacementView& b) {
    if (a.directory != b.directory) {
      const double room_a = static_cast<double>(a.available) / static_cast<double>(machines[a.directory] + 1);
      const double room_b = static_cast<double>(b.available) / static_cast<double>(machines[b.directory] + 1);
      if (room_a != room_b) return room_a > room_b;
      return a.directory < b.directory;
    }
    return a.machines != b.machines ? a.machines < b.machines : a.partition < b.partition;
  };
  const auto best = std::min_element(partitions.begin(), partitions.end(), better);
  if (best == partitions.end()) return std::nullopt;
  return best->partition;
}

void Occupancy::tell(PartitionId partition, std::size_t machines) {
  const std::lock_guard lock(mutex_);
  machines_[partition.value()] = machines;
}

void Occupancy::closed(PartitionId partition) {
  const std::lock_guard lock(mutex_);
  machines_[partition.value()].reset();
}

void Occupancy::expect(PartitionId partition) {
  const std::lock_guard lock(mutex_);
  if (auto& machines = machines_[partition.value()]) ++*machines;
}

std::optional<std::size_t> Occupancy::machines(PartitionId partition) const {
  const std::lock_guard lock(mutex_);
  return machines_[partition.value()];
}

}  // namespace tidemark::server
