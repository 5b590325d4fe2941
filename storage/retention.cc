#include "storage/retention.h"

#include <algorithm>
#include <cstdlib>

namespace tidemark::storage {

namespace {

WallMicros micros_between(RetentionClock::Time from, RetentionClock::Time to) {
  return std::chrono::duration_cast<std::chrono::microseconds>(to - from).count();
}

}  // namespace

RetentionClock::RetentionClock(std::optional<WallMicros> seen_us, WallMicros wall_us, Time monotonic, Back back)
    : now_us_(wall_us), wall_us_(wall_us), monotonic_(monotonic), back_(back) {
  if (!seen_us || !differs(wall_us, *seen_us)) return;
  now_us_ = *seen_us;
  begin_step();
}

bool RetentionClock::differs(WallMicros wall_us, WallMicros own_us) const {
  return wall_us - own_us > kFreeStep || (back_ == Back::hold && own_us - wall_us > kFreeStep);
}

void RetentionClock::begin_step() {
  step_ = Step{.since = monotonic_, .after_us = std::min(std::abs(wall_us_ - now_us_), kBelieveAfterMax)};
}

WallMicros RetentionClock::now_us(Time monotonic) {
  const WallMicros passed = std::max<WallMicros>(0, micros_between(monotonic_, monotonic));
  now_us_ += passed;
  wall_us_ += passed;
  monotonic_ = std::max(monotonic_, monotonic);
  return now_us_;
}

bool RetentionClock::observe(WallMicros wall_us, Time monotonic) {
  const WallMicros passed = std::max<WallMicros>(0, micros_between(monotonic_, monotonic));
  const WallMicros moved = wall_us - wall_us_;
  const bool steady = moved - passed <= kFreeStep && passed - moved <= kFreeStep;
  wall_us_ = wall_us;
  monotonic_ = std::max(monotonic_, monotonic);
  const WallMicros own = now_us_ + passed;
  if (!differs(wall_us, own)) {  // in step, or set back
    now_us_ = back_ == Back::hold ? std::max(now_us_, wall_us) : wall_us;
    step_.reset();
    return false;
  }
  now_us_ = own;
  if (!step_ || !steady) begin_step();
  if (micros_between(step_->since, monotonic_) < step_->after_us) return false;
  now_us_ = wall_us;
  step_.reset();
  return true;
}

std::optional<RetentionClock::Held> RetentionClock::held() const {
  if (!step_) return std::nullopt;
  return Held{.wall_us = wall_us_,
              .believed_us = wall_us_ + step_->after_us - micros_between(step_->since, monotonic_)};
}

std::chrono::seconds Retention::look_every(const Ladder& ladder) {
  std::uint64_t shortest = ladder.dense_s;
  if (shortest == 0)
    for (const Rung& rung : ladder.rungs) shortest = shortest == 0 ? rung.every_s : std::min(shortest, rung.every_s);
  return std::chrono::seconds(std::clamp<std::uint64_t>(shortest / 6, 1, 600));
}

bool Retention::observe(WallMicros wall_us, Time monotonic) {
  now_ = std::max(now_, monotonic);
  if (!clock_.observe(wall_us, monotonic)) return false;
  for (auto& [id, machine] : machines_)
    if (machine.timed) schedule(id, machine, now_);
  return true;
}

void Retention::schedule(const MachineId& id, Machine& machine, Time at) {
  if (machine.at) schedule_.erase({*machine.at, id});
  machine.at = at;
  machine.timed = false;
  schedule_.emplace(at, id);
}

void Retention::record_changed(const MachineId& id, const pb::MachineRecord& record) {
  machines_[id].every = look_every(ladder_of(record));
  touch(id);
}

void Retention::touch(const MachineId& id) {
  Machine& machine = machines_[id];
  if (machine.looking) {
    machine.again_soon = true;
  } else if (!machine.at || *machine.at > now_) {
    schedule(id, machine, now_);
  }
}

void Retention::epoch_committed(const MachineId& id) {
  const auto found = machines_.find(id);
  if (found == machines_.end()) return;
  Machine& machine = found->second;
  const Time at = now_ + machine.every;
  if (machine.looking) {
    machine.again_later = true;
  } else if (!machine.at || *machine.at > at) {
    schedule(id, machine, at);
  }
}

void Retention::forget(const MachineId& id) {
  const auto found = machines_.find(id);
  if (found == machines_.end()) return;
  if (found->second.at) schedule_.erase({*found->second.at, id});
  machines_.erase(found);
}

std::vector<MachineId> Retention::due(std::size_t max) {
  std::vector<MachineId> now;
  while (now.size() < max && !schedule_.empty() && schedule_.begin()->first <= now_) {
    const MachineId id = schedule_.begin()->second;
    schedule_.erase(schedule_.begin());
    Machine& machine = machines_.at(id);
    machine.at.reset();
    machine.timed = false;
    machine.looking = true;
    now.push_back(id);
  }
  return now;
}

void Retention::decided(const MachineId& id, std::optional<WallMicros> next_due_us) {
  const auto found = machines_.find(id);
  if (found == machines_.end()) return;  // removed meanwhile
  Machine& machine = found->second;
  machine.looking = false;
  std::optional<Time> at;
  bool timed = false;
  if (next_due_us) {
    // Never twice in a second: what is due now and could not be done is tried again at that pace.
    const auto wait = std::chrono::microseconds(*next_due_us - clock_.now_us());
    at = now_ + std::max<std::chrono::microseconds>(wait, std::chrono::seconds(1));
    timed = true;
  }
  const auto sooner = [&](Time other) {
    if (at && *at <= other) return;
    at = other;
    timed = false;
  };
  if (machine.again_later) sooner(now_ + machine.every);
  if (machine.again_soon) sooner(now_);
  machine.again_later = machine.again_soon = false;
  if (!at) return;
  schedule(id, machine, *at);
  machine.timed = timed;
}

WallMicros seen_time(const pb::MachineRecord& record) {
  WallMicros seen = record.enrolled_us();
  for (const auto& pin : record.pins()) seen = std::max<WallMicros>(seen, pin.created_us());
  for (const auto& removal : record.removals()) seen = std::max<WallMicros>(seen, removal.requested_us());
  return seen;
}

}  // namespace tidemark::storage
