#include "tests/sim/store_checker.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace tidemark::sim {

using storage::hash_from_bytes;
using storage::hash_to_bytes;
using storage::MachineState;

namespace {

constexpr std::size_t kPayloadMax = 120 << 10;
constexpr std::chrono::milliseconds kNoWait{0};

std::uint64_t random_disk_size(Random& random) {
  const std::uint64_t granules = 1 + random.below(700);
  return granules * limits::kGranuleSize - (random.chance(0.3) ? 512 * random.below(8) : 0);
}

}  // namespace

MachineId StoreChecker::machine_id(std::uint32_t number) {
  std::array<std::byte, 16> bytes{};
  std::memcpy(bytes.data(), &number, sizeof number);
  bytes[15] = std::byte{0x77};
  return MachineId(bytes);
}

StoreChecker::StoreChecker(std::uint64_t seed, storage::PartitionOptions options)
    : random_(seed),
      rig_(seed ^ 0x5deece66d, std::move(options)),
      retention_clock_(std::nullopt, rig_.clock().wall_us(), rig_.clock().monotonic()),
      rung_clock_(std::nullopt, rig_.clock().wall_us(), rig_.clock().monotonic(), storage::RetentionClock::Back::hold) {
  if (const auto created = rig_.create(); !created) fail("create: " + created.error().message());
}

void StoreChecker::fail(std::string what) {
  if (!run_.failure) run_.failure = std::move(what);
}

void StoreChecker::trace(const std::string& what) const {
  static const bool wanted = std::getenv("TIDEMARK_SIM_TRACE") != nullptr;
  if (wanted) std::fprintf(stderr, "step %llu: %s\n", static_cast<unsigned long long>(run_.steps), what.c_str());
}

ModelMachine* StoreChecker::any_machine() {
  std::vector<ModelMachine*> usable;
  for (auto& [number, machine] : machines_) {
    if (!machine.removing) usable.push_back(&machine);
  }
  return usable.empty() ? nullptr : usable[random_.below(usable.size())];
}

std::uint32_t StoreChecker::number_of(const ModelMachine& machine) const {
  for (const auto& [number, known] : machines_) {
    if (&known == &machine) return number;
  }
  return 0;
}

// Refused because of what the simulated disk does: no effect, no failure. Anything else the model did not expect.
void StoreChecker::check_status(const Status& status, const char* doing) {
  if (status) return;
  switch (status.error().code) {
    case Code::busy:
    case Code::no_space:
    case Code::io: return;
    default:
      if (!rig_.store().stopped()) fail(fmt::format("{}: {}", doing, status.error().message()));
  }
}

void StoreChecker::add_machine() {
  const std::uint32_t number = next_machine_++;
  storage::pb::MachineRecord record;
  const MachineId id = machine_id(number);
  record.set_machine(storage::machine_to_bytes(id));
  record.set_name(fmt::format("m{}", number));
  const auto put = rig_.store().put_machine(record, [this, number](const Status& status) {
    const auto found = machines_.find(number);
    if (status && found != machines_.end()) found->second.record_acked = true;
  });
  check_status(put, "put_machine");
  if (!put) return;
  machines_[number].id = id;
  machines_[number].name = record.name();
  run_.count(StoreOp::machine);
}

void StoreChecker::open_disk(ModelMachine& machine) {
  storage::pb::DiskRecord disk;
  const auto number = static_cast<std::uint32_t>(random_.below(std::min<std::size_t>(machine.disks.size() + 1, 3)));
  disk.set_identity(fmt::format("disk{}", number));
  disk.set_name(disk.identity());
  disk.set_size(random_disk_size(random_));
  const auto opened = rig_.store().open_disk(machine.id, disk);
  check_status(opened ? Status() : Status(std::unexpected(opened.error())), "open_disk");
  if (!opened) return;
  if (opened->disk() != number) fail("a disk got the number of another");
  machine.disks[number] = disk.size();
  run_.count(StoreOp::machine);
  trace(fmt::format("{} opens disk {} of {} bytes", machine.name, number, disk.size()));
}

