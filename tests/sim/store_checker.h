// The model itself: what it does to a store, what it remembers, and what it demands. One history.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "storage/ladder.h"
#include "storage/retention.h"
#include "tests/sim/store_machines.h"
#include "tests/sim/store_model.h"
#include "tests/sim/store_nonces.h"
#include "tests/sim/store_rig.h"

namespace tidemark::sim {

class StoreChecker {
 public:
  StoreChecker(std::uint64_t seed, storage::PartitionOptions options);

  // Each is one step: what the store refuses for a reason that the model knows has no effect in it.
  void add_machine();
  void open_disk(ModelMachine& machine);
  void begin(ModelMachine& machine, std::uint32_t kind);
  void blocks(ModelMachine& machine);
  void bulk(ModelMachine& machine);  // some frames of whole blocks, one behind the other
  void commit(ModelMachine& machine);
  void abort(ModelMachine& machine);
  void drop(ModelMachine& machine);   // some of its points
  void pin(ModelMachine& machine);    // some point of it, or no more
  void prune(ModelMachine& machine);  // as its ladder says, after a while
  void jump_clock();                  // of which nothing may come; there, and another time back again
  void clone(std::uint32_t number);   // a point of that machine
  void rename(ModelMachine& machine);
  void remove(ModelMachine& machine);
  void pump(bool all);
  void idle();
  void scrub();        // of a store that is sound, as far as the disk does not lie
  void read_errors();  // for a while: what is read is right, or an error
  void lose_index();   // while it is closed

  // Ways to end a life, and to begin the next one.
  enum class End : std::uint8_t { power_cut, kill, close };
  void end(End how);
  void start();  // opens, compares everything, resumes or aborts what was open
  // While closed, with a log up to `last`: damages what is stored, opens, checks, mends it, opens again.
  void damage_and_start(Lsn last);
  void verify(std::size_t epochs_max, bool damaged);

  // After each step: acknowledgements, a power cut that was set, a log that stopped.
  void settle();

  bool failed() const { return run_.failure.has_value(); }
  void fail(std::string what);
  void trace(const std::string& what) const;  // printed when TIDEMARK_SIM_TRACE is set
  StoreRun& run() { return run_; }
  StoreRig& rig() { return rig_; }
  Random& random() { return random_; }
  std::map<std::uint32_t, ModelMachine>& machines() { return machines_; }
  ModelMachine* any_machine();
  std::uint32_t number_of(const ModelMachine& machine) const;
  void set_lying(bool lying) { lied_ = lied_ || lying; }
  bool lied() const { return lied_; }

 private:
  static MachineId machine_id(std::uint32_t number);
  void check_status(const Status& status, const char* doing);
  void compare_after_start(ModelMachine& machine, bool& drop);
  void compare_space();
  void continue_open(ModelMachine& machine, const storage::MachineState& state);
  void take_acks();
  void sent(ModelMachine& machine, const wire::BlocksSummary& summary, std::shared_ptr<Content> content, StoreOp what);
  bool scrub_through();  // false: it did not come to its end
  // `by_steady_time`: as if the clock had never leapt.
  storage::Decision decide(const ModelMachine& machine, bool by_steady_time = false);
  WallMicros steady_us() const { return rig_.clock().wall_us() - ahead_.count(); }
  void observe_clocks();
  bool is_cloned(const ModelMachine& machine, std::optional<std::uint64_t> epoch) const;
  void verify_base(ModelMachine& clone, bool damaged);
  void forget_dropped(ModelMachine& machine, const std::vector<storage::pb::EpochEntry>& listed);

  struct Damage {
    std::string path;
    std::uint64_t offset = 0;
    std::vector<std::byte> before;
  };
  std::optional<Damage> do_damage();
  std::optional<Damage> damage_cold();

  StoreRun run_;
  Random random_;
  StoreRig rig_;
  std::map<std::uint32_t, ModelMachine> machines_;
  std::uint32_t next_machine_ = 1;
  storage::RetentionClock retention_clock_, rung_clock_;
  std::chrono::microseconds ahead_{0};  // the wall clock, just now
  NonceWatch nonces_;
  bool lied_ = false;        // the disk said done and did not do it
  bool unreadable_ = false;  // for now: reads fail by chance
};

}  // namespace tidemark::sim
