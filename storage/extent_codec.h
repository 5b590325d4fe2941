// The values of delta keys: which granules of one region log records wrote, and where they stand.
// docs/index_format.md has the bytes with a worked example. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "wire/block.h"

namespace tidemark::storage {

// One block of data, whole (blocks of data never cross a region), or the part of a zero range within the region.
struct DeltaExtent {
  std::uint32_t first = 0;  // granule within the region, 0..255
  std::uint32_t count = 0;  // 1..256, first + count <= 256
  wire::Encoding encoding{};
  std::uint32_t offset = 0;       // of the block's header in the segment; 0 for zeroes
  std::uint32_t stored_size = 0;  // 0 for zeroes; count granules for raw, and what sealing adds
  bool sealed = false;
  bool operator==(const DeltaExtent&) const = default;
};

// What one log record wrote in one region. In the order in which the record has its blocks: where two overlap, the
// later one holds.
struct Delta {
  Lsn lsn;
  EpochNumber epoch;
  SegmentId segment;  // where the record stands, or where its blocks were moved
  std::vector<DeltaExtent> extents;
  bool operator==(const Delta&) const = default;
};

// A key's value is one delta, or several one behind the other, the newest first (storage/fold.h makes those): the key
// has the LSN of the first. Appends to `to`. The extents must be as described above: they come from checked blocks.
void append_delta(const Delta& delta, Lsn key_lsn, std::string& to);

// Takes the next delta off the front of `from`. Any bytes: Code::corrupt when they are not what append_delta makes.
// `to` is reused, and unspecified after a failure.
Status take_delta(std::string_view& from, Lsn key_lsn, Delta& to);

// LEB128, at most ten bytes.
void put_varint(std::string& to, std::uint64_t value);
// Takes it off the front; false when it is cut off or too long.
bool take_varint(std::string_view& from, std::uint64_t& value);

}  // namespace tidemark::storage
