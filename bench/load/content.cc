#include "bench/load/content.h"

#include <cmath>
#include <cstring>

namespace tidemark::bench {
namespace {

constexpr std::size_t kWords = kSectorSize / sizeof(std::uint64_t);
constexpr std::uint64_t kStretchSectors = (64 << 10) / kSectorSize;

bool chance(std::uint64_t random_bits, double share) {
  return share > 0 && static_cast<double>(random_bits >> 11) * 0x1.0p-53 < share;
}

}  // namespace

void Content::fill(std::uint32_t machine, std::uint32_t disk, std::uint64_t first_sector, std::uint32_t version,
                   std::span<std::byte> sectors) const {
  const std::uint64_t whose = mix(mix(seed, machine), (std::uint64_t{disk} << 32) | version);
  const auto random_words = static_cast<std::size_t>(std::lround((1 - compressible) * kWords));
  for (std::uint64_t sector = first_sector; !sectors.empty(); ++sector, sectors = sectors.subspan(kSectorSize)) {
    if (version == 0 || chance(mix(whose ^ 0x5a5a, sector / kStretchSectors), zero_share)) {
      std::memset(sectors.data(), 0, kSectorSize);
      continue;
    }
    const std::uint64_t key = mix(whose, sector);
    std::uint64_t words[kWords] = {};
    for (std::size_t i = 0; i < random_words; ++i) {
      std::uint64_t x = key + i * 0x9e3779b97f4a7c15ULL;
      x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ULL;  // one round less than mix(): nobody attacks this
      words[i] = x ^ (x >> 32);
    }
    std::memcpy(sectors.data(), words, kSectorSize);
  }
}

}  // namespace tidemark::bench
