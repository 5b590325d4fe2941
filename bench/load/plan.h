// What a simulated machine writes, step by step. A step is the content of one epoch; all steps of all machines follow
// from the shape and the seed, so whoever verifies a point works out again what must stand where.
//
// Step 0 is a machine that has written nothing. A Plan never changes; it is shared by all threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/load/trace.h"

namespace tidemark::bench {

enum class Profile : std::uint8_t {
  idle,      // connects and stays
  bulk,      // an initial sync that never pauses: 64 KiB blocks, the disks from begin to end, then again
  random4k,  // epochs of `blocks_per_epoch` blocks at random places
  oltp,      // popular and unpopular places, blocks of 4 to 64 KiB, and a log that grows
  burst,     // a tenth of the blocks, and every tenth epoch ten times as many; each machine at a time of its own
  replay,    // a trace, each machine from another moment of it
};
const char* to_string(Profile profile);

struct PlanShape {
  Profile profile = Profile::bulk;
  std::uint32_t machines = 1;
  std::uint32_t disks = 1;
  std::uint64_t disk_size = 64ULL << 30;  // bytes, whole granules
  std::uint32_t block_size = 4096;        // random4k, burst
  std::uint32_t blocks_per_epoch = 32;    // random4k, oltp, burst
  std::uint64_t seed = 1;
  std::shared_ptr<const Trace> trace{};              // replay
  std::chrono::microseconds trace_slice{1'000'000};  // replay: time of the trace in an epoch
};

struct PlannedWrite {
  std::uint32_t disk = 0;
  std::uint64_t first_granule = 0;
  std::uint32_t granules = 0;  // at most 16, within one region
};

class Plan {
 public:
  // Refuses a shape that cannot be: disks too small for their blocks, a trace beyond the largest disk. A replay's disks
  // get the size that the trace needs.
  static Result<Plan> make(PlanShape shape);

  class Cursor {
    friend class Plan;
    std::uint32_t machine_ = 0, step_ = 0;
    std::uint64_t index_ = 0, end_ = 0, random_ = 0;
    PlannedWrite rest_;  // of a write that does not fit one block
  };
  Cursor begin(std::uint32_t machine, std::uint32_t step) const;
  bool next(Cursor& cursor, PlannedWrite& write) const;  // false: the step is complete

  // How long after its first step a machine's `step` (1, 2, ...) is due, in epochs: a replay has pauses.
  std::uint64_t due_epochs(std::uint32_t machine, std::uint32_t step) const;
  const PlanShape& shape() const { return shape_; }

 private:
  explicit Plan(PlanShape shape) : shape_(std::move(shape)) {}
  std::uint64_t slice_of(std::uint32_t machine, std::uint32_t step) const;  // counts on when the trace begins again
  std::uint64_t first_slice_index(std::uint32_t machine) const;
  PlannedWrite oltp_write(Cursor& cursor) const;

  struct Slice {
    std::uint64_t number;      // since the trace's begin
    std::uint64_t begin, end;  // of its writes
  };
  PlanShape shape_;
  std::vector<Slice> slices_;  // those with writes
  std::uint64_t slices_in_trace_ = 0;
};

}  // namespace tidemark::bench
