// Names under which the tracking is pinned, and how disks are told from each other. Private to kernel_marks*.cc.
#pragma once

#include <sys/sysmacros.h>
#include <sys/types.h>

#include <cstdint>

#include "agent/kernel_marks.h"

namespace tidemark::agent {

// In the kernel: twelve bits of major, twenty of minor.
inline std::uint32_t number_of_disk(dev_t device) {
  return static_cast<std::uint32_t>(major(device)) << 20 | static_cast<std::uint32_t>(minor(device));
}

// Of the identity and, of device mapper, the table.
Sha256 digest_of(const TrackedDisk& disk);

inline constexpr const char* kPinnedMaps[] = {"control", "counters",  "marks",  "disks",
                                              "windows", "in_flight", "carried"};

enum class Tracepoint : unsigned char { queue, remap, split, end, command };
// Copies of one program on one tracepoint, in the order in which they run.
struct PinnedProgram {
  const char* name;
  Tracepoint point;
};
inline constexpr PinnedProgram kPinnedPrograms[] = {{"queue_1", Tracepoint::queue}, {"queue_2", Tracepoint::queue},
                                                    {"remap_1", Tracepoint::remap}, {"remap_2", Tracepoint::remap},
                                                    {"split_1", Tracepoint::split}, {"end_1", Tracepoint::end},
                                                    {"done_1", Tracepoint::end},    {"issue_1", Tracepoint::command}};

}  // namespace tidemark::agent
