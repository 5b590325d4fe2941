// A range of zeroes, as the index takes it apart.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/limits.h"
#include "base/status.h"
#include "base/units.h"

namespace tidemark::storage {

// A zero range of more regions than this is written only where the volume has something: elsewhere it reads as zeroes
// anyhow.
inline constexpr std::uint64_t kNarrowRegions = 4;

struct ZeroRange {
  std::uint64_t end = 0;                         // granule
  std::uint64_t first_whole = 0, end_whole = 0;  // regions
  bool wide = false;

  // `everywhere`: of a clone's volume, where what is not written shows what the clone was made of.
  ZeroRange(std::uint64_t first, std::uint64_t count, bool everywhere)
      : end(first + count),
        first_whole(round_up(first, limits::kRegionGranules) / limits::kRegionGranules),
        end_whole(end / limits::kRegionGranules),
        wide(!everywhere && end_whole > first_whole && end_whole - first_whole > kNarrowRegions) {}

  // Calls visit(region, first granule in it, count) for each region; the whole ones of a wide range are one call
  // of wide_part().
  template <typename Visit, typename Wide>
  Status parts(std::uint64_t first, Visit visit, Wide wide_part) const {
    for (std::uint64_t at = first; at < end;) {
      const std::uint64_t region = at / limits::kRegionGranules;
      if (wide && region == first_whole) {
        TIDEMARK_TRY(wide_part());
        at = end_whole * limits::kRegionGranules;
        continue;
      }
      const std::uint64_t next = std::min(end, (region + 1) * limits::kRegionGranules);
      visit(static_cast<std::uint32_t>(region), static_cast<std::uint32_t>(at % limits::kRegionGranules),
            static_cast<std::uint32_t>(next - at));
      at = next;
    }
    return {};
  }
};

}  // namespace tidemark::storage