void StoreChecker::begin(ModelMachine& machine, std::uint32_t kind) {
  if (machine.open || machine.disks.empty()) return;
  storage::pb::EpochBeginRecord begin;
  const MachineState* state = rig_.store().find(machine.id);
  if (state == nullptr) return fail("a machine is not known any more");
  begin.set_number(state->next_epoch.value() + random_.below(3));
  begin.set_kind(kind);
  auto content = std::make_shared<Content>(*machine.newest());
  for (const auto& [disk, size] : machine.disks) {
    storage::pb::DiskSizeRecord* stated = begin.add_disks();
    stated->set_disk(disk);
    stated->set_size(size);
    (*content)[disk].resize(size);
  }
  const auto begun = rig_.store().begin_epoch(machine.id, begin);
  check_status(begun, "begin_epoch");
  trace(fmt::format("{} begins {} with {} disks: {}", machine.name, begin.number(), begin.disks_size(),
                    begun ? "taken" : begun.error().message()));
  if (!begun) return;
  run_.count(StoreOp::begin);
  machine.open =
      OpenEpoch{.number = begin.number(), .kind = kind, .sent = {{.blocks = 0, .sum = {}, .content = content}}};
}

void StoreChecker::blocks(ModelMachine& machine) {
  if (!machine.open) return;
  OpenEpoch& open = *machine.open;
  auto content = std::make_shared<Content>(open.content());
  auto disk = content->begin();
  std::advance(disk, random_.below(content->size()));
  std::vector<Token>& granules = disk->second.granules;
  wire::BlockEncoder encoder(machine.id, random_.chance(0.7) ? 1 : 0);
  encoder.start(DiskId(disk->first), EpochNumber(open.number));
  std::vector<std::byte> plain;
  for (std::uint64_t runs = 1 + random_.below(8); runs > 0 && encoder.payload().size() < kPayloadMax - 70'000; --runs) {
    const std::uint64_t first = random_.below(granules.size());
    if (random_.chance(0.2)) {
      const std::uint64_t rest = granules.size() - first;
      const std::uint64_t count = 1 + random_.below(random_.chance(0.3) ? rest : std::min<std::uint64_t>(rest, 30));
      encoder.add_zeroes(first, count);
      std::fill_n(granules.begin() + static_cast<std::ptrdiff_t>(first), count, Token{0});
      continue;
    }
    const std::uint64_t region_end = (first / limits::kRegionGranules + 1) * limits::kRegionGranules;
    const std::uint64_t end =
        std::min<std::uint64_t>({first + 1 + random_.below(limits::kBlockGranulesMax), granules.size(), region_end});
    plain.resize((end - first) * limits::kGranuleSize);
    const bool compressible = random_.chance(0.5);
    for (std::uint64_t granule = first; granule < end; ++granule) {
      const Token token = random_.chance(0.05) ? 0 : (random_.next() & ~Token{1}) | (compressible ? 1 : 0);
      granules[granule] = token;
      granule_of(token, std::span(plain).subspan((granule - first) * limits::kGranuleSize, limits::kGranuleSize));
    }
    encoder.add(first, plain);
  }
  const wire::BlocksSummary summary = encoder.summary();
  const auto payload = encoder.take();
  const auto appended = rig_.store().append_blocks(machine.id, DiskId(disk->first), payload);
  check_status(appended, "append_blocks");
  trace(fmt::format("{} writes {} blocks of epoch {}, disk {}: {}", machine.name, summary.blocks, open.number,
                    disk->first, appended ? "taken" : appended.error().message()));
  if (!appended) return;
  sent(machine, summary, std::move(content), StoreOp::append);
}

void StoreChecker::sent(ModelMachine& machine, const wire::BlocksSummary& summary, std::shared_ptr<Content> content,
                        StoreOp what) {
  OpenEpoch& open = *machine.open;
  Hash128 sum = open.sent.back().sum;
  sum += summary.sum;
  open.sent.push_back({.blocks = open.sent.back().blocks + summary.blocks, .sum = sum, .content = std::move(content)});
  run_.count(machine.base ? StoreOp::clone_write : what, summary.blocks);
}

