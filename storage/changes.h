// What of a disk was written between two epochs of one machine (or clone): from the index alone, region by region,
// without reading a block. Exact in what was written; what was written with the bytes that it had counts as written,
// but for zeroes where nothing but zeroes was. Holds both points as long as it lives. Blocking; belongs to one thread
// at a time, and not to a shard's.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "storage/reader.h"

namespace tidemark::storage {

class Changes {
 public:
  virtual ~Changes() = default;
  virtual std::uint64_t from_size() const = 0;  // of the disk, in bytes; 0: it was not there
  virtual std::uint64_t to_size() const = 0;
  // The next ranges in order, whole granules, as far as the larger of both sizes; neighbours are merged within a call.
  // `zero`: it is zeroes now. Empty: that was all.
  virtual Result<std::vector<ByteRange>> next() = 0;
  // Of these, what is another content now: reads both. A range beyond the smaller disk is another.
  virtual Result<std::vector<ByteRange>> differing(const std::vector<ByteRange>& ranges) = 0;
};

}  // namespace tidemark::storage
