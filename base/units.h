// Sizes in bytes, and the granule, the unit of place.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tidemark {

inline constexpr std::uint64_t operator""_KiB(unsigned long long n) { return n << 10; }
inline constexpr std::uint64_t operator""_MiB(unsigned long long n) { return n << 20; }
inline constexpr std::uint64_t operator""_GiB(unsigned long long n) { return n << 30; }
inline constexpr std::uint64_t operator""_TiB(unsigned long long n) { return n << 40; }

constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
constexpr std::uint64_t round_down(std::uint64_t n, std::uint64_t multiple) { return n / multiple * multiple; }

}  // namespace tidemark
