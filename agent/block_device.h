// What the kernel says of a block device through sysfs: which disk it belongs to, what stands on it, how much was
// written.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "agent/os_paths.h"
#include "base/status.h"

namespace tidemark::agent {

struct BlockDeviceFacts {
  dev_t device = 0;
  std::string name;       // "vda1"
  std::string disk_name;  // "vda": itself when it is a whole disk
  dev_t disk_device = 0;
  std::uint32_t partition = 0;  // 0: a whole disk
  std::string identity;         // what it is recognised by: see docs/agent.md
  std::string backing_file;     // of a loop device
  // Itself, its partitions, and whatever is built on any of them (device mapper, md).
  std::set<dev_t> tree;
};
// `path` serves as a last resort of identity. Fails with not_found when sysfs does not know the device.
Result<BlockDeviceFacts> describe_block_device(const OsPaths& os, dev_t device, const std::string& path);

// Where a partition lies on its disk, in bytes.
struct PartitionPlace {
  dev_t device = 0;
  std::uint64_t begin = 0, end = 0;
};
// All of a whole disk, as the kernel has them now.
std::vector<PartitionPlace> partitions_of(const OsPaths& os, const std::string& disk_name);

// How much was ever written, of a whole disk. Equal counters, with nothing in flight at either moment, say that nothing
// reached the disk between. Discards change data too.
struct WriteCounters {
  std::uint64_t writes = 0;
  std::uint64_t sectors_written = 0;
  std::uint64_t discards = 0;
  std::uint64_t sectors_discarded = 0;
  std::uint64_t writes_in_flight = 0;
  // `writes` is left out: a flush counts as a write of no sectors, our own included.
  bool same_as(const WriteCounters& other) const {
    return sectors_written == other.sectors_written && discards == other.discards &&
           sectors_discarded == other.sectors_discarded;
  }
};
// unsupported when the disk does not count (queue/iostats is 0, or a kernel without discard counters).
Result<WriteCounters> read_write_counters(const OsPaths& os, const std::string& disk_name);

// /dev paths of every whole, non-removable disk that is not built on other disks; no loop, ram, zram or optical ones.
Result<std::vector<std::string>> list_whole_disks(const OsPaths& os);

// Loop devices whose backing file is this one.
std::vector<std::string> loops_backed_by(const OsPaths& os, const std::string& real_path);

}  // namespace tidemark::agent
