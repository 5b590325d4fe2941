// The partition's life on its shard: what is asked is checked against the catalog, goes into the log, and is told to
// the listener once it is durable; the indexer follows behind on its own thread. Opening, creating and what other
// threads may ask stand in partition_open.cc and partition_read.cc.
#include "storage/partition.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/check.h"
#include "base/marks.h"
#include "storage/epoch_progress.h"
#include "storage/partition_impl.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kRecordOverhead = 128;  // in a commit, roughly and rather too much

}  // namespace

Partition::Impl::Impl(FileSystem& file_system, std::string path, const PartitionOptions& partition_options,
                      IoQueue& io_queue, Partition::Listener& to)
    : files(file_system), directory(std::move(path)), options(partition_options), queue(io_queue), listener(to) {}

Partition::Impl::~Impl() {
  // What these use goes after them; nothing is flushed: close() does that.
  checker.reset();
  settler.reset();
  indexer.reset();
  log.reset();
  keeper.reset();
}

// --- Log::Listener ---

void Partition::Impl::on_durable(CommitInfo&& commit) {
  durable_lsn.store(commit.last_lsn.value(), std::memory_order_release);
  if (auto taken = catalog.durable(commit, *this); !taken) {
    // Our own log holds what we cannot parse: going on would tell machines what is not so.
    spdlog::critical("event=catalog_failed path={} error=\"{}\"", directory, taken.error().message());
    stop(taken.error());
  }
  indexer->push(std::move(commit));
  note_counters();
  for (auto events = std::exchange(durable_events, {}); const Durable& event : events) {
    if (event.payload_bytes != 0) listener.on_bytes_durable(event.machine, event.payload_bytes);
    if (event.epoch != EpochNumber()) listener.on_epoch_durable(event.machine, event.epoch, event.digest);
  }
  const Lsn lsn(durable_lsn.load(std::memory_order_relaxed));
  while (!waiting.empty() && waiting.front().first <= lsn) {
    const auto then = std::move(waiting.front().second);
    waiting.pop_front();
    then({});
  }
  offer_room();
}

void Partition::Impl::on_stopped(const Error& why) { stop(why); }

void Partition::Impl::stop(const Error& why) {
  if (stopped) return;
  stopped = why;
  for (auto callbacks = std::exchange(waiting, {}); auto& [lsn, then] : callbacks) then(std::unexpected(why));
  listener.on_stopped(why);
}

// --- Catalog::Visitor ---

void Partition::Impl::epoch_durable(const MachineId& machine, EpochNumber epoch, const Hash128& digest) {
  durable_events.push_back({.machine = machine, .payload_bytes = 0, .epoch = epoch, .digest = digest});
}

void Partition::Impl::blocks_durable(const MachineId& machine, std::uint64_t payload_bytes) {
  if (!durable_events.empty()) {
    Durable& last = durable_events.back();
    if (last.machine == machine && last.epoch == EpochNumber()) {
      last.payload_bytes += payload_bytes;
      return;
    }
  }
  durable_events.push_back({.machine = machine, .payload_bytes = payload_bytes, .epoch = {}, .digest = {}});
}

// --- appending ---

Result<Lsn> Partition::Impl::append(RecordType type, const MachineId& machine, DiskId disk,
                                    std::span<const std::byte> payload) {
  if (stopped) return std::unexpected(*stopped);
  auto lsn = log->append(type, machine, disk, payload);
  if (lsn) {
    last_lsn.store(lsn->value(), std::memory_order_relaxed);
  } else if (lsn.error().code == Code::busy) {
    wanted_room = std::max(wanted_room, payload.size());
  }
  return lsn;
}

Result<Lsn> Partition::Impl::append(RecordType type, const MachineId& machine,
                                    const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  return append(type, machine, DiskId(), std::as_bytes(std::span(bytes)));
}

