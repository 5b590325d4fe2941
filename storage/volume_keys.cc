#include "storage/volume_keys.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace tidemark::storage {

namespace {

bool encrypted(const pb::DiskRecord& disk) { return !disk.wrapped_key().empty(); }

// Of records that were read, machine identities were checked before.
MachineId machine_of(const pb::MachineRecord& record) {
  std::array<std::byte, MachineId::kSize> id{};
  TIDEMARK_CHECK(record.machine().size() == id.size());
  std::memcpy(id.data(), record.machine().data(), id.size());
  return MachineId(id);
}

}  // namespace

VolumeKeys::VolumeKeys(std::shared_ptr<const MasterKeys> masters, PartitionId partition, bool encrypt)
    : masters_(std::move(masters)), partition_(partition), encrypt_(encrypt) {
  TIDEMARK_CHECK(!encrypt || (masters_ != nullptr && !masters_->empty()));
}

WrapPlace VolumeKeys::place(const pb::MachineRecord& record, const pb::DiskRecord& disk) const {
  return {.partition = partition_, .machine = machine_of(record), .volume = VolumeId(disk.volume())};
}

Status VolumeKeys::load(const pb::MachineRecord& record) {
  if (record.removed()) return {};
  for (const pb::DiskRecord& disk : record.disks()) {
    if (!encrypted(disk) || find(VolumeId(disk.volume())) != nullptr) continue;
    const MasterKeyId id(disk.key_id());
    const std::string who = "machine " + record.name() + ", disk " + std::to_string(disk.disk());
    if (masters_ == nullptr) return std::unexpected(no_master_key_file("master key file", {id}, who));
    TIDEMARK_TRY(masters_->need({id}, who));
    const Key256 key = TIDEMARK_TRY(unwrap_key(masters_->find(id)->key, disk.wrapped_key(), place(record, disk)));
    const std::lock_guard lock(mutex_);
    keys_[VolumeId(disk.volume())] = std::make_shared<VolumeKey>(key);
  }
  return {};
}

bool VolumeKeys::equip(pb::MachineRecord& record, bool always) const {
  if (!encrypt_ && !always && std::ranges::none_of(record.disks(), encrypted)) return false;
  bool changed = false;
  for (pb::DiskRecord& disk : *record.mutable_disks()) {
    if (encrypted(disk)) continue;
    TIDEMARK_CHECK(masters_ != nullptr);  // or the disk that has a key would not have been loaded
    disk.set_wrapped_key(wrap_key(masters_->current().key, Key256::random(), place(record, disk)));
    disk.set_key_id(masters_->current().id.value());
    changed = true;
  }
  return changed;
}

bool VolumeKeys::needs_rewrap(const pb::MachineRecord& record) const {
  if (masters_ == nullptr || record.removed()) return false;
  return std::ranges::any_of(record.disks(), [&](const pb::DiskRecord& disk) {
    return encrypted(disk) && disk.key_id() != masters_->current().id.value();
  });
}

Result<bool> VolumeKeys::rewrap(pb::MachineRecord& record) const {
  if (!needs_rewrap(record)) return false;
  for (pb::DiskRecord& disk : *record.mutable_disks()) {
    if (!encrypted(disk)) continue;
    const auto key = find(VolumeId(disk.volume()));
    if (key == nullptr) return fail(Code::internal, "machine " + record.name(), "the key of a disk is not loaded");
    disk.set_wrapped_key(wrap_key(masters_->current().key, key->key, place(record, disk)));
    disk.set_key_id(masters_->current().id.value());
  }
  return true;
}

std::shared_ptr<const VolumeKey> VolumeKeys::find(VolumeId volume) const {
  const std::lock_guard lock(mutex_);
  const auto found = keys_.find(volume);
  return found == keys_.end() ? nullptr : found->second;
}

std::shared_ptr<const VolumeKey> VolumeKeys::key_of(const pb::MachineRecord& record) const {
  return record.disks().empty() ? nullptr : find(VolumeId(record.disks(0).volume()));
}

std::size_t VolumeKeys::size() const {
  const std::lock_guard lock(mutex_);
  return keys_.size();
}

}  // namespace tidemark::storage
