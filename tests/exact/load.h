// Disks under load: loop devices, used raw or through a file of a file system, and threads that write to them, each
// write noted in a ledger.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/exact/ledger.h"
#include "tests/unit/agent/loop_device.h"

namespace tidemark::exact {

// A stretch that threads write to through one path (a device, or a file), and where it lies on its disk.
class Area {
 public:
  struct Extent {
    std::uint64_t offset = 0, on_disk = 0, size = 0;  // bytes
  };
  // `path` is opened; the first `size` bytes from `offset` on are the area's.
  Area(std::string name, std::string path, std::uint64_t offset, std::uint64_t size, bool buffered, bool device);
  void find_extents();  // of a file, which must be written and allocated for good

  Ledger& ledger() { return ledger_; }
  // The area's bytes, out of an image of the disk.
  std::string from_image(std::string_view disk) const;

  void write_some(std::uint64_t& random);  // one write, discard or zeroing, of any size
  void fill();                             // everything once

 private:
  std::string name_, path_;
  std::uint64_t offset_, size_;
  bool buffered_, device_;
  agent::FileDescriptor fd_;
  Ledger ledger_;
  std::vector<Extent> extents_;
};

// Pairs of sectors on two disks: each number is written to the second only after it had been written to the first.
class Chain {
 public:
  static constexpr std::uint64_t kSlots = 4;
  Chain(std::string first, std::string second, std::uint64_t offset);
  void step(std::uint64_t slot);
  std::string judge(std::string_view first, std::string_view second) const;

 private:
  std::uint64_t offset_;
  agent::FileDescriptor first_, second_;
  std::uint64_t next_[kSlots] = {};
};

}  // namespace tidemark::exact
