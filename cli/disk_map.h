// Which parts of a disk are zero, from the streamed answer of .../map. Memory stays bounded whatever the map holds:
// zero ranges that are not worth a request of their own are forgotten, which only means that their zeroes are fetched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::cli {

struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool zero = false;
  bool operator==(const Extent&) const = default;
};

// Bytes of the JSON go in, in any pieces; the disk comes out as extents that cover it.
class DiskMap {
 public:
  // At most about `extents_max` zero ranges are kept.
  explicit DiskMap(std::uint64_t disk_size, std::size_t extents_max = 1 << 20);
  Status feed(std::span<const std::byte> bytes);
  // After the last byte. An error when the answer ended early. In order, covering the disk without gap or overlap; what
  // the map does not call zero is data.
  Result<std::vector<Extent>> finish() &&;

 private:
  Status take_range();
  void shed();

  std::uint64_t disk_size_;
  std::size_t extents_max_;
  std::uint64_t zero_min_;  // shorter zero ranges are forgotten
  int depth_ = 0;           // of braces and brackets
  bool in_string_ = false;
  bool escaped_ = false;
  bool begun_ = false;
  std::string object_;          // text of the range that is being read
  std::uint64_t position_ = 0;  // end of the last range
  std::vector<Extent> zeroes_;
};

}  // namespace tidemark::cli
