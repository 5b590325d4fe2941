// Which segments of the log were given back, so that an index that is lost can be rebuilt although they are gone.
//
// A segment is given back when nothing in it is needed any more. Its successor's chain leads through it; so its header
// is kept here (of neighbours one for all of them, however many go between two segments that stay), with the removed
// machines, whose remaining records mean nothing any more. The file `released` in the partition's directory, replaced
// whole and atomically before a segment goes. docs/index_format.md has its bytes.
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
  std::vector<MachineId> removed;  // in order
  // Given back from the middle, by their ids. Where several follow each other in the chain, one header stands for all:
  // the last one's, with the first one's LSN and predecessor.
  std::vector<SegmentHeader> segments;

  bool tells_of(SegmentId segment) const;
  void join_neighbours();
  bool empty() const { return begin == SegmentId() && segments.empty(); }
};

// Records with LSNs from `first` to before `end` are gone for good: no segment has any of them.
struct GoneLsns {
  Lsn first, end;
};

std::vector<std::byte> encode_released(const Released& released);
// Any bytes: Code::corrupt or Code::unsupported.
Result<Released> decode_released(std::span<const std::byte> bytes, const std::string& path);

Status write_released(FileSystem& files, const std::string& directory, const Released& released);
// No file: nothing was released.
Result<Released> read_released(FileSystem& files, const std::string& directory);

}  // namespace tidemark::storage
