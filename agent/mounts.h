// What is mounted where, from /proc/self/mountinfo, and what is swapped on, from /proc/swaps.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "agent/os_paths.h"
#include "base/status.h"

namespace tidemark::agent {

struct Mount {
  dev_t device = 0;        // of the file system; anonymous (major 0) for btrfs and the like
  std::string root;        // of the mount within its file system
  std::string mountpoint;  // decoded
  std::string filesystem;
  std::string source;      // what was mounted, e.g. /dev/vda1
  bool read_only = false;  // the file system itself, not only this mount of it
  std::string options;     // of the file system, separated by commas
};
// Is `wanted` among them?
bool has_option(const std::string& options, std::string_view wanted);

// In the order in which they were mounted. Lines that cannot be parsed are skipped: the kernel only ever adds fields.
std::vector<Mount> parse_mountinfo(std::string_view text);
Result<std::vector<Mount>> read_mounts(const OsPaths& os);

// Those of `mounts` that stand on one of `devices`, one mount point for each file system, in order of mounting.
std::vector<Mount> mounts_of(const std::vector<Mount>& mounts, const std::set<dev_t>& devices);

// A device that is swapped on. Swap files count as the file itself and are left out.
struct Swap {
  dev_t device = 0;
  std::string path;
  std::uint64_t bytes = 0;  // in use for swapping: without the header and what is marked as bad
};
std::vector<Swap> read_swaps(const OsPaths& os);

}  // namespace tidemark::agent
