// What other threads may ask of a partition. Everything comes from the index, after it has caught up with what was
// durable when the question came.
#include <fmt/format.h>

#include "storage/partition_impl.h"

namespace tidemark::storage {

namespace {

std::unexpected<Error> no_machine(const MachineId& machine) {
  return fail(Code::not_found, "machine " + machine.to_string(), "no such machine");
}

}  // namespace

Status Partition::Impl::wait_indexed(std::chrono::milliseconds timeout) {
  const Lsn target(durable_lsn.load(std::memory_order_acquire));
  if (indexer->wait_for(target, timeout)) return {};
  const auto error = indexer->error();
  return fail(Code::timed_out, directory,
              fmt::format("the index is behind: it has LSN {} of {}", indexer->indexed_lsn().value(), target.value()),
              error ? error->message() : "try again");
}

Result<std::unique_ptr<Reader>> Partition::read(const MachineId& machine, DiskId disk, EpochNumber epoch,
                                                std::chrono::milliseconds timeout) {
  Index& index = impl_->index();
  auto entry = TIDEMARK_TRY(index.epoch(machine, epoch));
  if (!entry) {
    TIDEMARK_TRY(impl_->wait_indexed(timeout));
    entry = TIDEMARK_TRY(index.epoch(machine, epoch));
  }
  const auto record = index.machine(machine);
  if (!record || record->removed()) return no_machine(machine);
  const std::string object = "machine " + record->name();
  if (!entry) {
    const auto newest = index.newest_epoch(machine);
    return fail(Code::not_found, object,
                newest ? fmt::format("there is no epoch {}; the newest is {}", epoch.value(), newest->number())
                       : "it has no epoch yet");
  }
  ReadTarget target{.machine = machine,
                    .machine_name = record->name(),
                    .disk = disk,
                    .volume = VolumeId(),
                    .epoch = epoch,
                    .as_of = Lsn(entry->commit_lsn()),
                    .disk_size = 0};
  for (const pb::DiskRecord& known : record->disks()) {
    if (known.disk() == disk.value()) target.volume = VolumeId(known.volume());
  }
  std::string present;
  for (const pb::DiskSizeRecord& known : entry->disks()) {
    if (known.disk() == disk.value()) target.disk_size = known.size();
    present += (present.empty() ? "" : ", ") + std::to_string(known.disk());
  }
  if (target.volume == VolumeId() || target.disk_size == 0) {
    return fail(Code::not_found, object,
                fmt::format("epoch {} has no disk {}; it has: {}", epoch.value(), disk.value(),
                            present.empty() ? "none" : present));
  }
  // From here on it is not dropped; and if it was just now, it is not read.
  if (!impl_->context->uses.begin(machine, epoch)) {
    return fail(Code::not_found, object, fmt::format("epoch {} is being dropped", epoch.value()));
  }
  auto reader = make_reader(impl_->context, std::move(target));
  if (!TIDEMARK_TRY(index.epoch(machine, epoch))) {
    return fail(Code::not_found, object, fmt::format("epoch {} was dropped", epoch.value()));
  }
  return reader;
}

Result<std::vector<pb::EpochEntry>> Partition::epochs(const MachineId& machine, std::size_t limit, bool with_fuzzy,
                                                      std::chrono::milliseconds timeout) {
  TIDEMARK_TRY(impl_->wait_indexed(timeout));
  const auto record = impl_->index().machine(machine);
  if (!record || record->removed()) return no_machine(machine);
  return impl_->index().epochs(machine, limit, with_fuzzy);
}

Result<pb::EpochEntry> Partition::point_at(const MachineId& machine, std::optional<WallMicros> time_us,
                                           std::chrono::milliseconds timeout) {
  const auto points = TIDEMARK_TRY(epochs(machine, time_us ? 0 : 1, false, timeout));
  for (const pb::EpochEntry& point : points) {
    if (!time_us || point.time_us() <= *time_us) return point;
  }
  const auto record = impl_->index().machine(machine);
  const std::string object = "machine " + (record ? record->name() : machine.to_string());
  if (points.empty()) return fail(Code::not_found, object, "it has no recovery point yet");
  return fail(Code::not_found, object,
              fmt::format("it has no recovery point at or before {}; the oldest is of {}", format_rfc3339(*time_us),
                          format_rfc3339(points.back().time_us())));
}

Partition::Stats Partition::stats() const {
  Stats stats;
  {
    const std::lock_guard lock(impl_->counters_mutex);
    stats.log = impl_->counters;
  }
  stats.last_lsn = Lsn(impl_->last_lsn.load(std::memory_order_relaxed));
  stats.durable_lsn = Lsn(impl_->durable_lsn.load(std::memory_order_relaxed));
  stats.indexed_lsn = impl_->indexer->indexed_lsn();
  stats.index_lag_bytes = impl_->indexer->lag_bytes();
  const SegmentKeeper::Stats segments = impl_->keeper->stats();
  stats.index = impl_->index().usage();
  stats.segments = stats.index.segments;
  stats.segments_reserved = segments.ready;
  stats.segments_error = segments.error;
  stats.segment_size = impl_->keeper->segment_size();
  stats.index_error = impl_->indexer->error();
  stats.space = {.total = impl_->total_bytes.load(std::memory_order_relaxed),
                 .available = impl_->available_bytes.load(std::memory_order_relaxed)};
  stats.settler = impl_->settler->stats();
  stats.cold_segments = stats.index.cold_segments;
  stats.damaged_reads = impl_->context->damaged_reads.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace tidemark::storage
