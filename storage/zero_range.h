// A range of zeroes, as the index takes it apart.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/limits.h"
#include "base/units.h"

namespace tidemark::storage {

// The whole regions of a longer zero range are written one by one, not gathered first. In a volume of no clone only
// where it has something: elsewhere it reads as zeroes anyhow.
inline constexpr std::uint64_t kNarrowRegions = 4;

struct ZeroRange {
  std::uint64_t end = 0;                         // granule
  std::uint64_t first_whole = 0, end_whole = 0;  // regions
  bool wide = false;

  ZeroRange(std::uint64_t first, std::uint64_t count)
      : end(first + count),
        first_whole(round_up(first, limits::kRegionGranules) / limits::kRegionGranules),
        end_whole(end / limits::kRegionGranules),
        wide(end_whole > first_whole && end_whole - first_whole > kNarrowRegions) {}

  // Calls visit(region, first granule in it, count) for each region but the whole ones of a wide range.
  template <typename Visit>
  void narrow_parts(std::uint64_t first, Visit visit) const {
    for (std::uint64_t at = first; at < end;) {
      const std::uint64_t region = at / limits::kRegionGranules;
      if (wide && region == first_whole) {
        at = end_whole * limits::kRegionGranules;
        continue;
      }
      const std::uint64_t next = std::min(end, (region + 1) * limits::kRegionGranules);
      visit(static_cast<std::uint32_t>(region), static_cast<std::uint32_t>(at % limits::kRegionGranules),
            static_cast<std::uint32_t>(next - at));
      at = next;
    }
  }
};

}  // namespace tidemark::storage
