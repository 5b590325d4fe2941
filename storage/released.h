// Which segments of the log were given back, so that an index that is lost can be rebuilt although they are gone.
//
// A segment is given back when all that it holds is of removed machines. Its successor's chain leads through it; so its
// header is kept here, with the removed machines, whose remaining records mean nothing any more. The file `released` in
// the partition's directory, replaced whole and atomically before a segment goes. docs/index_format.md has its bytes.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "storage/file.h"
#include "storage/log_format.h"

namespace tidemark::storage {

struct Released {
  // Where the log begins: everything before was given back, and need not be told of any more. 0 and 1: nothing was.
  SegmentId begin;
  Lsn begin_lsn{1};
  std::vector<MachineId> removed;       // in order
  std::vector<SegmentHeader> segments;  // given back from the middle, by their ids

  bool empty() const { return begin == SegmentId() && segments.empty(); }
};

std::vector<std::byte> encode_released(const Released& released);
// Any bytes: Code::corrupt or Code::unsupported.
Result<Released> decode_released(std::span<const std::byte> bytes, const std::string& path);

Status write_released(FileSystem& files, const std::string& directory, const Released& released);
// No file: nothing was released.
Result<Released> read_released(FileSystem& files, const std::string& directory);

}  // namespace tidemark::storage
