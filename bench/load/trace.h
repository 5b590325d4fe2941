// A trace of block writes: when, where, how much. It has no data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::bench {

struct TraceWrite {
  std::uint64_t time_us = 0;  // since the trace's begin
  std::uint32_t disk = 0;
  std::uint64_t first_granule = 0;
  std::uint32_t granules = 0;
};

struct Trace {
  std::vector<TraceWrite> writes;            // by time
  std::uint64_t duration_us = 0;             // not 0
  std::vector<std::uint64_t> disk_granules;  // sizes of the disks
};

// "vscsi version 2": 32 bytes a record, little-endian: serial u32, length in bytes u32, scatter/gather u32, SCSI
// command u16, version u16, first sector u64, time in microseconds u64. Writes only; widened to whole granules. One
// disk. Refused, with the record that shows it: a file that is cut off within a record, or that is no such trace.
Result<Trace> load_vscsi(const std::string& path);

struct SyntheticShape {
  std::uint32_t disks = 1;
  std::uint64_t disk_granules = 0;  // each
  std::uint64_t bytes = 0;          // written in all, about
};
// Two hours like those of the recorded trace: bursts, the recorded sizes, places of a zipf-like popularity of which
// some are sequential runs.
Trace synthetic_trace(std::uint64_t seed, const SyntheticShape& shape);

}  // namespace tidemark::bench
