// What other threads may ask of a partition. Everything comes from the index, after it has caught up with what was
// durable when the question came.
#include <fmt/format.h>

#include "storage/disk_view.h"
#include "storage/epoch_progress.h"
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

namespace {

// Holds points in PointUses as long as it lives.
class PointHolds {
 public:
  explicit PointHolds(std::shared_ptr<ReadContext> context) : context_(std::move(context)) {}
  ~PointHolds() {
    for (const auto& [machine, epoch] : held_) context_->uses.end(machine, epoch);
  }
  PointHolds(const PointHolds&) = delete;
  PointHolds& operator=(const PointHolds&) = delete;

  // From here on it is not dropped; and if it was just now, it is not held.
  Status hold(const MachineId& machine, EpochNumber epoch, const std::string& object) {
    if (!context_->uses.begin(machine, epoch)) {
      return fail(Code::not_found, object, fmt::format("epoch {} is being dropped", epoch.value()));
    }
    held_.emplace_back(machine, epoch);
    if (TIDEMARK_TRY(context_->index->epoch(machine, epoch))) return {};
    return fail(Code::not_found, object, fmt::format("epoch {} was dropped", epoch.value()));
  }
  void hand_over() { held_.clear(); }  // somebody else ends the uses

 private:
  const std::shared_ptr<ReadContext> context_;
  std::vector<std::pair<MachineId, EpochNumber>> held_;
};

struct Base {
  MachineId machine;
  EpochNumber epoch;
};

Result<Base> base_of(const pb::MachineRecord& clone) {
  return Base{.machine = TIDEMARK_TRY(machine_from_bytes(clone.clone().parent())),
              .epoch = EpochNumber(clone.clone().epoch())};
}

bool stands_on_a_point(const pb::MachineRecord& record, EpochNumber epoch) {
  return epoch == EpochNumber() && record.has_clone();
}

}  // namespace

Result<Partition::Impl::FoundEpoch> Partition::Impl::find_epoch(const MachineId& machine, EpochNumber epoch,
                                                                std::chrono::milliseconds timeout) {
  auto entry = TIDEMARK_TRY(index().epoch(machine, epoch));
  if (!entry) {
    TIDEMARK_TRY(wait_indexed(timeout));
    entry = TIDEMARK_TRY(index().epoch(machine, epoch));
  }
  auto record = index().machine(machine);  // after the entry: see FoundEpoch
  if (!record || record->removed()) return no_machine(machine);
  if (entry) return FoundEpoch{.entry = *std::move(entry), .record = *std::move(record)};
  const auto newest = index().newest_epoch(machine);
  return fail(Code::not_found, "machine " + record->name(),
              newest ? fmt::format("there is no epoch {}; the newest is {}", epoch.value(), newest->number())
                     : "it has no epoch yet");
}

Result<pb::MachineRecord> Partition::Impl::find_record(const MachineId& machine, std::chrono::milliseconds timeout) {
  auto record = index().machine(machine);
  if (!record) {
    TIDEMARK_TRY(wait_indexed(timeout));
    record = index().machine(machine);
  }
  if (!record || record->removed()) return no_machine(machine);
  return *std::move(record);
}

Result<std::unique_ptr<Reader>> Partition::read(const MachineId& machine, DiskId disk, EpochNumber epoch,
                                                std::chrono::milliseconds timeout) {
  return make_reader(TIDEMARK_TRY(view(machine, disk, epoch, timeout, nullptr)));
}

Result<std::shared_ptr<const DiskView>> Partition::view(const MachineId& machine, DiskId disk, EpochNumber epoch,
                                                        std::chrono::milliseconds timeout,
                                                        std::shared_ptr<BlockCache> cache) {
  const auto record = TIDEMARK_TRY(impl_->find_record(machine, timeout));
  const std::string object = (record.has_clone() ? "clone " : "machine ") + record.name();
  ReadTarget target{.machine_name = record.name(), .disk = disk, .epoch = epoch, .disk_size = 0, .layers = {}};
  PointHolds holds(impl_->context);
  std::string present;
  Base at{.machine = machine, .epoch = epoch};
  if (stands_on_a_point(record, epoch)) {
    at = TIDEMARK_TRY(base_of(record));
  }
  for (;;) {
    const auto [entry, owner] = TIDEMARK_TRY(impl_->find_epoch(at.machine, at.epoch, timeout));
    TIDEMARK_TRY(holds.hold(at.machine, at.epoch, object));
    if (target.layers.empty()) {
      for (const pb::DiskSizeRecord& known : entry.disks()) {
        if (known.disk() == disk.value()) target.disk_size = known.size();
        present += (present.empty() ? "" : ", ") + std::to_string(known.disk());
      }
    }
    ReadLayer layer{.machine = at.machine, .volume = VolumeId(), .epoch = at.epoch, .as_of = Lsn(entry.commit_lsn())};
    for (const pb::DiskRecord& known : owner.disks()) {
      if (known.disk() == disk.value()) layer.volume = VolumeId(known.volume());
    }
    if (layer.volume == VolumeId() || target.disk_size == 0) {
      return fail(Code::not_found, object,
                  fmt::format("epoch {} has no disk {}; it has: {}", epoch.value(), disk.value(),
                              present.empty() ? "none" : present));
    }
    target.layers.push_back(layer);
    if (!owner.has_clone()) break;
    at = TIDEMARK_TRY(base_of(owner));
  }
  holds.hand_over();
  return std::make_shared<const DiskView>(impl_->context, std::move(target), std::move(cache));
}

