#include "storage/fold.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/planted.h"

namespace tidemark::storage {

namespace {

// Which of `points` is the first that sees what was written at `lsn`.
std::ptrdiff_t first_to_see(std::span<const Lsn> points, Lsn lsn) {
  return std::lower_bound(points.begin(), points.end(), lsn) - points.begin();
}

}  // namespace

void append_versions(const Delta& delta, std::vector<Version>& to) {
  for (auto extent = delta.extents.rbegin(); extent != delta.extents.rend(); ++extent) {
    to.push_back({.lsn = delta.lsn, .epoch = delta.epoch, .segment = delta.segment, .extent = *extent, .shown = {}});
  }
}

void drop_hidden(std::vector<Version>& versions, std::span<const Lsn> points) {
  TIDEMARK_CHECK(!points.empty());
  if (planted(Planted::fold_forgets_points)) points = points.last(1);
  // Of each granule: the first point that sees a newer version. This one is shown by the points before that.
  std::array<std::ptrdiff_t, limits::kRegionGranules> hidden_from;
  hidden_from.fill(static_cast<std::ptrdiff_t>(points.size()));
  for (Version& version : versions) {
    const std::ptrdiff_t seen_from = first_to_see(points, version.lsn);
    version.shown.reset();
    for (std::uint32_t i = 0; i < version.extent.count; ++i) {
      const std::uint32_t granule = version.extent.first + i;
      if (seen_from < hidden_from[granule]) version.shown.set(granule);
      hidden_from[granule] = std::min(hidden_from[granule], seen_from);
    }
  }
  std::erase_if(versions, [](const Version& version) { return version.shown.none(); });
}

std::vector<RegionEntry> encode_versions(std::span<const Version> versions, std::span<const Lsn> points) {
  std::vector<RegionEntry> entries;
  std::ptrdiff_t between = -1;
  Delta delta;
  for (std::size_t i = 0; i < versions.size();) {
    const Version& first = versions[i];
    const std::ptrdiff_t seen_from = first_to_see(points, first.lsn);
    TIDEMARK_CHECK(seen_from < static_cast<std::ptrdiff_t>(points.size()));
    if (entries.empty() || seen_from != between) {
      entries.push_back({.key = first.lsn, .value = {}});
      between = seen_from;
    }
    delta.lsn = first.lsn;
    delta.epoch = first.epoch;
    delta.segment = first.segment;
    delta.extents.clear();
    for (; i < versions.size() && versions[i].lsn == delta.lsn && versions[i].segment == delta.segment; ++i) {
      delta.extents.push_back(versions[i].extent);
    }
    std::reverse(delta.extents.begin(), delta.extents.end());
    append_delta(delta, entries.back().key, entries.back().value);
  }
  return entries;
}

}  // namespace tidemark::storage