std::size_t Partition::Impl::room() const {
  if (stopped) return 0;
  return static_cast<std::size_t>(std::min<std::uint64_t>(log->room(), indexer->room()));
}

void Partition::Impl::offer_room() {
  if (wanted_room == 0 || stopped || room() < wanted_room) return;
  wanted_room = 0;
  listener.on_room();
}

Status Partition::Impl::check_space() {
  if (!options.background) refresh_space();
  const std::uint64_t available = available_bytes.load(std::memory_order_relaxed);
  if (available >= options.free_space_min) return {};
  leave_mark(Mark::refused_for_space);
  return fail(Code::no_space, directory,
              fmt::format("its file system has {} MiB left, and {} MiB are to stay free", available >> 20,
                          options.free_space_min >> 20),
              "free space, remove machines that are no longer needed, or make the file system larger");
}

void Partition::Impl::refresh_space() {
  const auto space = files.space(directory);
  if (!space) return;  // what was known before counts on; a real failure shows in every other operation
  available_bytes.store(space->available, std::memory_order_relaxed);
  total_bytes.store(space->total, std::memory_order_relaxed);
  file_system_id.store(space->file_system, std::memory_order_relaxed);
}

void Partition::Impl::note_counters() {
  const std::lock_guard lock(counters_mutex);
  counters = log->counters();
}

// --- clones ---

void Partition::Impl::hold_parent(const pb::MachineRecord& clone) {
  const auto parent = machine_from_bytes(clone.clone().parent());
  if (parent) TIDEMARK_CHECK(context->uses.begin(*parent, EpochNumber(clone.clone().epoch())));
}

void Partition::Impl::release_parent(const pb::MachineRecord& clone) {
  const auto parent = machine_from_bytes(clone.clone().parent());
  if (parent) context->uses.end(*parent, EpochNumber(clone.clone().epoch()));
}

// --- the background ---

void Partition::Impl::housekeeping() {
  refresh_space();
  if (keeper->stats().error) keeper->retry();
  std::vector<SegmentId> free, free_cold;
  for (const SegmentId segment : index().unreferenced_segments()) {
    if (context->pins.may_release(segment)) (is_cold(segment) ? free_cold : free).push_back(segment);
  }
  if (rewrapped.exchange(false)) {
    if (const auto done = forget_old_master_keys(); !done) {
      spdlog::warn("event=superblock_not_written path={} error=\"{}\"", directory, done.error().message());
      rewrapped = true;  // tried again at the next turn
    }
  }
  Status given_back;
  if (!free.empty() && released) given_back = release(free);
  if (!free_cold.empty()) {
    if (Status cold = release_cold(free_cold); !cold) given_back = std::move(cold);
  }
  if (!given_back && !release_failed) {
    spdlog::warn("event=segments_not_released path={} error=\"{}\"", directory, given_back.error().message());
  }
  release_failed = !given_back;  // said once, tried again at every turn
}

Status Partition::Impl::release_cold(const std::vector<SegmentId>& segments) {
  TIDEMARK_TRY(manifest->remove(segments));
  for (const SegmentId segment : segments) {
    const std::string path = cold_path(directory + "/cold", segment);
    if (TIDEMARK_TRY(files.exists(path))) TIDEMARK_TRY(files.remove(path));
    TIDEMARK_TRY(index().forget_segment(segment));
    context->segments.forget(segment);
    context->pins.released(segment);
  }
  return {};
}

