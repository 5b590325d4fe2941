// A partition on its shard: the store, the sessions of its machines, and who waits for room in its log.
//
// Room. A session asks room_for() before it hands anything to the store. When there is none, or others wait already, it
// is queued and its frame stays with it; end_turn() lets the queue go on in order, as far as there is room.
//
// Settling. What a session appended before it ended may still be in flight. A machine's next Hello must not be answered
// from a state that is about to change, so it waits until all of that is durable.
//
// Opening. The store is opened by a thread of the partition's own, while the shard serves the others; machines that say
// Hello meanwhile wait for it, but for a rebuild of the index, which is long. A partition that stopped, or could not be
// opened, can be opened again, once what was there before is gone.
//
// Everything on the shard's thread, but the methods marked "any thread".
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "server/delay_watch.h"
#include "server/end_apart.h"
#include "server/machine_report.h"
#include "server/machine_status.h"
#include "server/retention_runner.h"
#include "server/space_watch.h"
#include "storage/open_progress.h"
#include "storage/partition.h"

namespace tidemark::server {

class Channel;
struct Node;
class Session;
class Shard;

class PartitionHost final : private storage::Partition::Listener {
 public:
  enum class State : std::uint8_t { opening, rebuilding, serving, stopped, fenced };
  struct Health {
    PartitionId id;
    State state = State::stopped;
    std::string why;
    std::optional<unsigned> percent;  // of the rebuild
  };

  PartitionHost(Shard& shard, PartitionId id);
  ~PartitionHost();

  void open(storage::IoQueue& queue);  // begins to
  // The same once more. Code::already_exists when it serves, or is being opened; busy when something of what it was
  // is still under way.
  Status reopen();
  void directory_failed(const Error& why);
  void directory_back();
  PartitionId id() const { return id_; }
  State state() const;  // any thread
  Health health() const;
  Status trouble() const;  // any thread: what serving() says, without the reason
  storage::Partition* partition() const { return partition_.get(); }  // null when it is not open
  // Any thread: the same, only for the calls of Partition that are for any thread. Given back soon: as long as it is
  // held, the partition cannot be opened again.
  std::shared_ptr<storage::Partition> share() const;
  bool index_rebuilt() const { return index_rebuilt_; }  // when it was opened last
  // Code::unavailable when it does not serve.
  Status serving() const;
  // True: it is about to be known whether it serves, and the channel is called again then.
  bool wait_for_opening(Channel& waiting);
  // The same, and Code::no_space while its log was found to have no room and no space to get any.
  Status takes_data() const;

  // --- machines ---
  const storage::MachineState* find(const MachineId& machine) const;
  // To be changed.
  Observed& observed(const MachineId& machine) {
    touched_.insert(machine);
    return runtime_[machine].observed;
  }
  Session* session_of(const MachineId& machine) const;
  MachineReport report(const storage::MachineState& machine);
  std::vector<MachineReport> reports();
  // Changes a machine's record (an empty one, when the machine is new) and writes it; `change` is called when its turn
  // comes, on what the record is then; `done` when it is durable, never from within this call.
  using Change = std::function<void(storage::pb::MachineRecord&)>;
  void put(const MachineId& machine, Change change, std::function<void(Status)> done);
  // Makes clones, all or none; `done` when they are durable.
  void create_clones(storage::CloneBase base, std::vector<storage::CloneName> names, std::string by, WallMicros now_us,
                     std::function<void(Status)> done);
  // Hands the store to `write` in its turn, when the log has room; it is called again after Code::busy. `done` is told
  // what came of it, never from within this call.
  void append(std::function<Status(storage::Partition&)> write, std::function<void(Status)> done);
  // Removes a machine with all of its points (or a clone), for good: its session ends, its name is free when `done` is
  // told well.
  void remove(const MachineId& machine, std::function<void(Status)> done);
  // Asks the store to drop these, and no others that it was asked for before; that happens in the background.
  void drop_points(const MachineId& machine, const std::vector<EpochNumber>& epochs);
  RetentionRunner* retention() const { return retention_.get(); }  // null when the partition could not be opened
  // Ends the machine's session, if there is one.
  void expel(const MachineId& machine, const Error& why, std::uint32_t retry_after_ms);

