// Encryption in a partition's life: who gets a key, how blocks reach the log sealed, and what happens when the master
// key was changed.
//
// The superblock lists the master keys that any volume's key may be wrapped with. One is listed before the first key is
// wrapped with it, and goes from the list after the last record with an older one was replaced, durably; so a start
// without a key that is needed is refused before anything is touched, and a crash anywhere in between leaves at worst
// a key on the list that is not needed any more, until the next start has looked.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "storage/epoch_progress.h"
#include "storage/partition_impl.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kRewrapsAtOnce = 64;

struct Measured {
  Hash128 sum;
  std::size_t sealed_size = kSealedSumSize;
};

Result<Measured> measure(std::span<const std::byte> payload) {
  Measured measured;
  wire::BlockReader reader(payload);
  wire::BlockReader::Block block;
  while (TIDEMARK_TRY(reader.next(block))) {
    measured.sum += block.header.hash();
    measured.sealed_size += sizeof block.header + block.stored.size();
    if (!block.stored.empty()) measured.sealed_size += wire::kSealedOverhead;
  }
  return measured;
}

}  // namespace

// After the log was replayed, before anything is appended.
Status Partition::Impl::open_keys(const Superblock& found) {
  catalog = TIDEMARK_TRY(Catalog::load(index(), keys));
  context->keys = keys;
  superblock = found;
  if (options.master_keys == nullptr || (!options.encrypt && found.master_keys.empty())) return {};
  const MasterKeyId current = options.master_keys->current().id;
  if (std::ranges::find(superblock.master_keys, current) == superblock.master_keys.end()) {
    superblock.master_keys.insert(superblock.master_keys.begin(), current);
    TIDEMARK_TRY(write_superblock(files, directory, superblock));
  }
  if (superblock.master_keys.size() < 2) return {};
  const auto note = [&](const MachineState& machine) {
    if (!keys->needs_rewrap(machine.record)) return;
    if (const auto machine_id = machine_from_bytes(machine.record.machine())) to_rewrap.push_back(*machine_id);
  };
  catalog.for_each_machine(note);
  catalog.for_each_clone(note);
  spdlog::info("event=master_key_changed path={} key={} machines_to_rewrap={}", directory, to_string(current),
               to_rewrap.size());
  if (to_rewrap.empty()) rewrapped = true;
  return {};
}

Result<Lsn> Partition::Impl::append_machine(const MachineId& machine, pb::MachineRecord& record) {
  if (!record.removed()) keys->equip(record);
  const Lsn lsn = TIDEMARK_TRY(append(RecordType::machine, machine, record));
  TIDEMARK_TRY(keys->load(record));
  catalog.appended_machine(machine, record);
  return lsn;
}

Result<Lsn> Partition::Impl::append_blocks(const MachineId& machine, DiskId disk, std::span<const std::byte> payload) {
  const pb::MachineRecord& record = *catalog.record(machine);
  VolumeId volume;
  for (const pb::DiskRecord& known : record.disks()) {
    if (known.disk() == disk.value()) volume = VolumeId(known.volume());
  }
  const auto key = keys->find(volume);
  const Measured measured = TIDEMARK_TRY(measure(payload));
  if (key == nullptr) {
    const Lsn lsn = TIDEMARK_TRY(append(RecordType::blocks, machine, disk, payload));
    catalog.appended_blocks(machine, measured.sum);
    return lsn;
  }
  if (stopped) return std::unexpected(*stopped);
  const auto write = [&](std::span<std::byte> to) {
    const Hash128 sum = catalog.sealed_sum(machine, measured.sum);
    std::memcpy(to.data(), &sum, sizeof sum);
    std::size_t at = sizeof sum;
    wire::BlockReader reader(payload);
    wire::BlockReader::Block block;
    while (reader.next(block).value_or(false)) {
      const std::size_t size = sizeof block.header + block.stored.size();
      if (block.stored.empty()) {
        std::memcpy(to.data() + at, &block.header, size);  // zeroes: there is nothing to seal
        at += size;
      } else {
        sealer.seal(machine, *key, block.header, block.stored, to.subspan(at, size + wire::kSealedOverhead));
        at += size + wire::kSealedOverhead;
      }
    }
    TIDEMARK_CHECK(at == to.size());
  };
  const auto lsn = log->append_sealed(machine, disk, measured.sealed_size, write);
  if (lsn) {
    last_lsn.store(lsn->value(), std::memory_order_relaxed);
    catalog.appended_blocks(machine, measured.sum);
  } else if (lsn.error().code == Code::busy) {
    wanted_room = std::max(wanted_room, payload.size());
  }
  return lsn;
}

// --- another master key ---

void Partition::Impl::rewrap_some() {
  if (to_rewrap.empty() || stopped) return;
  for (std::size_t i = 0; i < kRewrapsAtOnce && !to_rewrap.empty(); ++i) {
    const MachineId machine = to_rewrap.front();
    pb::MachineRecord record = *catalog.record(machine);
    const auto changed = keys->rewrap(record);
    if (changed && *changed) {
      const auto lsn = append_machine(machine, record);
      if (!lsn && lsn.error().code == Code::busy) return;  // goes on at the next turn
    }
    to_rewrap.pop_front();
  }
  if (!to_rewrap.empty()) return;
  const auto look = [this](const Status& durable) {
    bool all = durable.has_value();
    const auto check = [&](const MachineState& machine) { all = all && !keys->needs_rewrap(machine.record); };
    catalog.for_each_machine(check);
    catalog.for_each_clone(check);
    if (all) rewrapped = true;
  };
  if (log->durable_lsn() >= log->last_lsn()) return look({});
  waiting.emplace_back(log->last_lsn(), look);
}

Status Partition::Impl::forget_old_master_keys() {
  Superblock without = superblock;
  without.master_keys = {options.master_keys->current().id};
  TIDEMARK_TRY(write_superblock(files, directory, without));
  const std::lock_guard lock(superblock_mutex);
  superblock = std::move(without);
  spdlog::info("event=master_key_in_use path={} key={} volumes={}", directory,
               to_string(superblock.master_keys.front()), keys->size());
  return {};
}

}  // namespace tidemark::storage