// First it is written down, for a rebuild of the index; then the index forgets; then the file goes. A crash in between
// is made good at the next start. One whose header cannot be read stays, and the others go.
Status Partition::Impl::release(const std::vector<SegmentId>& unreferenced) {
  const auto header_of = [&](SegmentId segment) -> Result<SegmentHeader> {
    const auto file = TIDEMARK_TRY(context->segments.open(segment));
    AlignedBuffer block(limits::kIoAlignment);
    const std::size_t size = TIDEMARK_TRY(file->read_at(0, block.span()));
    return parse_segment_header(block.span().first(size), id, salt, segment);
  };
  Released next = *released;
  std::vector<SegmentId> segments;
  Status unread;
  for (const SegmentId segment : unreferenced) {
    // Told already: a crash came before the index had forgotten it for good.
    if (!next.tells_of(segment)) {
      auto header = header_of(segment);
      if (!header) {
        unread = std::unexpected(std::move(header).error());
        continue;
      }
      next.segments.push_back(*header);
    }
    segments.push_back(segment);
  }
  if (segments.empty()) return unread;
  // What stands before the oldest that stays need not be told one by one.
  if (const auto oldest = index().oldest_segment_but(segments)) {
    if (auto header = header_of(*oldest)) {
      next.begin = *oldest;
      next.begin_lsn = Lsn(header->first_lsn);
      std::erase_if(next.segments, [&](const SegmentHeader& gone) { return gone.segment < oldest->value(); });
    } else {
      unread = std::unexpected(std::move(header).error());
    }
  }
  next.join_neighbours();
  next.removed.clear();
  for (const pb::MachineRecord& record : index().machines()) {
    if (record.removed()) next.removed.push_back(TIDEMARK_TRY(machine_from_bytes(record.machine())));
  }
  TIDEMARK_TRY(write_released(files, directory, next));
  released = std::move(next);
  std::map<SegmentId, Lsn> begins_now;
  std::vector<GoneLsns> gone{{.first = Lsn(1), .end = released->begin_lsn}};
  for (const SegmentHeader& run : released->segments) {
    const auto behind = index().segment_behind_but(SegmentId(run.segment), segments);
    if (!behind) continue;
    auto known = begins.find(*behind);
    if (known == begins.end()) {
      auto header = header_of(*behind);
      if (!header) {
        unread = std::unexpected(std::move(header).error());
        continue;
      }
      known = begins.emplace(*behind, header->first_lsn).first;
    }
    begins_now.insert(*known);
    gone.push_back({.first = Lsn(run.first_lsn), .end = known->second});
  }
  begins = std::move(begins_now);
  settler->set_gone(std::move(gone));
  for (const SegmentId segment : segments) {
    TIDEMARK_TRY(index().forget_segment(segment));
    context->segments.forget(segment);
    context->pins.released(segment);
    if (TIDEMARK_TRY(files.exists(segment_path(directory + "/log", segment)))) keeper->recycle(segment);
  }
  return unread;
}

void Partition::Impl::append_records() {
  constexpr std::size_t kAtATime = 1 << 20;  // bytes: sessions find room in the log as well
  for (std::size_t appended = 0; appended < kAtATime;) {
    const auto record = settler->next_record();
    if (!record) return;
    appended += record->payload.size() + kRecordOverhead;
    // A machine's record goes as it is by now.
    const pb::MachineRecord* known = record->type == RecordType::machine ? catalog.record(record->machine) : nullptr;
    const auto lsn = known != nullptr
                         ? append(record->type, record->machine, *known)
                         : append(record->type, record->machine, DiskId(), std::as_bytes(std::span(record->payload)));
    if (!lsn && (stopped || lsn.error().code == Code::busy)) return;  // no room now, or no more at all
    if (!lsn) spdlog::error("event=record_refused path={} error=\"{}\"", directory, lsn.error().message());
    settler->appended(lsn.value_or(Lsn()));
  }
}

// --- Partition, on the shard's thread ---