void StoreChecker::bulk(ModelMachine& machine) {
  OpenEpoch& open = *machine.open;
  const auto& disks = open.content();
  auto disk = disks.begin();
  std::advance(disk, random_.below(disks.size()));
  const std::uint64_t size = disk->second.granules.size();
  std::uint64_t at = random_.below(size) / limits::kBlockGranulesMax * limits::kBlockGranulesMax;
  const bool compressible = random_.chance(0.5);
  wire::BlockEncoder encoder(machine.id, 1);
  std::vector<std::byte> plain;
  for (std::uint64_t frames = 1 + random_.below(4); frames > 0 && at < size; --frames) {
    auto content = std::make_shared<Content>(open.content());
    std::vector<Token>& granules = (*content)[disk->first].granules;
    encoder.start(DiskId(disk->first), EpochNumber(open.number));
    while (at < size && encoder.payload().size() < kPayloadMax - 70'000) {
      const std::uint64_t end = std::min<std::uint64_t>(at + limits::kBlockGranulesMax, size);
      plain.resize((end - at) * limits::kGranuleSize);
      for (std::uint64_t granule = at; granule < end; ++granule) {
        const Token token = (random_.next() & ~Token{1}) | (compressible ? 1 : 0);
        granules[granule] = token;
        granule_of(token, std::span(plain).subspan((granule - at) * limits::kGranuleSize, limits::kGranuleSize));
      }
      encoder.add(at, plain);
      at = end;
    }
    const wire::BlocksSummary summary = encoder.summary();
    const auto appended = rig_.store().append_blocks(machine.id, DiskId(disk->first), encoder.take());
    check_status(appended, "append_blocks in bulk");
    if (!appended) return;
    sent(machine, summary, std::move(content), StoreOp::bulk);
  }
}

void StoreChecker::commit(ModelMachine& machine) {
  if (!machine.open) return;
  storage::pb::EpochCommitRecord record;
  const Hash128 digest{random_.next(), random_.next()};
  record.set_number(machine.open->number);
  record.set_time_us(rig_.clock().wall_us());
  record.set_arrival_us(rig_.clock().wall_us());
  record.set_rung_offset_us(rung_clock_.now_us(rig_.clock().monotonic()) - record.arrival_us());
  machine.committed_us[record.number()] = steady_us();
  record.set_consistency(random_.chance(0.2) ? 1 : 2);
  record.set_blocks(machine.open->sent.back().blocks);
  record.set_digest(hash_to_bytes(digest));
  // Before the call: the planted bug acknowledges inside it.
  machine.pending.push_back({.epoch = *machine.open, .digest = digest});
  const auto committed = rig_.store().commit_epoch(machine.id, record);
  check_status(committed, "commit_epoch");
  trace(fmt::format("{} commits {}: {}", machine.name, record.number(),
                    committed ? "taken" : committed.error().message()));
  if (committed) {
    run_.count(StoreOp::commit);
    machine.open.reset();
  } else {
    machine.pending.pop_back();
  }
}

void StoreChecker::abort(ModelMachine& machine) {
  if (!machine.open) return;
  storage::pb::EpochAbortRecord record;
  record.set_number(machine.open->number);
  const auto aborted = rig_.store().abort_epoch(machine.id, record);
  check_status(aborted, "abort_epoch");
  trace(fmt::format("{} aborts {}: {}", machine.name, record.number(), aborted.has_value()));
  if (aborted) {
    run_.count(StoreOp::abort);
    machine.open.reset();
  }
}

void StoreChecker::drop(ModelMachine& machine) {
  std::vector<EpochNumber> epochs;
  for (const auto& [number, epoch] : machine.acked) {
    if (number != machine.acked.rbegin()->first && random_.chance(0.4)) epochs.emplace_back(number);
  }
  for (const EpochNumber epoch : epochs) machine.dropping.insert(epoch.value());
  trace(fmt::format("{} drops {} points", machine.name, epochs.size()));
  run_.count(StoreOp::drop);
  rig_.store().drop_points(machine.id, epochs);
}

