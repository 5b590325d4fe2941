// What the index counts beside its deltas, and keeps in the same batch with them: by segment what it is needed for, by
// volume the bytes of the blocks that its deltas refer to (header and stored bytes of each; zeroes take none).
#pragma once

#include <cstdint>
#include <map>

#include "base/ids.h"
#include "storage/extent_codec.h"

namespace tidemark::storage {

// Of the blocks that a delta refers to.
std::uint64_t stored_bytes(const Delta& delta);

// Of a volume, by where the blocks are.
template <typename Number>
struct ByPlace {
  Number log = 0, cold = 0;
  Number total() const { return log + cold; }
  bool operator==(const ByPlace&) const = default;
};
using StoredBytes = ByPlace<std::uint64_t>;

// What a change does to the counts.
struct CountChanges {
  std::map<SegmentId, std::int64_t> live;
  std::map<VolumeId, ByPlace<std::int64_t>> stored;

  // A delta of the volume comes (1) or goes (-1).
  void add(VolumeId volume, const Delta& delta, int sign);
};

struct Counts {
  std::map<SegmentId, std::uint64_t> live;  // a segment that is known and not needed any more has 0
  std::map<VolumeId, StoredBytes> stored;
};

}  // namespace tidemark::storage
