// How much of a file system is left for what must go on when no new data is taken any more. Pure.
#pragma once

#include <cstdint>

#include "base/limits.h"
#include "base/units.h"

namespace tidemark::storage {

// What the index may write beside what it has, before it is rid of something: a flush of its write buffers.
inline constexpr std::uint64_t kIndexReserve = 64_MiB;
// Segments of the log's size:
//   1 for what data on its way takes before the want of space is noticed
//   1 for the records that pruning and settling write (SegmentKeeperOptions::free_space_hard)
//   1 for the copy of what is left of a log segment, which is given back only after that; with little space one settles
//     at a time
//   1 for the copy's table, cut blocks that are encoded anew, manifest and other small files
inline constexpr std::uint64_t kReserveFreeSegments = 4;

// For one partition; partitions on one file system add up.
constexpr std::uint64_t free_space_needed(std::uint64_t segment_size) {
  return kReserveFreeSegments * segment_size + kIndexReserve;
}
static_assert(free_space_needed(limits::kSegmentSizeDefault) == 320_MiB);

}  // namespace tidemark::storage