Partition::Partition(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Partition::~Partition() = default;

const MachineState* Partition::find(const MachineId& machine) const { return impl_->catalog.find(machine); }
const MachineState* Partition::find_by_name(const std::string& name) const { return impl_->catalog.find_by_name(name); }
void Partition::for_each_machine(const std::function<void(const MachineState&)>& visit) const {
  impl_->catalog.for_each_machine(visit);
}
void Partition::for_each_clone(const std::function<void(const MachineState&)>& visit) const {
  impl_->catalog.for_each_clone(visit);
}

Status Partition::put_machine(const pb::MachineRecord& record, std::function<void(Status)> durable) {
  auto whole = TIDEMARK_TRY(impl_->catalog.check_machine(record));
  const MachineId machine = TIDEMARK_TRY(machine_from_bytes(whole.machine()));
  const Lsn lsn = TIDEMARK_TRY(impl_->append_machine(machine, whole));
  const bool dropped = whole.removed() && whole.has_clone();
  if (durable || dropped) {
    impl_->waiting.emplace_back(lsn, [impl = impl_.get(), dropped, whole, durable = std::move(durable)](Status done) {
      if (done && dropped) impl->release_parent(whole);
      if (durable) durable(std::move(done));
    });
  }
  return {};
}

Status Partition::create_clones(const CloneBase& base, std::span<const CloneName> names, const std::string& by,
                                WallMicros now_us, std::function<void(Status)> durable) {
  auto records = TIDEMARK_TRY(impl_->catalog.check_clones(base, names, by, now_us));
  TIDEMARK_TRY(impl_->check_space());
  std::size_t bytes = 0;
  const bool encrypted = impl_->keys->key_of(*impl_->catalog.record(base.parent)) != nullptr;
  for (pb::MachineRecord& record : records) {
    impl_->keys->equip(record, encrypted);
    bytes += record.ByteSizeLong() + kRecordOverhead;
  }
  if (const std::size_t most = impl_->log->room_max(); bytes > most) {
    return fail(Code::invalid_argument, "clones",
                fmt::format("{} of them take {} MiB of records, and the log takes {} MiB at once", names.size(),
                            bytes >> 20, most >> 20),
                fmt::format("make at most {} with one call", most / (bytes / names.size() + 1)));
  }
  // Once the index has caught up, it may fall behind by all of them, also where that is more than it may otherwise.
  const auto wanted = static_cast<std::size_t>(std::min<std::uint64_t>(bytes, impl_->options.index_lag_max));
  if (impl_->log->room() < bytes || impl_->indexer->room() < wanted) {
    impl_->wanted_room = std::max(impl_->wanted_room, wanted);
    return fail(Code::busy, impl_->directory, "the log has no room for that many records now", "try again");
  }
  Lsn last;
  for (pb::MachineRecord& record : records) {
    const MachineId clone = TIDEMARK_TRY(machine_from_bytes(record.machine()));
    last = TIDEMARK_TRY(impl_->append_machine(clone, record));
    impl_->hold_parent(record);
  }
  impl_->waiting.emplace_back(last, std::move(durable));
  return {};
}

void Partition::when_durable(std::function<void(Status)> then) {
  if (impl_->stopped) {
    then(std::unexpected(*impl_->stopped));
  } else if (impl_->log->durable_lsn() >= impl_->log->last_lsn()) {
    then({});
  } else {
    impl_->waiting.emplace_back(impl_->log->last_lsn(), std::move(then));
  }
}

Result<pb::DiskRecord> Partition::open_disk(const MachineId& machine, const pb::DiskRecord& disk) {
  auto change = TIDEMARK_TRY(impl_->catalog.check_disk(machine, disk));
  auto record = change.record.value_or(*impl_->catalog.record(machine));
  const bool equipped = impl_->keys->equip(record);
  if (change.record || equipped) TIDEMARK_TRY(impl_->append_machine(machine, record));
  return record.disks(static_cast<int>(change.disk.disk()));
}

Status Partition::begin_epoch(const MachineId& machine, const pb::EpochBeginRecord& begin) {
  if (TIDEMARK_TRY(impl_->catalog.check_begin(machine, begin))) return {};
  TIDEMARK_TRY(impl_->check_space());
  const Lsn lsn =
      TIDEMARK_TRY(impl_->append(RecordType::epoch_begin, machine, impl_->catalog.complete(machine, begin)));
  impl_->catalog.appended_begin(machine, begin, lsn);
  return {};
}

Status Partition::append_blocks(const MachineId& machine, DiskId disk, std::span<const std::byte> payload) {
  TIDEMARK_TRY(impl_->catalog.check_blocks(machine, disk));
  TIDEMARK_TRY(impl_->check_space());
  if (impl_->indexer->room() < payload.size()) {
    impl_->wanted_room = std::max(impl_->wanted_room, payload.size());
    return fail(Code::busy, impl_->directory, "the index is behind the log by as much as it may be");
  }
  TIDEMARK_TRY(impl_->append_blocks(machine, disk, payload));
  return {};
}

Status Partition::commit_epoch(const MachineId& machine, const pb::EpochCommitRecord& commit) {
  TIDEMARK_TRY(impl_->catalog.check_commit(machine, EpochNumber(commit.number())));
  TIDEMARK_TRY(impl_->append(RecordType::epoch_commit, machine, impl_->catalog.complete(machine, commit)));
  impl_->catalog.appended_commit(machine);
  return {};
}

Status Partition::abort_epoch(const MachineId& machine, const pb::EpochAbortRecord& abort) {
  if (TIDEMARK_TRY(impl_->catalog.check_abort(machine, EpochNumber(abort.number())))) return {};
  TIDEMARK_TRY(impl_->append(RecordType::epoch_abort, machine, impl_->catalog.complete(machine, abort)));
  impl_->catalog.appended_abort(machine);
  return {};
}

void Partition::set_unchanged(const MachineId& machine, WallMicros as_of_us) {
  impl_->catalog.set_unchanged(machine, as_of_us);
}

void Partition::keep_points(const MachineId& machine) { impl_->settler->keep_points(machine); }

void Partition::drop_points(const MachineId& machine, const std::vector<EpochNumber>& epochs) {
  impl_->settler->drop_points(machine, epochs);
}

void Partition::end_turn() {
  impl_->log->end_turn();
  impl_->offer_room();
}

void Partition::on_idle() {
  if (!impl_->options.background) {
    while (impl_->keeper->step()) {
    }
    impl_->indexer->step();
    while (impl_->settler->step()) {
    }
    while (impl_->checker->step()) {
    }
  }
  impl_->append_records();
  impl_->rewrap_some();
  if (impl_->segment_ready.exchange(false, std::memory_order_acquire)) impl_->log->end_turn();
  impl_->log->on_idle();
  impl_->note_counters();
  impl_->offer_room();
}

std::size_t Partition::room() const { return impl_->room(); }
bool Partition::waits_for_room() const { return impl_->wanted_room != 0; }
bool Partition::stopped() const { return impl_->stopped.has_value(); }
std::optional<Error> Partition::index_damage() const { return impl_->index().damage(); }
void Partition::stop(const Error& why) { impl_->stop(why); }
bool Partition::quiet() const { return impl_->log->quiet(); }

Status Partition::close() {
  Impl& impl = *impl_;
  while (!impl.stopped && impl.log->durable_lsn() < impl.log->last_lsn()) {
    on_idle();
    impl.queue.submit();
    if (impl.queue.in_flight() != 0) {
      impl.queue.wait();
      continue;
    }
    // Nothing in flight and not all durable: it waits for a segment.
    if (const auto error = impl.keeper->stats().error) {
      impl.stop(*error);
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!impl.stopped) {
    impl.log->on_idle();  // states the durable LSN, so that the next start need not prove it
    impl.queue.submit();
    while (impl.queue.in_flight() != 0) {
      impl.queue.wait();
      impl.queue.submit();
    }
  }
  impl.settler->stop();
  impl.checker->stop();
  const Status indexed = impl.indexer->close();
  if (impl.stopped) return std::unexpected(*impl.stopped);
  if (!indexed) return indexed;
  impl.stopped = Error{Code::cancelled, impl.directory, "the partition is closed", ""};
  return {};
}

}  // namespace tidemark::storage
