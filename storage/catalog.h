// What a shard knows of its machines: their records, their newest durable epoch, the epoch that is open. Memory only:
// the log's records are the truth, the index keeps what a start needs.
//
// Two views are kept of an epoch: as far as it is appended, which decides what may follow, and as far as it is
// durable, which is what others are told. Machine records count from when they are appended.
//
// Belongs to the shard's thread. The checks here are on what callers ask; each fails without effect.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/clone.h"
#include "storage/commit_info.h"
#include "storage/index.h"
#include "storage/sealing.h"

namespace tidemark::storage {

// A machine as the store has it, in memory on the shard. A copy can travel.
struct MachineState {
  pb::MachineRecord record;
  // Newest committed and durable epoch (0: none), and the newest that is a point.
  EpochNumber durable_epoch;
  Hash128 durable_digest;
  Lsn durable_lsn;
  WallMicros durable_time_us = 0;
  EpochNumber newest_point;
  WallMicros newest_point_us = 0;
  EpochNumber next_epoch{1};
  std::optional<pb::OpenEpochEntry> open_epoch;  // as far as durable; absent once its commit or abort is appended
  std::optional<EpochNumber> begun_epoch;        // the open epoch as far as appended: its begin may not be durable yet
  std::map<EpochNumber, std::uint32_t> cloned;   // points that clones stand on, with how many there are
  WallMicros unchanged_as_of_us = 0;             // in memory only
};

// The digest of an epoch of this machine, opened if it is sealed.
Hash128 digest_of(const pb::EpochEntry& entry, const VolumeKey* key, HashSealer& hashes);

class Catalog {
 public:
  // `keys`, where there are any, get those of all machines; hashes of content are sealed and opened with them.
  static Result<Catalog> load(const Index& index, std::shared_ptr<VolumeKeys> keys = nullptr);

  const MachineState* find(const MachineId& machine) const;  // nullptr for a removed one too
  const MachineState* find_by_name(const std::string& name) const;
  const pb::MachineRecord* record(const MachineId& machine) const;                     // of a removed one too
  void for_each_machine(const std::function<void(const MachineState&)>& visit) const;  // without clones
  void for_each_clone(const std::function<void(const MachineState&)>& visit) const;
  void set_unchanged(const MachineId& machine, WallMicros as_of_us);

  // --- before appending: what the record must be, or why it may not be appended ---
  // The record as it is to be written: disks are the catalog's own business.
  Result<pb::MachineRecord> check_machine(const pb::MachineRecord& record) const;
  struct DiskChange {
    pb::DiskRecord disk;
    std::optional<pb::MachineRecord> record;  // to be written first; absent: nothing changed
  };
  Result<DiskChange> check_disk(const MachineId& machine, const pb::DiskRecord& disk) const;
  // True: nothing to write, the epoch is resumed as it is.
  Result<bool> check_begin(const MachineId& machine, const pb::EpochBeginRecord& begin) const;
  Status check_blocks(const MachineId& machine, DiskId disk) const;
  Status check_commit(const MachineId& machine, EpochNumber number) const;
  // With what was before, so that it stands for itself.
  pb::EpochBeginRecord complete(const MachineId& machine, const pb::EpochBeginRecord& begin) const;
  // With what its begin told, likewise; the digest sealed, if the machine is encrypted.
  pb::EpochCommitRecord complete(const MachineId& machine, const pb::EpochCommitRecord& commit) const;
  pb::EpochAbortRecord complete(const MachineId& machine, const pb::EpochAbortRecord& abort) const;
  Result<bool> check_abort(const MachineId& machine, EpochNumber number) const;  // true: nothing to write
  // What the hashes of the open epoch's blocks come to with these, for a sealed record.
  Hash128 sealed_sum(const MachineId& machine, const Hash128& more) const;

  // The records of clones of `base` (storage/clone.h) by these names: all, or none.
  Result<std::vector<pb::MachineRecord>> check_clones(const CloneBase& base, std::span<const CloneName> names,
                                                      const std::string& by, WallMicros now_us) const;

  // --- appended: after the log took the record ---
  void appended_machine(const MachineId& machine, const pb::MachineRecord& record);
  void appended_begin(const MachineId& machine, const pb::EpochBeginRecord& begin, Lsn lsn);
  void appended_blocks(const MachineId& machine, const Hash128& sum);
  void appended_commit(const MachineId& machine);
  void appended_abort(const MachineId& machine);

  // --- durable ---
  class Visitor {
   public:
    virtual void epoch_durable(const MachineId& machine, EpochNumber epoch, const Hash128& digest) = 0;
    virtual void blocks_durable(const MachineId& machine, std::uint64_t payload_bytes) = 0;

   protected:
    ~Visitor() = default;
  };
  // Takes over what a durable commit says. An error: the log holds what cannot be parsed, which our own logic wrote.
  Status durable(const CommitInfo& commit, Visitor& visitor);

 private:
  struct Machine {
    MachineState state;
    // As durable, whether or not its end is appended already; state.open_epoch shows it only while it may go on.
    std::optional<pb::OpenEpochEntry> durable_open;
    std::optional<pb::EpochBeginRecord> begun;  // as appended
    Lsn begun_lsn;
    // Of the newest committed epoch, as appended; absent: there is none.
    std::optional<google::protobuf::RepeatedPtrField<pb::DiskSizeRecord>> committed;
    Hash128 appended_sum;  // of the hashes of its blocks, as appended, as they were sent
  };
  void show_open(Machine& machine) const;
  pb::OpenEpochEntry opened(const Machine& machine, pb::OpenEpochEntry entry) const;
  const Machine* known(const MachineId& machine) const;
  void count_clone(const pb::MachineRecord& clone, int by);
  std::string describe(const MachineId& machine) const;

  std::unordered_map<MachineId, Machine> machines_;  // removed ones too
  std::unordered_map<std::string, MachineId> names_;
  std::shared_ptr<VolumeKeys> keys_;
  mutable HashSealer hashes_;
  std::uint32_t next_volume_ = 1;
};

}  // namespace tidemark::storage
