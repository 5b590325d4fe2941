// Folding: what of a region's history some recovery point still shows, and how that is kept.
//
// Between two kept points next to each other all that counts is the state at the later one: whatever was overwritten in
// between is shown by neither. So a fold keeps of every granule, for each kept point, the newest version at or before
// it, drops everything else, and puts what is left between two points under one key. Versions keep their own LSNs.
// Pure functions.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "storage/extent_codec.h"

namespace tidemark::storage {

// One extent of one delta, with all that must be known of it to move it.
struct Version {
  Lsn lsn;
  EpochNumber epoch;
  SegmentId segment;
  DeltaExtent extent;
  std::bitset<limits::kRegionGranules> shown;  // granules of the extent (by their number in the region) that some point
                                               // shows; made by drop_hidden()
};

// The versions of a region's deltas. Deltas newest first give versions newest first; within a delta the later extents
// come first, as they hide the earlier ones.
void append_versions(const Delta& delta, std::vector<Version>& to);

// Removes what none of `points` shows, and marks what is shown of the rest. `versions`: committed ones of one region,
// newest first, none newer than the last point. `points`: LSNs of commits, ascending, not empty.
void drop_hidden(std::vector<Version>& versions, std::span<const Lsn> points);

struct RegionEntry {
  Lsn key;
  std::string value;
  bool operator==(const RegionEntry&) const = default;
};
// The keys and values that hold these versions: one key for all that lies between two points next to each other. The
// same arguments as above; a function of the versions alone, so that folding what is folded changes nothing.
std::vector<RegionEntry> encode_versions(std::span<const Version> versions, std::span<const Lsn> points);

}  // namespace tidemark::storage