Result<CloneBase> Partition::clone_base(const MachineId& machine, EpochNumber epoch,
                                        std::chrono::milliseconds timeout) {
  auto record = TIDEMARK_TRY(impl_->find_record(machine, timeout));
  CloneBase base{.parent = machine, .epoch = epoch, .depth = 0, .disks = {}, .hold = {}};
  if (stands_on_a_point(record, epoch)) {
    // It has nothing of its own: what it stands on will do.
    const Base below = TIDEMARK_TRY(base_of(record));
    base.parent = below.machine;
    base.epoch = below.epoch;
    record = TIDEMARK_TRY(impl_->find_record(below.machine, timeout));
  }
  const std::string object = (record.has_clone() ? "clone " : "machine ") + record.name();
  base.depth = record.clone().depth() + 1;
  if (base.depth > kCloneDepthMax) {
    return fail(Code::busy, object,
                fmt::format("it is a clone of {} others already, and {} is as deep as clones go",
                            record.clone().depth(), kCloneDepthMax),
                "clone one further down, or export it");
  }
  const auto [entry, owner] = TIDEMARK_TRY(impl_->find_epoch(base.parent, base.epoch, timeout));
  const auto holds = std::make_shared<PointHolds>(impl_->context);
  TIDEMARK_TRY(holds->hold(base.parent, base.epoch, object));
  for (const pb::DiskRecord& disk : owner.disks()) {
    pb::DiskRecord& of_clone = base.disks.emplace_back(disk);
    of_clone.set_size(0);
    for (const pb::DiskSizeRecord& size : entry.disks()) {
      if (size.disk() == disk.disk()) of_clone.set_size(size.size());
    }
  }
  base.hold = holds;
  return base;
}

Result<std::vector<pb::EpochEntry>> Partition::epochs(const MachineId& machine, std::size_t limit, bool with_fuzzy,
                                                      std::chrono::milliseconds timeout) {
  TIDEMARK_TRY(impl_->wait_indexed(timeout));
  const auto record = impl_->index().machine(machine);
  if (!record || record->removed()) return no_machine(machine);
  const VerifiedPoints verified = impl_->checker->verified(machine);
  const bool sound_base = TIDEMARK_TRY(impl_->base_verified(*record));
  auto entries = TIDEMARK_TRY(impl_->index().epochs(machine, limit, with_fuzzy));
  const auto key = impl_->keys->key_of(*record);
  HashSealer hashes;
  for (pb::EpochEntry& entry : entries) {
    entry.set_verified(sound_base && verified.covers(entry));
    entry.set_was_verified(sound_base && verified.covered(entry));
    entry.set_damaged(!sound_base || verified.damaged(entry));
    if (entry.sealed_digest().empty()) continue;
    entry.set_digest(hash_to_bytes(digest_of(entry, key.get(), hashes)));
    entry.clear_sealed_digest();
  }
  if (record->has_clone() && (limit == 0 || entries.size() < limit)) {
    const Base base = TIDEMARK_TRY(base_of(*record));
    entries.push_back(TIDEMARK_TRY(impl_->find_epoch(base.machine, base.epoch, timeout)).entry);
    entries.back().set_number(0);
    entries.back().set_verified(sound_base);
    entries.back().clear_sealed_digest();  // of another machine, and under its key
  }
  return entries;
}

// What a clone shows is verified when its own epochs are, and all points that it stands on.
Result<bool> Partition::Impl::base_verified(const pb::MachineRecord& record) {
  for (auto below = record; below.has_clone();) {
    const Base base = TIDEMARK_TRY(base_of(below));
    const auto entry = TIDEMARK_TRY(index().epoch(base.machine, base.epoch));
    const auto next = index().machine(base.machine);
    if (!entry || !next || !checker->verified(base.machine).covers(*entry)) return false;
    below = *next;
  }
  return true;
}

Checker& Partition::checker() const { return *impl_->checker; }

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

std::vector<Index::MachineSpace> Partition::machine_space() const { return impl_->index().space(); }
std::vector<std::uint64_t> Partition::index_bytes(std::span<const MachineId> machines) const {
  return impl_->index().table_bytes(machines);
}

SpaceInfo Partition::space() const {
  return {.total = impl_->total_bytes.load(std::memory_order_relaxed),
          .available = impl_->available_bytes.load(std::memory_order_relaxed),
          .file_system = impl_->file_system_id.load(std::memory_order_relaxed)};
}

Status Partition::check_counts() const {
  return impl_->indexer->call([](const Index& index) { return index.check_counts(); });
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
  stats.space = space();
  stats.settler = impl_->settler->stats();
  stats.checker = impl_->checker->stats();
  stats.cold_segments = stats.index.cold_segments;
  stats.cold_bytes = impl_->manifest->bytes();
  stats.stored_bytes = stats.index.stored_bytes;
  stats.encrypted_volumes = impl_->keys->size();
  {
    const std::lock_guard lock(impl_->superblock_mutex);
    stats.master_keys = impl_->superblock.master_keys;
  }
  stats.damaged_reads = impl_->context->damaged_reads.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace tidemark::storage