  // --- sessions ---
  // False: the Hello must wait; the channel is called again.
  bool settled(const MachineId& machine, Channel& waiting);
  void session_began(Session& session);
  void session_ended(Session& session, bool appended);
  bool room_for(Channel& channel, std::size_t bytes);
  void wait_for_room(Channel& channel, std::size_t bytes);
  void ask_for_damaged(Session& session);
  void forget(Channel& channel, const MachineId& machine);  // it waits for nothing any more
  std::uint32_t initial_credit() const;
  std::size_t machine_count() const;
  std::size_t clone_count() const;
  std::size_t session_count() const { return sessions_; }
  std::size_t waiting_for_room() const { return waiting_.size(); }
  std::size_t throttled() const { return delays_.throttled(); }
  const SpaceWatch& space() const { return space_; }
  std::uint64_t quarantined() const;
  const std::map<MachineId, storage::MachineDamage>& damaged() const { return damaged_; }
  std::uint64_t alarms() const { return alarms_; }  // as of the last round, like the next
  double lag_seconds_max() const { return lag_seconds_max_; }

  // --- the loop ---
  void end_turn();
  void on_idle();
  void tick_second(WallMicros now_us);
  void close();

 private:
  struct Runtime {
    Session* session = nullptr;
    Observed observed;
    int settling = 0;               // ended sessions that are not durable whole
    std::vector<Channel*> waiting;  // Hellos behind them
    std::string state;              // as last derived
    WallMicros state_since_us = 0;
    bool alarm = false;
  };
  struct Waiting {
    Channel* channel;
    std::size_t bytes;
  };
  // A store that is being opened, on a thread.
  struct Opening {
    std::optional<Result<storage::Partition::Opened>> result;  // set by the thread, at its end
    std::thread thread;
  };
  struct PendingPut {
    std::function<Status(std::function<void(Status)>)> write;  // Code::busy: to be tried again
    std::function<void(Status)> done;
  };

  void on_epoch_durable(const MachineId& machine, EpochNumber epoch, const Hash128& digest) override;
  void on_bytes_durable(const MachineId& machine, std::uint64_t payload_bytes) override;
  void on_room() override;
  void on_stopped(const Error& why) override;

  static constexpr std::uint64_t kAlarmEverySeconds = 5;
  StatusRules rules() const;
  StatusView derive(const storage::MachineState& machine, Runtime& runtime, WallMicros now_us);
  void begin_opening();
  void opened();
  void adopt(storage::Partition::Opened opened);
  void not_opened(const Error& why);
  void share(std::shared_ptr<storage::Partition> partition);
  void release_opening();
  void let_go();
  void look_after_index();
  void try_puts();
  void tell_delays();
  void tell_damage();
  void release_settled(const MachineId& machine);
  void serve_room();

  Shard& shard_;
  const PartitionId id_;
  storage::IoQueue* queue_ = nullptr;
  std::atomic<State> state_ = State::stopped;
  std::string why_;
  bool by_directory_ = false;  // it stopped with its directory, and will be opened when that is back
  std::shared_ptr<storage::Partition> partition_;
  std::shared_ptr<EndApart<storage::Partition>> end_;  // of it, or of what it was before
  std::vector<MachineReport> last_reports_;            // when it was let go
  mutable std::mutex shared_mutex_;
  std::shared_ptr<storage::Partition> shared_;  // the same as partition_, for other threads
  storage::OpenProgress progress_;
  std::unique_ptr<Opening> opening_;
  std::vector<Channel*> waiting_for_opening_;
  std::atomic<bool> index_rebuilt_ = false;
  std::string index_damage_;  // why it is to be made again at the next opening; empty: it is not
  std::unordered_map<MachineId, Runtime> runtime_;
  std::size_t sessions_ = 0;
  std::deque<Waiting> waiting_;
  bool serving_room_ = false;
  std::deque<PendingPut> puts_;
  std::unordered_set<MachineId> touched_;  // since the last tick
  std::unique_ptr<RetentionRunner> retention_;
  std::uint64_t ticks_ = 0;
  std::uint64_t alarms_ = 0;
  double lag_seconds_max_ = 0;
  DelayWatch delays_;
  std::uint64_t damage_version_ = 0;
  std::map<MachineId, storage::MachineDamage> damaged_;  // as of that version
  SpaceWatch space_;
};

const char* to_string(PartitionHost::State state);
std::uint64_t index_lag_max(const Node& node);  // bytes of a partition's log that may wait for its index
MachineId machine_id_of(const storage::pb::MachineRecord& record);

}  // namespace tidemark::server
