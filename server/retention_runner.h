// Carries out the retention of one partition: tells storage::Retention the time and what happened, has due machines
// looked at on a worker thread, asks the store to drop what nothing holds, and removes machines whose removal is due.
//
// What the store was asked to drop goes in the background, some time later. Until it is seen to be gone it is "going":
// it cannot be pinned any more.
//
// On the shard's thread. One look at a time, of a bounded number of machines.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "server/audit.h"
#include "storage/catalog.h"
#include "storage/retention.h"

namespace tidemark::server {

class PartitionHost;
class Shard;

// What the store knows that the machine's record does not.
storage::Guards guards_of(const storage::MachineState& machine);

class RetentionRunner {
 public:
  static constexpr std::size_t kLooksAtOnce = 64;

  // The partition is open.
  RetentionRunner(Shard& shard, PartitionHost& host);
  ~RetentionRunner();
  RetentionRunner(const RetentionRunner&) = delete;
  RetentionRunner& operator=(const RetentionRunner&) = delete;

  void opened_again();  // the partition is another one, of the same store
  void record_changed(const MachineId& machine, const storage::pb::MachineRecord& record);
  void epoch_committed(const MachineId& machine) { retention_.epoch_committed(machine); }
  void tick();  // once a second

  WallMicros now_us() const { return retention_.clock().now_us(); }
  WallMicros rung_time_us();  // now, by the clock that rungs go by
  std::optional<storage::RetentionClock::Held> held() const { return retention_.clock().held(); }
  using Ranges = std::vector<std::pair<EpochNumber, EpochNumber>>;  // both inclusive, ascending
  bool going(const MachineId& machine, EpochNumber epoch) const;
  Ranges going(const MachineId& machine) const;
  std::uint64_t dropped() const { return dropped_; }  // epochs that the store was asked to drop, since the start

 private:
  struct Look {
    MachineId machine;
    storage::pb::MachineRecord record;
    storage::Guards guards;
  };
  struct Looked {
    Look look;
    std::optional<Error> error;
    storage::Decision decision;
    std::vector<EpochNumber> gone;  // that removals name
    bool tidy = false;              // something in the record is over
  };

  void look(std::vector<Look> looks);
  void decided(std::vector<Looked> all);
  void decided(Looked& one);
  void drop(const MachineId& id, const storage::MachineState& machine, storage::Decision& decision);
  void remove_machine(const Look& look, const storage::pb::RemovalRecord& removal);
  void tell_clock();

  Shard& shard_;
  PartitionHost& host_;
  storage::Retention retention_;
  storage::RetentionClock rung_clock_;
  std::unordered_map<MachineId, Ranges> going_;
  bool looking_ = false;
  bool told_held_ = false;
  std::uint64_t dropped_ = 0;
  std::deque<AuditEntry> unaudited_;  // a worker writes them
  void audit(AuditEntry entry);
  void write_audit();
};

}  // namespace tidemark::server
