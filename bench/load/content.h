// What stands in the blocks of a simulated machine. Every sector is derived from (seed, machine, disk, sector,
// version), so that any byte of any version can be worked out again when it is read back, and nothing has to be
// remembered.
//
// Pure functions; thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tidemark::bench {

inline constexpr std::size_t kSectorSize = 512;

// splitmix64's finaliser: every bit of the result depends on every bit of `x`.
constexpr std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
constexpr std::uint64_t mix(std::uint64_t a, std::uint64_t b) { return mix(a + 0x9e3779b97f4a7c15ULL + mix(b)); }

struct Content {
  std::uint64_t seed = 1;
  double compressible = 0;  // share of every sector that is zeroes
  double zero_share = 0;    // share of the 64 KiB stretches that are nothing but zeroes, in any one version

  // Fills whole sectors from `first_sector` on, of a version above 0. Version 0 was never written: it reads as zeroes.
  void fill(std::uint32_t machine, std::uint32_t disk, std::uint64_t first_sector, std::uint32_t version,
            std::span<std::byte> sectors) const;
};

}  // namespace tidemark::bench
