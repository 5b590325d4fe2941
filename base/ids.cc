#include "base/ids.h"

#include <bit>

#include "base/check.h"
#include "base/hex.h"

namespace tidemark {

std::string MachineId::to_string() const { return to_hex(bytes_); }

std::optional<MachineId> MachineId::parse(std::string_view hex_digits) {
  std::array<std::byte, kSize> bytes{};
  if (!from_hex(hex_digits, bytes)) return std::nullopt;
  return MachineId(bytes);
}

PartitionId partition_of(const MachineId& machine, std::uint32_t partition_count) {
  TIDEMARK_CHECK(partition_count > 0);
  static_assert(std::endian::native == std::endian::little, "the stored formats are read in place");
  std::uint64_t last_bytes;  // the hash of a machine uses the first ones
  std::memcpy(&last_bytes, machine.bytes().data() + 8, sizeof last_bytes);
  return PartitionId(static_cast<std::uint32_t>(last_bytes % partition_count));
}

}  // namespace tidemark
