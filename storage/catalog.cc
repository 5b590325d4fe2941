#include "storage/catalog.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "base/check.h"
#include "base/marks.h"
#include "storage/epoch_progress.h"
#include "storage/volume_keys.h"

namespace tidemark::storage {

namespace {

bool same_disks(const pb::EpochBeginRecord& open, const pb::EpochBeginRecord& begin) {
  return std::equal(open.disks().begin(), open.disks().end(), begin.disks().begin(), begin.disks().end(),
                    [](const auto& a, const auto& b) { return a.disk() == b.disk() && a.size() == b.size(); });
}

}  // namespace

Hash128 digest_of(const pb::EpochEntry& entry, const VolumeKey* key, HashSealer& hashes) {
  if (entry.sealed_digest().empty()) return hash_from_bytes(entry.digest());
  return key == nullptr ? Hash128{} : hashes.open(*key, hash_from_bytes(entry.sealed_digest()));
}

pb::OpenEpochEntry Catalog::opened(const Machine& machine, pb::OpenEpochEntry entry) const {
  if (entry.sealed_sum().empty()) return entry;
  const auto key = keys_ == nullptr ? nullptr : keys_->key_of(machine.state.record);
  if (key != nullptr) entry.set_sum(hash_to_bytes(hashes_.open(*key, hash_from_bytes(entry.sealed_sum()))));
  entry.clear_sealed_sum();
  return entry;
}

void Catalog::show_open(Machine& machine) const {
  const auto& begun = machine.begun;
  const auto& durable_open = machine.durable_open;
  machine.state.begun_epoch = begun ? std::optional(EpochNumber(begun->number())) : std::nullopt;
  if (begun && durable_open && durable_open->number() == begun->number()) {
    machine.state.open_epoch = opened(machine, *durable_open);
  } else {
    machine.state.open_epoch.reset();
  }
}

Result<Catalog> Catalog::load(const Index& index, std::shared_ptr<VolumeKeys> keys) {
  Catalog catalog;
  catalog.keys_ = std::move(keys);
  for (pb::MachineRecord& record : index.machines()) {
    const MachineId id = TIDEMARK_TRY(machine_from_bytes(record.machine()));
    Machine& machine = catalog.machines_[id];
    for (const pb::DiskRecord& disk : record.disks()) {
      catalog.next_volume_ = std::max(catalog.next_volume_, disk.volume() + 1);
    }
    if (record.removed()) {
      machine.state.record = std::move(record);
      continue;
    }
    catalog.names_[record.name()] = id;
    if (catalog.keys_ != nullptr) TIDEMARK_TRY(catalog.keys_->load(record));
    MachineState& state = machine.state;
    state.record = std::move(record);
    if (const auto newest = index.newest_epoch(id)) {
      machine.committed = newest->disks();
      state.durable_epoch = EpochNumber(newest->number());
      const auto key = catalog.keys_ == nullptr ? nullptr : catalog.keys_->key_of(state.record);
      state.durable_digest = digest_of(*newest, key.get(), catalog.hashes_);
      state.durable_lsn = Lsn(newest->commit_lsn());
      state.durable_time_us = newest->time_us();
      const auto points = TIDEMARK_TRY(index.epochs(id, 1, false));
      if (!points.empty()) {
        state.newest_point = EpochNumber(points.front().number());
        state.newest_point_us = points.front().time_us();
      }
    }
    state.next_epoch = index.highest_epoch(id).next();
    if ((machine.durable_open = index.open_epoch(id))) {
      machine.durable_open->clear_home();  // the index's own business
      machine.begun.emplace();
      machine.begun_lsn = Lsn(machine.durable_open->begin_lsn());
      machine.begun->set_number(machine.durable_open->number());
      machine.begun->set_kind(machine.durable_open->kind());
      *machine.begun->mutable_disks() = machine.durable_open->disks();
      machine.appended_sum = hash_from_bytes(catalog.opened(machine, *machine.durable_open).sum());
    }
    catalog.show_open(machine);
  }
  for (const auto& [id, machine] : catalog.machines_) {
    const pb::MachineRecord& record = machine.state.record;
    if (record.has_clone() && !record.removed()) catalog.count_clone(record, 1);
  }
  return catalog;
}

void Catalog::count_clone(const pb::MachineRecord& clone, int by) {
  const auto parent = machine_from_bytes(clone.clone().parent());
  const auto found = parent ? machines_.find(*parent) : machines_.end();
  if (found == machines_.end()) return;
  const EpochNumber epoch(clone.clone().epoch());
  auto& cloned = found->second.state.cloned;
  if ((cloned[epoch] += static_cast<std::uint32_t>(by)) == 0) cloned.erase(epoch);
}

const Catalog::Machine* Catalog::known(const MachineId& machine) const {
  const auto found = machines_.find(machine);
  return found == machines_.end() || found->second.state.record.removed() ? nullptr : &found->second;
}

const pb::MachineRecord* Catalog::record(const MachineId& machine) const {
  const auto found = machines_.find(machine);
  return found == machines_.end() ? nullptr : &found->second.state.record;
}

const MachineState* Catalog::find(const MachineId& machine) const {
  const Machine* found = known(machine);
  return found == nullptr ? nullptr : &found->state;
}

const MachineState* Catalog::find_by_name(const std::string& name) const {
  const auto found = names_.find(name);
  return found == names_.end() ? nullptr : find(found->second);
}

void Catalog::for_each_machine(const std::function<void(const MachineState&)>& visit) const {
  for (const auto& [id, machine] : machines_) {
    const pb::MachineRecord& record = machine.state.record;
    if (!record.removed() && !record.has_clone()) visit(machine.state);
  }
}

void Catalog::for_each_clone(const std::function<void(const MachineState&)>& visit) const {
  for (const auto& [id, machine] : machines_) {
    const pb::MachineRecord& record = machine.state.record;
    if (!record.removed() && record.has_clone()) visit(machine.state);
  }
}

void Catalog::set_unchanged(const MachineId& machine, WallMicros as_of_us) {
  const auto found = machines_.find(machine);
  if (found != machines_.end()) found->second.state.unchanged_as_of_us = as_of_us;
}

std::string Catalog::describe(const MachineId& machine) const {
  const auto found = machines_.find(machine);
  return "machine " + (found == machines_.end() ? machine.to_string() : found->second.state.record.name());
}

namespace {

// Of a machine that is removed: its identity, which is never used again, and its volumes, whose numbers are not either.
pb::MachineRecord what_stays_of(const pb::MachineRecord& machine) {
  pb::MachineRecord stays;
  stays.set_machine(machine.machine());
  stays.set_name(machine.name());
  stays.set_removed(true);
  for (const pb::DiskRecord& disk : machine.disks()) {
    auto& kept = *stays.add_disks();
    kept.set_disk(disk.disk());
    kept.set_volume(disk.volume());
  }
  if (machine.has_clone()) *stays.mutable_clone() = machine.clone();
  return stays;
}

}  // namespace

Result<pb::MachineRecord> Catalog::check_machine(const pb::MachineRecord& record) const {
  const auto id = machine_from_bytes(record.machine());
  if (!id || id->is_nil())
    return fail(Code::invalid_argument, "machine " + record.name(), "its identity is not 16 bytes");
  if (record.name().empty() || record.name().size() > limits::kNameLengthMax) {
    return fail(Code::invalid_argument, "machine " + id->to_string(),
                "its name has " + std::to_string(record.name().size()) + " bytes, not 1 to " +
                    std::to_string(limits::kNameLengthMax));
  }
  const auto known_before = machines_.find(*id);
  if (known_before != machines_.end() && known_before->second.state.record.removed()) {
    return fail(Code::not_found, describe(*id), "it was removed, which is for good", "enrol it anew");
  }
  if (!record.removed()) {
    const auto named = names_.find(record.name());
    if (named != names_.end() && named->second != *id) {
      return fail(Code::already_exists, "machine " + record.name(), "another machine has this name",
                  "choose another name");
    }
  }
  pb::MachineRecord whole = record;
  whole.clear_disks();
  whole.clear_clone();
  if (known_before != machines_.end()) {
    const MachineState& state = known_before->second.state;
    if (record.removed() && !state.cloned.empty()) {
      return fail(Code::busy, describe(*id),
                  "clones stand on points of it: of epoch " + std::to_string(state.cloned.begin()->first.value()) +
                      (state.cloned.size() > 1 ? " and others" : ""),
                  "drop the clones first");
    }
    *whole.mutable_disks() = state.record.disks();
    if (state.record.has_clone()) *whole.mutable_clone() = state.record.clone();
  }
  return record.removed() ? what_stays_of(whole) : whole;
}

Result<std::vector<pb::MachineRecord>> Catalog::check_clones(const CloneBase& base, std::span<const CloneName> names,
                                                             const std::string& by, WallMicros now_us) const {
  if (known(base.parent) == nullptr) return fail(Code::not_found, describe(base.parent), "no such machine");
  if (names.empty() || names.size() > kClonesAtOnceMax) {
    return fail(Code::invalid_argument, describe(base.parent),
                std::to_string(names.size()) + " clones are asked for, and 1 to " + std::to_string(kClonesAtOnceMax) +
                    " can be made at once");
  }
  std::vector<pb::MachineRecord> records;
  std::unordered_set<std::string_view> taken;
  std::uint32_t volume = next_volume_;
  for (const CloneName& clone : names) {
    pb::MachineRecord wanted;
    wanted.set_machine(machine_to_bytes(clone.id));
    wanted.set_name(clone.name);
    pb::MachineRecord& record = records.emplace_back(TIDEMARK_TRY(check_machine(wanted)));
    if (machines_.contains(clone.id) || !taken.insert(clone.name).second) {
      return fail(Code::already_exists, clone.name, "there is one of this name or identity already");
    }
    record.set_enrolled_us(now_us);
    record.mutable_clone()->set_parent(machine_to_bytes(base.parent));
    record.mutable_clone()->set_epoch(base.epoch.value());
    record.mutable_clone()->set_created_us(now_us);
    record.mutable_clone()->set_by(by);
    record.mutable_clone()->set_depth(base.depth);
    for (const pb::DiskRecord& disk : base.disks) {
      pb::DiskRecord& own = *record.add_disks();
      own.set_disk(disk.disk());
      own.set_volume(volume++);
      own.set_size(disk.size());
      own.set_identity(disk.identity());
      own.set_name(disk.name());
    }
  }
  return records;
}

Result<Catalog::DiskChange> Catalog::check_disk(const MachineId& machine, const pb::DiskRecord& disk) const {
  const Machine* found = known(machine);
  if (found == nullptr) return fail(Code::not_found, describe(machine), "no such machine");
  const std::string object = describe(machine) + ", disk " + disk.name();
  if (found->state.record.has_clone())
    return fail(Code::invalid_argument, object, "it is a clone, and has the disks of its point");
  if (disk.identity().empty() || disk.identity().size() > limits::kTextLengthMax ||
      disk.name().size() > limits::kTextLengthMax) {
    return fail(Code::invalid_argument, object, "its identity or name is empty or too long");
  }
  if (disk.size() == 0 || disk.size() > limits::kDiskSizeMax) {
    return fail(Code::invalid_argument, object,
                "its size of " + std::to_string(disk.size()) + " bytes is not between 1 and " +
                    std::to_string(limits::kDiskSizeMax));
  }
  pb::MachineRecord record = found->state.record;
  for (pb::DiskRecord& have : *record.mutable_disks()) {
    if (have.identity() != disk.identity()) continue;
    DiskChange change;
    const bool same = have.size() == disk.size() && have.name() == disk.name();
    have.set_size(disk.size());
    have.set_name(disk.name());
    change.disk = have;
    if (!same) change.record = std::move(record);
    return change;
  }
  if (static_cast<std::uint32_t>(record.disks_size()) >= limits::kDisksPerMachineMax) {
    return fail(
        Code::invalid_argument, object,
        "the machine has " + std::to_string(limits::kDisksPerMachineMax) + " disks already, which is the limit");
  }
  pb::DiskRecord* fresh = record.add_disks();
  *fresh = disk;
  fresh->set_disk(static_cast<std::uint32_t>(record.disks_size() - 1));
  fresh->set_volume(next_volume_);
  DiskChange change;
  change.disk = *fresh;
  change.record = std::move(record);
  return change;
}

Result<bool> Catalog::check_begin(const MachineId& machine, const pb::EpochBeginRecord& begin) const {
  const Machine* found = known(machine);
  if (found == nullptr) return fail(Code::not_found, describe(machine), "no such machine");
  for (const pb::DiskSizeRecord& disk : begin.disks()) {
    if (disk.disk() >= static_cast<std::uint32_t>(found->state.record.disks_size())) {
      return fail(Code::protocol, describe(machine),
                  "an epoch names disk " + std::to_string(disk.disk()) + ", which was never opened");
    }
    if (disk.size() == 0 || disk.size() > limits::kDiskSizeMax) {
      return fail(Code::protocol, describe(machine),
                  "an epoch gives disk " + std::to_string(disk.disk()) + " an impossible size");
    }
    const pb::MachineRecord& record = found->state.record;
    if (record.has_clone() && record.disks(static_cast<int>(disk.disk())).size() != disk.size()) {
      return fail(Code::protocol, describe(machine),
                  "an epoch gives disk " + std::to_string(disk.disk()) + " another size, and a clone's stays as it is");
    }
  }
  if (found->begun) {
    if (found->begun->number() == begin.number() && found->begun->kind() == kInitialEpoch &&
        begin.kind() == kInitialEpoch) {
      leave_mark(Mark::initial_resumed);
      return same_disks(*found->begun, begin);
    }
    return fail(Code::protocol, describe(machine),
                "epoch " + std::to_string(begin.number()) + " begins while epoch " +
                    std::to_string(found->begun->number()) + " is open",
                "abort the open one first");
  }
  if (begin.number() < found->state.next_epoch.value()) {
    return fail(Code::protocol, describe(machine),
                "epoch " + std::to_string(begin.number()) + " was begun before; the next one is " +
                    std::to_string(found->state.next_epoch.value()));
  }
  return false;
}

Status Catalog::check_blocks(const MachineId& machine, DiskId disk) const {
  const Machine* found = known(machine);
  if (found == nullptr) return fail(Code::not_found, describe(machine), "no such machine");
  if (!found->begun) return fail(Code::protocol, describe(machine), "blocks came while no epoch was open");
  for (const pb::DiskSizeRecord& in_epoch : found->begun->disks()) {
    if (in_epoch.disk() == disk.value()) return {};
  }
  return fail(Code::protocol, describe(machine),
              "blocks came for disk " + std::to_string(disk.value()) + ", which the open epoch does not have");
}

Status Catalog::check_commit(const MachineId& machine, EpochNumber number) const {
  const Machine* found = known(machine);
  if (found == nullptr) return fail(Code::not_found, describe(machine), "no such machine");
  if (!found->begun || found->begun->number() != number.value()) {
    return fail(Code::protocol, describe(machine),
                "epoch " + std::to_string(number.value()) + " is to be committed, and is not open");
  }
  return {};
}

pb::EpochBeginRecord Catalog::complete(const MachineId& machine, const pb::EpochBeginRecord& begin) const {
  pb::EpochBeginRecord whole = begin;
  whole.clear_former();
  const Machine* found = known(machine);
  if (found == nullptr || !found->committed || found->state.record.has_clone()) return whole;
  for (const pb::DiskSizeRecord& disk : begin.disks()) {
    std::uint64_t former = limits::kDiskSizeMax;
    for (const pb::DiskSizeRecord& before : *found->committed) {
      if (before.disk() == disk.disk()) former = before.size();
    }
    if (former <= disk.size()) continue;
    pb::DiskSizeRecord* const larger = whole.add_former();
    larger->set_disk(disk.disk());
    larger->set_size(former);
  }
  return whole;
}

pb::EpochCommitRecord Catalog::complete(const MachineId& machine, const pb::EpochCommitRecord& commit) const {
  pb::EpochCommitRecord whole = commit;
  if (const Machine* found = known(machine); found != nullptr && found->begun) {
    whole.set_kind(found->begun->kind());
    *whole.mutable_disks() = found->begun->disks();
    const auto key = keys_ == nullptr ? nullptr : keys_->key_of(found->state.record);
    if (key != nullptr && !whole.digest().empty()) {
      whole.set_sealed_digest(hash_to_bytes(hashes_.seal(*key, hash_from_bytes(whole.digest()))));
      whole.clear_digest();
    }
  }
  return whole;
}

pb::EpochAbortRecord Catalog::complete(const MachineId& machine, const pb::EpochAbortRecord& abort) const {
  pb::EpochAbortRecord whole = abort;
  if (const Machine* found = known(machine); found != nullptr) whole.set_first_lsn(found->begun_lsn.value());
  return whole;
}

Result<bool> Catalog::check_abort(const MachineId& machine, EpochNumber number) const {
  const Machine* found = known(machine);
  if (found == nullptr) return fail(Code::not_found, describe(machine), "no such machine");
  if (!found->begun) return true;
  if (found->begun->number() != number.value()) {
    return fail(Code::protocol, describe(machine),
                "epoch " + std::to_string(number.value()) + " is to be aborted, and epoch " +
                    std::to_string(found->begun->number()) + " is the open one");
  }
  return false;
}

Hash128 Catalog::sealed_sum(const MachineId& machine, const Hash128& more) const {
  const Machine& found = machines_.at(machine);
  const auto key = keys_->key_of(found.state.record);
  TIDEMARK_CHECK(key != nullptr);
  Hash128 sum = found.appended_sum;
  sum += more;
  return hashes_.seal(*key, sum);
}

void Catalog::appended_machine(const MachineId& machine, const pb::MachineRecord& record) {
  Machine& known_machine = machines_[machine];
  if (const pb::MachineRecord& before = known_machine.state.record; !before.name().empty()) {
    const auto named = names_.find(before.name());
    if (named != names_.end() && named->second == machine) names_.erase(named);
    if (before.has_clone() && !before.removed()) count_clone(before, -1);
  }
  if (record.has_clone() && !record.removed()) count_clone(record, 1);
  for (const pb::DiskRecord& disk : record.disks()) next_volume_ = std::max(next_volume_, disk.volume() + 1);
  known_machine.state.record = record;
  if (record.removed()) {
    known_machine.begun.reset();
    known_machine.durable_open.reset();
    show_open(known_machine);
  } else {
    names_[record.name()] = machine;
  }
}

void Catalog::appended_begin(const MachineId& machine, const pb::EpochBeginRecord& begin, Lsn lsn) {
  Machine& found = machines_.at(machine);
  if (!found.begun) {  // one that is resumed began before
    found.begun_lsn = lsn;
    found.appended_sum = {};
  }
  found.begun = begin;
  found.state.next_epoch = std::max(found.state.next_epoch, EpochNumber(begin.number()).next());
  show_open(found);
}

void Catalog::appended_blocks(const MachineId& machine, const Hash128& sum) {
  machines_.at(machine).appended_sum += sum;
}

void Catalog::appended_commit(const MachineId& machine) {
  Machine& found = machines_.at(machine);
  if (found.begun) found.committed = found.begun->disks();
  appended_abort(machine);
}

void Catalog::appended_abort(const MachineId& machine) {
  Machine& found = machines_.at(machine);
  found.begun.reset();
  show_open(found);
}

Status Catalog::durable(const CommitInfo& commit, Visitor& visitor) {
  for (const RecordInfo& record : commit.records) {
    const auto known_machine = machines_.find(record.machine);
    if (known_machine == machines_.end()) continue;
    Machine& machine = known_machine->second;
    if (record.type == RecordType::blocks) {
      const std::span blocks = std::span(commit.blocks).subspan(record.first_block, record.block_count);
      std::uint64_t payload = 0;
      for (const BlockPlace& block : blocks) payload += limits::kBlockHeaderSize + block.sent_size();
      if (machine.durable_open) add_blocks(*machine.durable_open, record, blocks);
      if (machine.state.open_epoch) show_open(machine);
      visitor.blocks_durable(record.machine, payload);
      continue;
    }
    if (machine.state.record.removed()) continue;
    switch (record.type) {
      case RecordType::epoch_begin: {
        const auto begin = TIDEMARK_TRY(parse_record<pb::EpochBeginRecord>(record));
        const bool resumed = machine.durable_open && machine.durable_open->number() == begin.number();
        machine.durable_open = begin_epoch_entry(begin, record.lsn, resumed ? &*machine.durable_open : nullptr);
        break;
      }
      case RecordType::epoch_commit: {
        const auto content = TIDEMARK_TRY(parse_record<pb::EpochCommitRecord>(record));
        MachineState& state = machine.state;
        state.durable_epoch = EpochNumber(content.number());
        pb::EpochEntry entry;
        entry.set_digest(content.digest());
        entry.set_sealed_digest(content.sealed_digest());
        const auto key = keys_ == nullptr ? nullptr : keys_->key_of(state.record);
        state.durable_digest = digest_of(entry, key.get(), hashes_);
        state.durable_lsn = record.lsn;
        state.durable_time_us = content.time_us();
        if (content.consistency() != kFuzzy) {
          state.newest_point = state.durable_epoch;
          state.newest_point_us = content.time_us();
        }
        machine.durable_open.reset();
        show_open(machine);
        visitor.epoch_durable(record.machine, state.durable_epoch, state.durable_digest);
        continue;
      }
      case RecordType::epoch_abort: machine.durable_open.reset(); break;
      case RecordType::machine:
      case RecordType::history:
      case RecordType::blocks: break;
    }
    show_open(machine);
  }
  return {};
}

}  // namespace tidemark::storage
