// Two kinds of segments share one space of ids: those of the log (storage/segment_keeper.h), numbered from 1, and cold
// ones (storage/cold_segment.h), numbered from 1 with the highest bit set. Whoever finds a place in the index can tell
// from the id alone where it is.
#pragma once

#include "base/ids.h"

namespace tidemark::storage {

inline constexpr std::uint64_t kColdBit = std::uint64_t{1} << 63;

constexpr bool is_cold(SegmentId segment) { return (segment.value() & kColdBit) != 0; }
constexpr SegmentId cold_segment(std::uint64_t number) { return SegmentId(number | kColdBit); }
constexpr std::uint64_t cold_number(SegmentId segment) { return segment.value() & ~kColdBit; }

}  // namespace tidemark::storage