// What was asked to be dropped may be gone, and then it stays gone.
void StoreChecker::forget_dropped(ModelMachine& machine, const std::vector<storage::pb::EpochEntry>& listed) {
  std::set<std::uint64_t> numbers;
  for (const auto& entry : listed) numbers.insert(entry.number());
  for (auto epoch = machine.acked.begin(); epoch != machine.acked.end();) {
    if (numbers.contains(epoch->first) || !machine.dropping.contains(epoch->first)) {
      ++epoch;
      continue;
    }
    if (is_cloned(machine, epoch->first) && !lied_)
      return fail(fmt::format("epoch {} of {} is gone, and a clone stands on it", epoch->first, machine.name));
    machine.dropping.erase(epoch->first);
    machine.dropped.insert(*epoch);
    epoch = machine.acked.erase(epoch);
    ++run_.points_dropped;
  }
  for (auto epoch = machine.dropped.begin(); epoch != machine.dropped.end();) {
    // Only a disk that lied about the record of the drop can bring it back; and then as it was.
    if (!numbers.contains(epoch->first) || !lied_) {
      ++epoch;
      continue;
    }
    machine.acked.insert(*epoch);
    machine.dropping.insert(epoch->first);
    epoch = machine.dropped.erase(epoch);
  }
}

void StoreChecker::rename(ModelMachine& machine) {
  const MachineState* state = rig_.store().find(machine.id);
  if (state == nullptr) return fail("a machine is not known any more");
  storage::pb::MachineRecord record = state->record;
  record.set_name(fmt::format("{}r{}", machine.name.substr(0, machine.name.find('r')), random_.below(100)));
  check_status(rig_.store().put_machine(record, {}), "rename");
  run_.count(StoreOp::machine);
}

void StoreChecker::remove(ModelMachine& machine) {
  const MachineState* state = rig_.store().find(machine.id);
  if (state == nullptr) return fail("a machine is not known any more");
  storage::pb::MachineRecord record = state->record;
  record.set_removed(true);
  const auto put = rig_.store().put_machine(record, [this, id = machine.id](const Status& status) {
    for (auto& [number, known] : machines_) {
      if (status && known.id == id) known.removed_acked = true;
    }
  });
  check_status(put, "remove");
  if (!put) return;
  if (is_cloned(machine, std::nullopt)) return fail(machine.name + " was removed, and a clone stands on it");
  machine.removing = true;
  if (machine.base) ++run_.clones_dropped;
  run_.count(machine.base ? StoreOp::clone_drop : StoreOp::machine);
}

void StoreChecker::pump(bool all) {
  run_.count(StoreOp::turn);
  rig_.pump(all && !rig_.disk().powered_off());
}

void StoreChecker::lose_index() {
  run_.count(StoreOp::index_lost);
  rig_.lose_index(random_.chance(0.7));
}

void StoreChecker::idle() {
  rig_.store().on_idle();
  rig_.pump(false);
}

void StoreChecker::take_acks() {
  for (const StoreRig::Ack& ack : rig_.take_acks()) {
    ModelMachine* machine = nullptr;
    for (auto& [number, known] : machines_) {
      if (known.id == ack.machine) machine = &known;
    }
    if (machine == nullptr) {
      fail("an epoch of an unknown machine is acknowledged");
      return;
    }
    if (machine->removing) continue;
    if (machine->pending.empty() || machine->pending.front().epoch.number != ack.epoch.value() ||
        machine->pending.front().digest != ack.digest) {
      fail(fmt::format("epoch {} of {} is acknowledged out of turn", ack.epoch.value(), machine->name));
      return;
    }
    const MachineState* state = rig_.store().find(machine->id);
    trace(fmt::format("{} acked {} at LSN {}", machine->name, ack.epoch.value(), state->durable_lsn.value()));
    machine->acked[ack.epoch.value()] = {
        .content = machine->pending.front().epoch.sent.back().content, .digest = ack.digest, .lsn = state->durable_lsn};
    machine->pending.pop_front();
    ++run_.epochs_acked;
  }
}

