#include "storage/epoch_progress.h"

#include <algorithm>
#include <cstring>

#include "base/limits.h"

namespace tidemark::storage {

std::string hash_to_bytes(const Hash128& hash) {
  std::string bytes(16, '\0');
  std::memcpy(bytes.data(), &hash.low, 8);
  std::memcpy(bytes.data() + 8, &hash.high, 8);
  return bytes;
}

Hash128 hash_from_bytes(const std::string& bytes) {
  Hash128 hash;
  if (bytes.size() == 16) {
    std::memcpy(&hash.low, bytes.data(), 8);
    std::memcpy(&hash.high, bytes.data() + 8, 8);
  }
  return hash;
}

std::string machine_to_bytes(const MachineId& machine) {
  std::string bytes(MachineId::kSize, '\0');
  std::memcpy(bytes.data(), machine.bytes().data(), MachineId::kSize);
  return bytes;
}

Result<MachineId> machine_from_bytes(const std::string& bytes) {
  if (bytes.size() != MachineId::kSize)
    return fail(Code::corrupt, "machine record", "its identity is not 16 bytes long");
  std::array<std::byte, MachineId::kSize> id;
  std::memcpy(id.data(), bytes.data(), id.size());
  return MachineId(id);
}

pb::OpenEpochEntry begin_epoch_entry(const pb::EpochBeginRecord& begin, Lsn lsn, const pb::OpenEpochEntry* resumed) {
  pb::OpenEpochEntry open;
  if (resumed != nullptr) {
    open = *resumed;
  } else {
    open.set_number(begin.number());
    open.set_begin_lsn(lsn.value());
    open.set_kind(begin.kind());
  }
  *open.mutable_disks() = begin.disks();
  return open;
}

void add_blocks(pb::OpenEpochEntry& open, const RecordInfo& record, std::span<const BlockPlace> blocks) {
  std::uint64_t plain = 0;
  std::uint64_t stored = 0;
  std::uint64_t position = 0;
  for (const BlockPlace& block : blocks) {
    plain += block.granules * limits::kGranuleSize;
    stored += block.stored_size;
    position = std::max(position, block.first_granule + block.granules);
  }
  open.set_blocks(open.blocks() + blocks.size());
  if (record.sealed) {
    // It has the sum so far. A record in the clear never follows: once a machine is encrypted it stays so.
    open.set_sealed_sum(hash_to_bytes(record.sum));
    open.clear_sum();
  } else {
    Hash128 sum = hash_from_bytes(open.sum());
    sum += record.sum;
    open.set_sum(hash_to_bytes(sum));
  }
  open.set_plain_bytes(open.plain_bytes() + plain);
  open.set_stored_bytes(open.stored_bytes() + stored);
  if (open.kind() != kInitialEpoch) return;
  for (pb::DiskSizeRecord& disk : *open.mutable_positions()) {
    if (disk.disk() != record.disk.value()) continue;
    disk.set_size(std::max(disk.size(), position));
    return;
  }
  pb::DiskSizeRecord* disk = open.add_positions();
  disk->set_disk(record.disk.value());
  disk->set_size(position);
}

pb::EpochEntry commit_epoch_entry(const pb::OpenEpochEntry& open, const pb::EpochCommitRecord& commit, Lsn lsn) {
  pb::EpochEntry entry;
  entry.set_number(commit.number());
  entry.set_begin_lsn(open.begin_lsn());
  entry.set_commit_lsn(lsn.value());
  entry.set_time_us(commit.time_us());
  entry.set_agent_time_us(commit.agent_time_us());
  entry.set_arrival_us(commit.arrival_us());
  entry.set_rung_offset_us(commit.rung_offset_us());
  entry.set_consistency(commit.consistency());
  entry.set_digest(commit.digest());
  entry.set_sealed_digest(commit.sealed_digest());
  entry.set_blocks(open.blocks());
  entry.set_plain_bytes(open.plain_bytes());
  entry.set_stored_bytes(open.stored_bytes());
  entry.set_kind(open.kind());
  *entry.mutable_disks() = open.disks();
  return entry;
}

}  // namespace tidemark::storage
