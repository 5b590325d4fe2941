#include "server/space_watch.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <unordered_set>
#include <utility>

#include "server/logging.h"
#include "server/partition_host.h"
#include "server/session.h"
#include "server/shard.h"

namespace tidemark::server {
namespace {

constexpr auto kDecideEvery = std::chrono::milliseconds(500);

std::string size_text(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

}  // namespace

// --- the file systems ---

std::vector<Watermark::Decision> Watermarks::report(Watermark::Time now, const FileSystem& on,
                                                    const std::vector<Watermark::Machine>& machines) {
  const std::lock_guard lock(mutex_);
  Kept& kept = kept_.try_emplace(on.id, marks_).first->second;
  kept.on = on;
  kept.mark.note(now, machines);
  if (now - kept.decided >= kDecideEvery) {
    const auto before = kept.mark.level();
    kept.decided = now;
    kept.mark.decide(now, on.total, on.available);
    tell(kept, before);
  }
  std::vector<Watermark::Decision> decisions;
  decisions.reserve(machines.size());
  for (const auto& machine : machines) decisions.push_back(kept.mark.decision(machine.id));
  return decisions;
}

// Hysteresis bounds how often that is.
void Watermarks::tell(const Kept& kept, Watermark::Level before) const {
  using enum Watermark::Level;
  const auto level = kept.mark.level();
  if (level == before) return;
  const std::string facts =
      kv("used_percent", fmt::format("{:.1f}", kept.mark.used() * 100)) + kv("available", size_text(kept.on.available));
  if (level == full) {
    spdlog::warn("the staging file system is full: the fastest growing machines are paused{}{}", facts,
                 kv("paused", kept.mark.paused()));
  } else if (level == high && before == low) {
    spdlog::warn("the staging file system fills up: the fastest growing machines are slowed{}{}", facts,
                 kv("slowed", kept.mark.slowed()));
  } else {
    spdlog::info("the staging file system has more room again{}{}", facts, kv("level", to_string(level)));
  }
}

std::vector<Watermarks::View> Watermarks::views() const {
  const std::lock_guard lock(mutex_);
  std::vector<View> views;
  for (const auto& [id, kept] : kept_)
    views.push_back({kept.on, kept.mark.level(), kept.mark.used(), kept.mark.slowed(), kept.mark.paused()});
  return views;
}

Watermarks::View Watermarks::view(std::uint64_t file_system) const {
  for (const View& view : views())
    if (view.on.id == file_system) return view;
  return {};
}

// --- one partition's machines ---

const MachineRoom& SpaceWatch::room(const MachineId& machine) const {
  static const MachineRoom kNone;
  const auto found = rooms_.find(machine);
  return found == rooms_.end() ? kNone : found->second;
}

void SpaceWatch::tick() {
  look();
  apply();
}

void SpaceWatch::look() {
  const auto spaces = host_.partition()->machine_space();
  const auto on = host_.partition()->space();
  const Watermarks::FileSystem file_system{.id = on.file_system, .total = on.total, .available = on.available};
  std::vector<Watermark::Machine> machines;
  machines.reserve(spaces.size());
  totals_ = {};
  for (const auto& space : spaces) {
    MachineRoom& room = rooms_[space.machine];
    room.logical_bytes = space.logical_bytes;
    room.stored_bytes = space.stored_bytes;
    totals_.logical_bytes += space.logical_bytes;
    totals_.stored_bytes += space.stored_bytes;
    machines.push_back({space.machine, room.received_bytes});
  }
  if (rooms_.size() > spaces.size()) {
    std::unordered_set<MachineId> there;
    for (const auto& space : spaces) there.insert(space.machine);
    std::erase_if(rooms_, [&](const auto& one) { return !there.contains(one.first); });
  }
  Watermarks& watermarks = shard_.node().watermarks;
  const auto decisions = watermarks.report(shard_.now(), file_system, machines);
  const auto view = watermarks.view(file_system.id);
  for (std::size_t i = 0; i < machines.size(); ++i) {
    MachineRoom& room = rooms_[machines[i].id];
    room.growth = decisions[i].growth;
    judge(machines[i].id, room);
    hold(machines[i].id, room, decisions[i], view);
    totals_.near_quota += room.quota.state() == QuotaState::warning ? 1 : 0;
    totals_.over_quota += room.quota.state() == QuotaState::full ? 1 : 0;
    totals_.slowed += room.hold.kind == Watermark::Hold::slowed ? 1 : 0;
    totals_.paused += room.hold.kind == Watermark::Hold::paused ? 1 : 0;
  }
}

void SpaceWatch::judge(const MachineId& machine, MachineRoom& room) {
  const auto* const state = host_.find(machine);
  const std::uint64_t quota = state == nullptr ? 0 : state->record.quota();
  const QuotaState before = room.quota.state();
  const QuotaState now = room.quota.judge(room.stored_bytes, quota);
  room.near_quota = now != QuotaState::warning ? std::string()
                                               : fmt::format("its quota is nearly used up: it stores {} of {}",
                                                             size_text(room.stored_bytes), size_text(quota));
  if (now == before || state == nullptr) return;
  static_cast<void>(host_.observed(machine));  // what it is called may change
  const std::string facts = kv("machine", state->record.name()) + kv("id", machine.to_string()) +
                            kv("stored", size_text(room.stored_bytes)) + kv("quota", size_text(quota));
  if (now == QuotaState::full) {
    spdlog::warn("quota reached: the machine is paused{}", facts);
  } else if (now == QuotaState::warning && before != QuotaState::full) {
    spdlog::warn("quota nearly reached{}", facts);
  } else if (before == QuotaState::full || before == QuotaState::warning) {
    spdlog::info("quota has room again{}", facts);
  }
}

void SpaceWatch::hold(const MachineId& machine, MachineRoom& room, const Watermark::Decision& decision,
                      const Watermarks::View& view) {
  SpaceHold next;
  const auto* const state = host_.find(machine);
  if (room.quota.state() == QuotaState::full && state != nullptr) {
    next.kind = Watermark::Hold::paused;
    next.reason = fmt::format("its quota is used up: it stores {} of {}", size_text(room.stored_bytes),
                              size_text(state->record.quota()));
    next.remedy = "raise the quota (`tidemark machine quota " + state->record.name() +
                  " SIZE`), or let go of points; it goes on by itself when there is room";
  } else if (decision.hold != Watermark::Hold::none) {
    next.kind = decision.hold;
    next.rate = decision.rate;
    const std::string why = fmt::format("the staging file system is {:.0f} % full, and this machine grows by {}/s",
                                        view.used * 100, size_text(decision.growth));
    next.reason = decision.hold == Watermark::Hold::paused
                      ? "it is paused: " + why
                      : fmt::format("it is slowed to {}/s: {}", size_text(decision.rate), why);
    next.remedy = "free or add space on the server (`tidemark space` tells who takes it); it goes on by itself";
  }
  if (next.kind != room.hold.kind) static_cast<void>(host_.observed(machine));
  room.hold = std::move(next);
}

void SpaceWatch::apply() {
  for (auto& [machine, room] : rooms_) {
    if (Session* const session = host_.session_of(machine)) session->hold(room.hold);
  }
}

}  // namespace tidemark::server