void StoreChecker::settle() {
  if (failed() || !rig_.running()) return;
  take_acks();
  if (rig_.disk().powered_off()) {
    end(End::power_cut);
    start();
  } else if (rig_.stopped()) {
    // Nothing can be appended any more: restart, as an operator would after mending the disk.
    rig_.disk().set_faults({});
    end(random_.chance(0.5) ? End::kill : End::power_cut);
    start();
  }
}

void StoreChecker::end(End how) {
  if (failed()) return;
  rig_.disk().set_faults({});
  trace(fmt::format("end, by {}", how == End::power_cut ? "power cut" : how == End::kill ? "kill" : "close"));
  run_.count(how == End::close ? StoreOp::close : StoreOp::crash);
  switch (how) {
    case End::power_cut:
      ++run_.crashes;
      take_acks();
      rig_.cut_power();
      break;
    case End::kill:
      ++run_.crashes;
      take_acks();
      rig_.kill();
      break;
    case End::close: {
      const auto closed = rig_.close();
      // A log that failed just before may fail for good on its second try.
      const bool excused = !closed && (closed.error().code == Code::no_space || closed.error().code == Code::io);
      if (!closed && !rig_.disk().powered_off() && !excused && !lied_) {
        fail("close: " + closed.error().message());
      }
      // Closing acknowledges as well.
      for (const StoreRig::Ack& ack : rig_.take_acks()) {
        for (auto& [number, machine] : machines_) {
          if (machine.id != ack.machine || machine.removing || machine.pending.empty()) continue;
          machine.acked[ack.epoch.value()] = {
              .content = machine.pending.front().epoch.sent.back().content, .digest = ack.digest, .lsn = Lsn()};
          machine.pending.pop_front();
          ++run_.epochs_acked;
        }
      }
      break;
    }
  }
}

void StoreChecker::start() {
  if (rig_.encrypted()) {
    // A disk that lied may show anything for a block.
    const auto wrong = lied_ ? std::nullopt : nonces_.look(rig_.files(), StoreRig::kDirectory);
    if (wrong) fail(*wrong);
    const bool rotate = random_.chance(0.3) && !rig_.disk().powered_off();
    const Status rotated = rotate ? rig_.rotate_master_key() : Status();
    if (!rotated && lied_ && rotated.error().code == Code::corrupt) {
      ++run_.damage_found;  // the superblock was written by a disk that lied
      return;
    }
    if (!rotated) fail("rotate: " + rotated.error().message());
  }
  for (int attempt = 0; !failed(); ++attempt) {
    const auto opened = rig_.open();
    if (opened) break;
    if (rig_.disk().powered_off()) {  // the cut that was set came during recovery
      ++run_.crashes;
      rig_.cut_power();
    } else if (opened.error().code == Code::no_space && attempt < 3) {
      rig_.disk().set_capacity(1_GiB);
    } else if (lied_ && (opened.error().code == Code::corrupt || opened.error().code == Code::not_found)) {
      // Damage; or keys that were wrapped anew and lost, after which the old master key was thrown away.
      ++run_.damage_found;
      return;
    } else {
      return fail("open: " + opened.error().message());
    }
  }
  if (failed()) return;
  if (!rig_.opened().index_rebuilt.empty()) ++run_.rebuilds;
  trace(fmt::format("started: durable LSN {}, log up to {}, {} commits replayed, {} torn bytes, index rebuilt: {}",
                    rig_.opened().recovery.durable_lsn.value(), rig_.opened().recovery.tail.last_lsn.value(),
                    rig_.opened().recovery.commits, rig_.opened().recovery.torn_bytes, rig_.opened().index_rebuilt));
  std::vector<std::uint32_t> dropped;
  for (auto& [number, machine] : machines_) {
    if (failed()) return;
    bool drop = false;
    compare_after_start(machine, drop);
    if (drop) dropped.push_back(number);
  }
  for (const std::uint32_t number : dropped) machines_.erase(number);
  compare_space();
  settle();
}

