// The keys of a partition's volumes, unwrapped: in memory only. Stored they stand in the records of disks, wrapped with
// a master key (storage/master_keys.h), and so wherever a machine's record goes.
//
// A machine is encrypted or it is not: once one of its disks has a key every one gets one, whatever the setting says.
//
// find() and key_of() are for any thread; everything else is the shard's.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "base/ids.h"
#include "base/status.h"
#include "storage/master_keys.h"
#include "storage/records.pb.h"
#include "storage/sealing.h"

namespace tidemark::storage {

class VolumeKeys {
 public:
  // Without `masters` nothing can be encrypted. `encrypt`: machines that are not yet are to be.
  VolumeKeys(std::shared_ptr<const MasterKeys> masters, PartitionId partition, bool encrypt);

  // Takes over the keys that a machine's record has. They stay when it is removed: somebody may still be at its data.
  // Code::not_found: one is wrapped with a master key that is not there.
  Status load(const pb::MachineRecord& record);
  // Gives the disks wrapped keys that have none and should. True: the record changed; once it is in the log, load() it:
  // a key that no record has must not be used. `always`: whatever the setting says, for clones of what is encrypted.
  bool equip(pb::MachineRecord& record, bool always = false) const;
  // Wraps with the master key that is in use what is wrapped with another one. True: the record changed.
  Result<bool> rewrap(pb::MachineRecord& record) const;
  bool needs_rewrap(const pb::MachineRecord& record) const;

  // Null: what is written to this volume stays in the clear.
  std::shared_ptr<const VolumeKey> find(VolumeId volume) const;
  // What the hashes of a machine's epochs are sealed with: the key of its first disk.
  std::shared_ptr<const VolumeKey> key_of(const pb::MachineRecord& record) const;
  std::size_t size() const;

 private:
  WrapPlace place(const pb::MachineRecord& record, const pb::DiskRecord& disk) const;

  const std::shared_ptr<const MasterKeys> masters_;
  const PartitionId partition_;
  const bool encrypt_;
  mutable std::mutex mutex_;
  std::unordered_map<VolumeId, std::shared_ptr<const VolumeKey>> keys_;
};

}  // namespace tidemark::storage
