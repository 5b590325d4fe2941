// Little-endian numbers in and out of bytes that need not be aligned.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace tidemark::wire {

static_assert(std::endian::native == std::endian::little, "layouts are stored and sent as they lie in memory");

template <std::integral T>
void put_little(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

template <std::integral T>
T get_little(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace tidemark::wire