void StoreChecker::compare_after_start(ModelMachine& machine, bool& drop) {
  const MachineState* state = rig_.store().find(machine.id);
  const Lsn proven = rig_.opened().recovery.durable_lsn;
  if (machine.removing) {
    if (state == nullptr || machine.removed_acked) {
      if (state != nullptr && !lied_) fail(machine.name + " was removed and is back");
      drop = true;
      return;
    }
    // The record of its removal was not durable. What it had then is not followed any further.
    machine.removing = false;
  }
  if (state == nullptr) {
    drop = true;
    if (machine.record_acked && !lied_) fail(machine.name + " was acknowledged and is lost");
    return;
  }
  machine.record_acked = true;
  machine.disks.clear();
  for (const auto& disk : state->record.disks()) {
    if (disk.size() != 0) machine.disks[disk.disk()] = disk.size();  // 0: of a clone, and not at its point
  }

  const auto listed = rig_.store().epochs(machine.id, 0, true, kNoWait);
  if (!listed) return fail("epochs: " + listed.error().message());
  forget_dropped(machine, *listed);
  std::map<std::uint64_t, Hash128> stored;
  for (const auto& entry : *listed) {
    if (!machine.base || entry.number() != 0) stored[entry.number()] = hash_from_bytes(entry.digest());
  }
  for (auto acked = machine.acked.begin(); acked != machine.acked.end();) {
    const auto found = stored.find(acked->first);
    if (found != stored.end() && found->second == acked->second.digest) {
      stored.erase(found);
      ++acked;
    } else if (lied_ && acked->second.lsn > proven) {
      acked = machine.acked.erase(acked);  // beyond what the disk ever claimed: it lied about the very last writes
    } else {
      return fail(fmt::format("epoch {} of {} was acknowledged and is lost", acked->first, machine.name));
    }
  }
  // What was not acknowledged is there in order, or not at all.
  for (const auto& [number, digest] : stored) {
    if (machine.pending.empty() || machine.pending.front().epoch.number != number ||
        machine.pending.front().digest != digest) {
      return fail(fmt::format("{} has epoch {}, which was never committed, or not next", machine.name, number));
    }
    machine.acked[number] = {
        .content = machine.pending.front().epoch.sent.back().content, .digest = digest, .lsn = state->durable_lsn};
    machine.pending.pop_front();
  }
  const std::uint64_t newest = machine.acked.empty() ? 0 : machine.acked.rbegin()->first;
  if (state->durable_epoch.value() != newest ||
      (newest != 0 && state->durable_digest != machine.acked.rbegin()->second.digest)) {
    return fail(fmt::format("{} says that its durable epoch is {}, and it is {}", machine.name,
                            state->durable_epoch.value(), newest));
  }
  if (state->next_epoch.value() <= newest) return fail(machine.name + " would take an epoch's number twice");
  continue_open(machine, *state);
}

// The accounts are those of what the index holds, counted anew, and at least what the kept epochs show.
void StoreChecker::compare_space() {
  if (failed()) return;
  if (const auto counted = rig_.store().check_counts(); !counted) return fail(counted.error().message());
  std::uint64_t all = 0;
  for (const auto& space : rig_.store().machine_space()) {
    all += space.stored_bytes;
    for (const auto& [number, machine] : machines_) {
      std::uint64_t logical = 0;
      for (const auto& [disk, size] : machine.disks) logical += size;
      if (machine.id == space.machine && space.logical_bytes != logical)
        return fail(
            fmt::format("{} has disks of {} bytes, and {} are counted", machine.name, logical, space.logical_bytes));
    }
  }
  if (all != rig_.store().stats().stored_bytes) fail("the stored bytes of the machines do not add up");
}

