// What an epoch may claim. Pure: evidence in, a decision out.
//
// The rule: every byte of every disk was read within one interval, from before the first read to after the last. When
// for each disk it is proven that nothing changed in that interval, what was read is the machine at any moment of it,
// and the epoch is a point. One disk without proof makes the whole epoch fuzzy: never a recovery point, and said so
// with the reason.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tidemark::agent {

// The numbers are those of the protocol (wire/tidemark.proto).
// `application` is what the hooks of agent/quiesce.h make of a point: decide() never gives it.
enum class Consistency : std::uint8_t { fuzzy = 1, crash = 2, filesystem = 3, application = 4 };
std::string_view to_string(Consistency consistency);

// What is known of one disk over the interval.
struct DiskEvidence {
  std::string disk;  // its path, for the reason
  bool is_file = false;

  // Files.
  bool lease_held = false;     // the kernel's word that nobody had it open for writing
  bool lease_refused = false;  // someone had it open for writing at the start, or opened it meanwhile
  bool times_unchanged =
      false;  // where leases cannot be had: size, mtime and ctime stayed, and were old enough to tell
  bool writer_seen =
      false;  // ... but a process or a loop device has it open for writing, or that could not be looked up

  // Devices.
  bool counted = false;    // the kernel counts what is written to it
  bool unchanged = false;  // nothing was written, and nothing was in flight at either end
  bool claimable = false;  // not mounted, not swapped on, nothing built on it, at either end
  bool mounted = false;
  bool frozen = false;  // every file system on it was frozen throughout

  std::string detail;  // more words: what could not be looked up, who has it open
};

struct Decision {
  Consistency consistency = Consistency::fuzzy;
  std::string reason;  // empty for a point
  std::string remedy;
  bool freeze_would_help = false;  // fuzzy only because mounted file systems were written to
};

// No disks: fuzzy, for nothing was proven.
Decision decide(const std::vector<DiskEvidence>& disks);

}  // namespace tidemark::agent
