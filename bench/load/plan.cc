#include "bench/load/plan.h"

#include <algorithm>
#include <cmath>

#include "base/limits.h"
#include "bench/load/content.h"

namespace tidemark::bench {
namespace {

constexpr std::uint32_t kBurstPeriod = 10, kBurstFactor = 10;
constexpr std::uint64_t kOltpLogShare = 16;  // the log takes this part of a disk
constexpr std::uint64_t kOltpPage = 2;       // granules

std::uint64_t draw(std::uint64_t& state) { return mix(state += 0x9e3779b97f4a7c15ULL); }

}  // namespace

const char* to_string(Profile profile) {
  switch (profile) {
    case Profile::idle: return "idle";
    case Profile::bulk: return "bulk";
    case Profile::random4k: return "random4k";
    case Profile::oltp: return "oltp";
    case Profile::burst: return "burst";
    case Profile::replay: return "replay";
  }
  return "?";
}

Result<Plan> Plan::make(PlanShape shape) {
  if (shape.disks == 0 || shape.disks > limits::kDisksPerMachineMax)
    return fail(Code::invalid_argument, "--disks", "a machine has 1 to 64 disks");
  if (shape.block_size == 0 || shape.block_size % limits::kGranuleSize != 0 ||
      shape.block_size > limits::kBlockPlainSizeMax)
    return fail(Code::invalid_argument, "--block-size", "blocks are whole multiples of 4096 bytes, 65536 at most");
  if (shape.profile == Profile::replay) {
    if (shape.trace == nullptr || shape.trace->writes.empty() || shape.trace_slice.count() <= 0)
      return fail(Code::invalid_argument, "replay", "there is no trace to replay");
    shape.disks = static_cast<std::uint32_t>(shape.trace->disk_granules.size());
    const std::uint64_t granules = *std::ranges::max_element(shape.trace->disk_granules);
    shape.disk_size = std::max<std::uint64_t>(granules, limits::kRegionGranules) * limits::kGranuleSize;
  }
  if (shape.disk_size % limits::kGranuleSize != 0 || shape.disk_size < limits::kRegionSize ||
      shape.disk_size > limits::kDiskSizeMax)
    return fail(Code::invalid_argument, "--disk-size", "a disk is 1 MiB to 64 TiB, in whole multiples of 4096 bytes");
  Plan plan(std::move(shape));
  if (plan.shape_.profile == Profile::replay) {
    const auto length = static_cast<std::uint64_t>(plan.shape_.trace_slice.count());
    const auto& writes = plan.shape_.trace->writes;
    plan.slices_in_trace_ = (plan.shape_.trace->duration_us + length - 1) / length;
    for (std::uint64_t i = 0; i < writes.size(); ++i) {
      const std::uint64_t number = writes[i].time_us / length;
      if (plan.slices_.empty() || plan.slices_.back().number != number) plan.slices_.push_back({number, i, i});
      plan.slices_.back().end = i + 1;
    }
  }
  return plan;
}

std::uint64_t Plan::first_slice_index(std::uint32_t machine) const {
  const std::uint64_t moment = slices_in_trace_ * machine / std::max(1u, shape_.machines);
  const auto found = std::ranges::lower_bound(slices_, moment, {}, &Slice::number);
  return static_cast<std::uint64_t>(found - slices_.begin()) % slices_.size();
}

std::uint64_t Plan::slice_of(std::uint32_t machine, std::uint32_t step) const {
  const std::uint64_t index = first_slice_index(machine) + step - 1;
  return index / slices_.size() * slices_in_trace_ + slices_[index % slices_.size()].number;
}

std::uint64_t Plan::due_epochs(std::uint32_t machine, std::uint32_t step) const {
  if (shape_.profile != Profile::replay || step == 0) return step == 0 ? 0 : step - 1;
  return slice_of(machine, step) - slice_of(machine, 1);
}

Plan::Cursor Plan::begin(std::uint32_t machine, std::uint32_t step) const {
  Cursor cursor;
  cursor.machine_ = machine;
  cursor.step_ = step;
  cursor.random_ = mix(mix(shape_.seed, machine), step);
  if (step == 0) return cursor;
  switch (shape_.profile) {
    case Profile::idle: break;
    case Profile::bulk: {
      const std::uint64_t granules = shape_.disk_size / limits::kGranuleSize;
      cursor.end_ = (granules + limits::kBlockGranulesMax - 1) / limits::kBlockGranulesMax * shape_.disks;
      break;
    }
    case Profile::random4k:
    case Profile::oltp: cursor.end_ = shape_.blocks_per_epoch; break;
    case Profile::burst:
      cursor.end_ = step % kBurstPeriod == machine % kBurstPeriod
                        ? std::uint64_t{shape_.blocks_per_epoch} * kBurstFactor
                        : std::max(1u, shape_.blocks_per_epoch / kBurstFactor);
      break;
    case Profile::replay: {
      const Slice& slice = slices_[(first_slice_index(machine) + step - 1) % slices_.size()];
      cursor.index_ = slice.begin;
      cursor.end_ = slice.end;
      break;
    }
  }
  return cursor;
}

PlannedWrite Plan::oltp_write(Cursor& cursor) const {
  const std::uint64_t granules = shape_.disk_size / limits::kGranuleSize;
  const std::uint64_t log_granules = std::max<std::uint64_t>(limits::kBlockGranulesMax, granules / kOltpLogShare);
  PlannedWrite write;
  write.disk = static_cast<std::uint32_t>(cursor.index_ * shape_.disks / cursor.end_);
  if (cursor.index_ % 8 == 7) {
    const std::uint64_t at = std::uint64_t{cursor.step_} * ((cursor.end_ + 7) / 8) + cursor.index_ / 8;
    return {write.disk, at % log_granules, 1};
  }
  const std::uint64_t pages = (granules - log_granules) / kOltpPage;
  // Zipf-like: the rank is drawn log-uniformly, and ranks are spread over the disk.
  const double part = static_cast<double>(draw(cursor.random_) >> 11) * 0x1.0p-53;
  const auto rank = static_cast<std::uint64_t>(std::pow(static_cast<double>(pages), part));
  write.first_granule = log_granules + mix(rank) % pages * kOltpPage;
  constexpr std::uint32_t kSizes[] = {1, 1, 2, 2, 2, 2, 4, 16};
  write.granules = kSizes[draw(cursor.random_) % std::size(kSizes)];
  write.granules = static_cast<std::uint32_t>(std::min<std::uint64_t>(write.granules, granules - write.first_granule));
  return write;
}

bool Plan::next(Cursor& cursor, PlannedWrite& write) const {
  if (cursor.rest_.granules == 0) {
    if (cursor.index_ >= cursor.end_) return false;
    PlannedWrite& whole = cursor.rest_;
    if (shape_.profile == Profile::bulk) {
      const std::uint64_t blocks = cursor.end_ / shape_.disks, granules = shape_.disk_size / limits::kGranuleSize;
      whole.disk = static_cast<std::uint32_t>(cursor.index_ / blocks);
      whole.first_granule = cursor.index_ % blocks * limits::kBlockGranulesMax;
      whole.granules = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(limits::kBlockGranulesMax, granules - whole.first_granule));
    } else if (shape_.profile == Profile::oltp) {
      whole = oltp_write(cursor);
    } else if (shape_.profile == Profile::replay) {
      const TraceWrite& traced = shape_.trace->writes[cursor.index_];
      whole = {traced.disk, traced.first_granule, traced.granules};
    } else {
      whole.granules = shape_.block_size / limits::kGranuleSize;
      whole.disk = static_cast<std::uint32_t>(cursor.index_ * shape_.disks / cursor.end_);
      whole.first_granule = draw(cursor.random_) % (shape_.disk_size / shape_.block_size) * whole.granules;
    }
    ++cursor.index_;
  }
  // A block ends where a region does, and is not larger than 64 KiB.
  PlannedWrite& rest = cursor.rest_;
  const auto to_region =
      limits::kRegionGranules - static_cast<std::uint32_t>(rest.first_granule % limits::kRegionGranules);
  write = rest;
  write.granules = std::min({rest.granules, limits::kBlockGranulesMax, to_region});
  rest.first_granule += write.granules;
  rest.granules -= write.granules;
  return true;
}

}  // namespace tidemark::bench
