// Reads a machine's disk as of an epoch, for exports, digests and verification. Blocking; any thread but a shard's.
// Holds a pin on what it reads, so that nothing it needs is recycled while it lives. A Reader belongs to one thread at
// a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace tidemark::storage {

struct ByteRange {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool zero = false;  // no need to read it
};

class Reader {
 public:
  virtual ~Reader() = default;
  virtual std::uint64_t disk_size() const = 0;
  virtual EpochNumber epoch() const = 0;
  // Any offset and length within the disk. Every block is checked (identity and hash) before a byte of it is given
  // out. Code::corrupt names machine, disk, range and segment.
  virtual Status read(std::uint64_t offset, std::span<std::byte> to) = 0;
  // The next ranges from `offset` on, in order, covering at least one byte and at most `length`; neighbours of a
  // kind merged.
  virtual Result<std::vector<ByteRange>> map(std::uint64_t offset, std::uint64_t length) = 0;
};

}  // namespace tidemark::storage