void StoreChecker::continue_open(ModelMachine& machine, const MachineState& state) {
  std::optional<OpenEpoch> before;
  if (state.open_epoch) {
    const auto number = state.open_epoch->number();
    for (const PendingEpoch& pending : machine.pending) {
      if (pending.epoch.number == number) before = pending.epoch;
    }
    if (machine.open && machine.open->number == number) before = machine.open;
  }
  machine.pending.clear();
  machine.open.reset();
  if (!state.open_epoch) return;
  const storage::pb::OpenEpochEntry open = *state.open_epoch;
  if (before) {
    const Hash128 sum = hash_from_bytes(open.sum());
    std::erase_if(before->sent, [&](const Sent& sent) { return sent.blocks > open.blocks(); });
    if (before->sent.empty() || before->sent.back().blocks != open.blocks() || before->sent.back().sum != sum) {
      return fail(fmt::format("the open epoch {} of {} has {} blocks, and never had", open.number(), machine.name,
                              open.blocks()));
    }
  }
  // One that the model does not know was aborted, and the abort was not durable.
  if (before && open.kind() == storage::kInitialEpoch && random_.chance(0.7)) {
    storage::pb::EpochBeginRecord again;
    again.set_number(open.number());
    again.set_kind(open.kind());
    *again.mutable_disks() = open.disks();
    const auto resumed = rig_.store().begin_epoch(machine.id, again);
    if (!resumed) return fail("resume: " + resumed.error().message());
    machine.open = std::move(before);
    return;
  }
  storage::pb::EpochAbortRecord record;
  record.set_number(open.number());
  const auto aborted = rig_.store().abort_epoch(machine.id, record);
  check_status(aborted, "abort after a restart");
}

void StoreChecker::verify(std::size_t epochs_max, bool damaged) {
  if (!rig_.running()) return;
  for (auto& [machine_number, machine] : machines_) {
    if (machine.removing || !machine.record_acked) continue;
    const auto listed = rig_.store().epochs(machine.id, 0, true, kNoWait);
    if (!listed) return fail("epochs: " + listed.error().message());
    forget_dropped(machine, *listed);
    if (listed->size() != machine.acked.size() + (machine.base ? 1 : 0)) {
      return fail(fmt::format("{} lists {} epochs, and {} were acknowledged", machine.name, listed->size(),
                              machine.acked.size()));
    }
    if (machine.base) verify_base(machine, damaged);
    std::vector<std::uint64_t> numbers;
    for (const auto& [number, epoch] : machine.acked) numbers.push_back(number);
    while (numbers.size() > epochs_max) {  // the newest stays
      numbers.erase(numbers.begin() + static_cast<std::ptrdiff_t>(random_.below(numbers.size() - 1)));
    }
    for (const std::uint64_t number : numbers) {
      for (const auto& [disk, content] : *machine.acked[number].content) {
        // A disk stays in the model's content even when it is not in an epoch: every epoch has all of them here.
        std::optional<Error> read_error;
        const auto difference = compare_disk(rig_.store(), machine.id, disk, EpochNumber(number), content, random_,
                                             read_error, rig_.cache());
        if (difference) return fail(fmt::format("{}, {}", machine.name, *difference));
        if (!read_error) continue;
        // The record of the drop is on its way: listed still, read no more.
        if (read_error->code == Code::not_found && machine.dropping.contains(number)) continue;
        if (unreadable_ && read_error->code == Code::io) continue;
        if (!damaged || read_error->code != Code::corrupt) {
          return fail(fmt::format("{}, epoch {}: {}", machine.name, number, read_error->message()));
        }
        ++run_.damage_found;
      }
      ++run_.epochs_checked;
      run_.count(StoreOp::verify);
    }
  }
}

// A clone as it began.
void StoreChecker::verify_base(ModelMachine& clone, bool damaged) {
  for (const auto& [disk, content] : *clone.base->content) {
    std::optional<Error> read_error;
    const auto difference =
        compare_disk(rig_.store(), clone.id, disk, EpochNumber(), content, random_, read_error, rig_.cache());
    if (difference) return fail(fmt::format("{}, as it began: {}", clone.name, *difference));
    if (!read_error || (unreadable_ && read_error->code == Code::io)) continue;
    if (!damaged || read_error->code != Code::corrupt)
      return fail(fmt::format("{}, as it began: {}", clone.name, read_error->message()));
    ++run_.damage_found;
  }
  ++run_.bases_checked;
}

}  // namespace tidemark::sim
