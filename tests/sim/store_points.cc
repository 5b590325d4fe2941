// What holds points and what lets them go: pins, the ladder under a clock that leaps, and clones.
#include <fmt/format.h>

#include <algorithm>

#include "storage/clone.h"
#include "tests/sim/store_checker.h"

namespace tidemark::sim {

using storage::MachineState;

namespace {

constexpr std::chrono::milliseconds kNoWait{0};

}  // namespace

void StoreChecker::pin(ModelMachine& machine) {
  const MachineState* state = rig_.store().find(machine.id);
  if (state == nullptr) return fail("a machine is not known any more");
  storage::pb::MachineRecord record = state->record;
  std::vector<std::uint64_t> points;
  for (const auto& [number, epoch] : machine.acked) {
    if (!machine.dropping.contains(number)) points.push_back(number);
  }
  if (record.pins_size() != 0 && random_.chance(0.4)) {
    record.clear_pins();
  } else if (!points.empty()) {
    storage::pb::PinRecord* const pin = record.add_pins();
    pin->set_epoch(points[random_.below(points.size())]);
    pin->set_name(std::to_string(record.pins_size()));
  }
  check_status(rig_.store().put_machine(record, {}), "pin");
  run_.count(StoreOp::machine);
}

// A ladder that lets go of something within a few steps.
storage::Decision StoreChecker::decide(const ModelMachine& machine, bool by_steady_time) {
  const MachineState* state = rig_.store().find(machine.id);
  storage::pb::MachineRecord record = state->record;
  const storage::Ladder ladder{.dense_s = 20, .rungs = {{.every_s = 60, .keep_s = 180}}};
  if (!record.has_clone()) *record.mutable_ladder() = storage::to_record(ladder);
  std::vector<storage::LadderEpoch> epochs;
  if (auto listed = rig_.store().epochs(machine.id, 0, true, kNoWait)) {
    for (auto entry = listed->rbegin(); entry != listed->rend(); ++entry) {
      if (entry->number() == 0) continue;
      epochs.push_back(storage::ladder_epoch(*entry));
      if (!by_steady_time) continue;
      epochs.back().arrival_us = machine.committed_us.at(entry->number());
      epochs.back().rung_offset_us = 0;
    }
  }
  storage::Guards guards;
  for (const auto& [epoch, clones] : state->cloned) guards.in_use.push_back(epoch);
  return storage::decide(epochs, record, guards, by_steady_time ? steady_us() : retention_clock_.now_us());
}

void StoreChecker::observe_clocks() {
  retention_clock_.observe(rig_.clock().wall_us(), rig_.clock().monotonic());
  rung_clock_.observe(rig_.clock().wall_us(), rig_.clock().monotonic());
}

void StoreChecker::prune(ModelMachine& machine) {
  const MachineState* state = rig_.store().find(machine.id);
  if (state == nullptr) return fail("a machine is not known any more");
  rig_.clock().advance(std::chrono::seconds(random_.below(60)));
  observe_clocks();
  storage::Decision decision = decide(machine);
  const std::vector<EpochNumber> right = decide(machine, true).drop;
  // Whatever the ladder thinks: these stay.
  std::set<std::uint64_t> stay;
  for (const auto& pin : state->record.pins()) stay.insert(pin.epoch());
  for (const auto& [epoch, clones] : state->cloned) stay.insert(epoch.value());
  stay.insert(state->durable_epoch.value());
  stay.insert(state->newest_point.value());
  for (const EpochNumber epoch : decision.drop) {
    if (!std::ranges::binary_search(right, epoch))
      return fail(fmt::format("the ladder drops epoch {} of {} by a clock that leapt", epoch.value(), machine.name));
    if (stay.contains(epoch.value()))
      return fail(fmt::format("the ladder drops epoch {} of {}, which is held", epoch.value(), machine.name));
    if (machine.acked.contains(epoch.value())) machine.dropping.insert(epoch.value());
  }
  // What is not acknowledged yet, but in the index, is not followed by the model when it goes.
  std::erase_if(decision.drop, [&](EpochNumber epoch) { return !machine.acked.contains(epoch.value()); });
  run_.points_pruned += decision.drop.size();
  run_.count(StoreOp::prune);
  trace(fmt::format("{} prunes {} points", machine.name, decision.drop.size()));
  rig_.store().drop_points(machine.id, decision.drop);
}

void StoreChecker::jump_clock() {
  if (ahead_.count() != 0) {
    rig_.clock().jump_wall(-std::exchange(ahead_, std::chrono::microseconds(0)));
    return observe_clocks();
  }
  const auto leap = std::chrono::hours(random_.chance(0.5) ? 24 * 40 : 1);
  std::vector<std::vector<EpochNumber>> before;
  const auto look = [&] {
    std::vector<std::vector<EpochNumber>> drops;
    for (const auto& [number, machine] : machines_) {
      if (!machine.removing && rig_.store().find(machine.id) != nullptr) drops.push_back(decide(machine).drop);
    }
    return drops;
  };
  observe_clocks();
  before = look();
  rig_.clock().jump_wall(leap);
  ahead_ = leap;
  observe_clocks();
  if (look() != before) return fail("something goes because the clock leapt ahead");
  ++run_.clock_jumps;
  run_.count(StoreOp::clock_jump);
}

void StoreChecker::clone(std::uint32_t number) {
  ModelMachine& machine = machines_.at(number);
  // Any point of it, one that is about to go too; or, of a clone, what it stands on.
  std::vector<std::pair<std::uint64_t, SharedContent>> points;
  for (const auto& [epoch, acked] : machine.acked) points.emplace_back(epoch, acked.content);
  if (machine.base) points.emplace_back(0, machine.base->content);
  if (points.empty()) return;
  const auto& [epoch, content] = points[random_.below(points.size())];
  const auto base = rig_.store().clone_base(machine.id, EpochNumber(epoch), kNoWait);
  if (!base) {
    const Code code = base.error().code;
    const bool going = code == Code::not_found && (machine.dropping.contains(epoch) || !machine.record_acked);
    if (!going && code != Code::busy && code != Code::timed_out && !rig_.stopped())
      fail(fmt::format("clone of {}, epoch {}: {}", machine.name, epoch, base.error().message()));
    return;
  }
  std::vector<storage::CloneName> names;
  for (std::uint64_t i = 1 + random_.below(2); i > 0; --i) {
    const std::uint32_t clone = next_machine_++;
    names.push_back({.id = machine_id(clone), .name = fmt::format("c{}", clone)});
  }
  const std::uint32_t first = next_machine_ - static_cast<std::uint32_t>(names.size());
  const auto made = rig_.store().create_clones(*base, names, "model", rig_.clock().wall_us(),
                                               [this, first, names](const Status& status) {
                                                 for (std::uint32_t i = 0; status && i < names.size(); ++i) {
                                                   const auto found = machines_.find(first + i);
                                                   if (found != machines_.end()) found->second.record_acked = true;
                                                 }
                                               });
  check_status(made, "create_clones");
  trace(fmt::format("{} clones of {}, epoch {}: {}", names.size(), machine.name, epoch, made.has_value()));
  if (!made) return;
  // One that stands on an unwritten clone stands on what that one stands on.
  ModelBase stands_on{.parent = number, .epoch = epoch, .content = content};
  if (epoch == 0) stands_on = *machine.base;
  for (std::uint32_t i = 0; i < names.size(); ++i) {
    ModelMachine& clone = machines_[first + i];
    clone.id = names[i].id;
    clone.name = names[i].name;
    clone.base = stands_on;
    for (const auto& [disk, of_disk] : *stands_on.content) clone.disks[disk] = of_disk.size;
    ++run_.clones_made;
    run_.count(StoreOp::clone);
  }
}

// Whether a clone that is surely there stands on it (nullopt: on any point of it).
bool StoreChecker::is_cloned(const ModelMachine& machine, std::optional<std::uint64_t> epoch) const {
  return std::any_of(machines_.begin(), machines_.end(), [&](const auto& one) {
    const ModelMachine& clone = one.second;
    if (!clone.base || clone.removing || !clone.record_acked) return false;
    const auto parent = machines_.find(clone.base->parent);
    return parent != machines_.end() && &parent->second == &machine && (!epoch || clone.base->epoch == *epoch);
  });
}

}  // namespace tidemark::sim
