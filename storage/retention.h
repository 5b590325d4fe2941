// When to look at which machine's points, and which time may be believed. decide() of storage/ladder.h then says what
// goes. No I/O and no clock of its own: it is told the time. One object a partition; belongs to one thread.
//
// --- the retention clock ---
// Points go by it, pins end by it, and hold-offs run out by it. It follows the wall clock, but never leaps ahead with
// it:
//   - started, it stands at the newest time that the store itself has seen (arrivals, requests), if the wall clock is
//     more than kFreeStep ahead of that: the server may have been away for so long, or its clock may be wrong
//   - a step ahead of more than kFreeStep, against a monotonic clock, is not followed: it goes on at the pace of
//     monotonic time, held back. The step is believed after as much steady time as it is long, a day at most; another
//     step, to and fro, begins that anew
//   - a step back is followed at once: everything becomes younger, and nothing goes. Should that one have been the
//     wrong one, setting the clock right is a step ahead
// So nothing goes because of a clock that is set wrong for less than a day; and an administrator is told (held()).
//
// Rungs count buckets (storage/ladder.h), so each leap of the clock by which points are sorted into them costs a point
// a rung, whichever way it goes. They go by a second clock, which holds back a step back in the same way.
//
// --- the schedule ---
// A machine is looked at when it committed epochs (not at each, but after a sixth of its dense window, ten minutes at
// most), when its record changed, and when a pin, a removal or a former ladder ends. All others cost nothing. due()
// gives a bounded number at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "storage/ladder.h"

namespace tidemark::storage {

class RetentionClock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr WallMicros kFreeStep = 300'000'000;            // 5 minutes
  static constexpr WallMicros kBelieveAfterMax = 86'400'000'000;  // a day

  struct Held {
    WallMicros wall_us = 0;      // what the wall clock says
    WallMicros believed_us = 0;  // when this clock will follow it, in the wall clock's time
  };

  enum class Back : std::uint8_t {
    follow,  // a step back, at once
    hold,    // like one ahead; and over a small one it stands still, so that it only goes back when one is believed
  };

  // `seen_us`: a time that has surely come; nullopt: nothing is known, the wall clock is taken.
  RetentionClock(std::optional<WallMicros> seen_us, WallMicros wall_us, Time monotonic, Back back = Back::follow);
  // Once a second or so. True: it just leapt ahead, because a step was believed.
  bool observe(WallMicros wall_us, Time monotonic);
  WallMicros now_us() const { return now_us_; }
  WallMicros now_us(Time monotonic);  // going on at its own pace since it was last told the time
  std::optional<Held> held() const;

 private:
  WallMicros now_us_;
  WallMicros wall_us_;
  Time monotonic_;
  Back back_;
  struct Step {
    Time since;
    WallMicros after_us;  // of steady time
  };
  std::optional<Step> step_;
  bool differs(WallMicros wall_us, WallMicros own_us) const;
  void begin_step();
};

class Retention {
 public:
  using Time = RetentionClock::Time;
  explicit Retention(RetentionClock clock) : clock_(clock) {}

  const RetentionClock& clock() const { return clock_; }
  bool observe(WallMicros wall_us, Time monotonic);  // RetentionClock::observe

  // The machine's record is this from now on: it is looked at soon. For each one at start, too.
  void record_changed(const MachineId& machine, const pb::MachineRecord& record);
  void touch(const MachineId& machine);  // a clone, an export or a read does not need a point any more
  void epoch_committed(const MachineId& machine);
  void forget(const MachineId& machine);  // it was removed

  // Those to be looked at now, at most `max`, the longest due first; each is not given again until decided().
  std::vector<MachineId> due(std::size_t max);
  void decided(const MachineId& machine, std::optional<WallMicros> next_due_us);
  std::size_t waiting() const { return schedule_.size(); }  // that have a time

  // How long epochs may gather before a look.
  static std::chrono::seconds look_every(const Ladder& ladder);

 private:
  struct Machine {
    std::chrono::seconds every{};
    std::optional<Time> at;                        // in the schedule
    bool looking = false;                          // given by due(), not decided yet
    bool again_soon = false, again_later = false;  // what came meanwhile
    bool timed = false;                            // `at` comes from the retention clock's time
  };
  void schedule(const MachineId& id, Machine& machine, Time at);

  RetentionClock clock_;
  Time now_{};
  std::unordered_map<MachineId, Machine> machines_;
  std::set<std::pair<Time, MachineId>> schedule_;
};

// The newest time that a record proves has come.
WallMicros seen_time(const pb::MachineRecord& record);

}  // namespace tidemark::storage
