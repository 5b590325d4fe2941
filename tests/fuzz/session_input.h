// How the session fuzzers read their input: a list of {what u8, size u16 little-endian, bytes}. `what` is a frame type,
// or above all of them an event. Numbers, hashes and digests are made to fit unless the input says otherwise, so that
// what lies behind the first checks is reached.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "wire/frame.h"

namespace tidemark::fuzz {

class Input {
 public:
  explicit Input(std::span<const std::byte> bytes) : rest_(bytes) {}
  struct Item {
    std::uint8_t what = 0;
    std::span<const std::byte> bytes;
  };
  bool next(Item& item) {
    if (rest_.size() < 3) return false;
    item.what = std::to_integer<std::uint8_t>(rest_[0]);
    std::uint16_t size;
    std::memcpy(&size, &rest_[1], sizeof size);
    rest_ = rest_.subspan(3);
    item.bytes = rest_.first(std::min<std::size_t>(size, rest_.size()));
    rest_ = rest_.subspan(item.bytes.size());
    return true;
  }

 private:
  std::span<const std::byte> rest_;
};

// At most the items of a reasonable session: a long input finds nothing that a short one does not.
inline constexpr int kItemsMax = 200;

}  // namespace tidemark::fuzz
