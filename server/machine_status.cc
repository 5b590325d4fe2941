#include "server/machine_status.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "storage/partition.h"
#include "wire/tidemark.pb.h"

namespace tidemark::server {
namespace {

constexpr WallMicros kDifferenceAlarmUs = WallMicros{86'400} * 1'000'000;  // an audit's finding is an alarm for a day

constexpr std::array<const char*, 9> kAgentStates = {"initiating", "initial-sync", "creating-first-point",
                                                     "continuous", "backlog",      "rescan",
                                                     "paused",     "stalled",      "stopped"};

// How much of an initial sync is durable, by the positions of its disks.
void initial_progress(const storage::pb::OpenEpochEntry& open, StatusView& view, bool& complete) {
  std::uint64_t total = 0, done = 0;
  for (const auto& disk : open.disks()) {
    total += disk.size();
    for (const auto& position : open.positions())
      if (position.disk() == disk.disk()) done += std::min(position.size() * limits::kGranuleSize, disk.size());
  }
  complete = total > 0 && done == total;
  if (total > 0) view.percent = 100.0 * static_cast<double>(done) / static_cast<double>(total);
}

void use_agents_word(const Observed& observed, StatusView& view) {
  view.state = observed.state;
  view.cause = observed.cause;
  view.remedy = observed.remedy;
  if (observed.total_bytes == 0) return;
  const std::uint64_t done = std::min(observed.done_bytes, observed.total_bytes);
  view.percent = 100.0 * static_cast<double>(done) / static_cast<double>(observed.total_bytes);
  if (observed.rate_bytes_per_s > 0) view.eta_seconds = (observed.total_bytes - done) / observed.rate_bytes_per_s;
}

void connected_state(const storage::MachineState& machine, const Observed& observed, StatusView& view) {
  const bool known = std::find(kAgentStates.begin(), kAgentStates.end(), observed.state) != kAgentStates.end();
  bool complete = false;
  if (machine.open_epoch && machine.open_epoch->kind() == pb::INITIAL)
    initial_progress(*machine.open_epoch, view, complete);
  if (known) return use_agents_word(observed, view);
  if (machine.open_epoch && machine.open_epoch->kind() == pb::INITIAL) {
    view.state = complete ? "creating-first-point" : "initial-sync";
  } else if (machine.open_epoch && machine.open_epoch->kind() == pb::RESCAN) {
    view.state = "rescan";
  } else if (machine.newest_point.value() == 0) {
    view.state = machine.durable_epoch.value() == 0 ? "initiating" : "creating-first-point";
  } else {
    view.state = observed.backlog_bytes > 0 ? "backlog" : "continuous";
  }
}

// From when on a new point is due.
WallMicros waiting_since(const storage::MachineState& machine, const Observed& observed, const StatusRules& rules) {
  return std::max({machine.newest_point_us, machine.unchanged_as_of_us, WallMicros{machine.record.enrolled_us()},
                   rules.server_started_us, observed.connected ? observed.initial_progress_us : 0});
}

}  // namespace

bool no_new_point(const storage::MachineState& machine, const Observed& observed, WallMicros now_us,
                  const StatusRules& rules) {
  return !machine.record.removed() &&
         now_us - waiting_since(machine, observed, rules) > WallMicros{rules.no_point_minutes} * 60'000'000;
}

StatusView derive_status(const storage::MachineState& machine, const Observed& observed, WallMicros now_us,
                         const StatusRules& rules) {
  StatusView view;
  view.backlog_bytes = observed.backlog_bytes;
  const auto& record = machine.record;
  if (!rules.partition_trouble.empty()) {
    view.state = "stopped";
    view.cause = rules.partition_trouble;
    view.remedy = "see the server's log and GET /v1/health";
  } else if (record.revoked()) {
    view.state = "stopped";
    view.cause = "its certificates are revoked";
    view.remedy = "enrol it again with a token made for it: `tidemark token create --machine " + record.name() + "`";
  } else if (observed.connected) {
    connected_state(machine, observed, view);
  } else {
    view.state = "disconnected";
    view.cause = observed.last_error.empty() ? "its agent is not connected" : observed.last_error;
    view.remedy = observed.last_error_remedy.empty() ? "check that tidemark-agent runs there and reaches this server"
                                                     : observed.last_error_remedy;
  }
  const bool told_to_wait = view.cause.starts_with("the server asks to wait");  // by us, for the same reason
  if (observed.connected && !observed.held_by.empty() && (observed.paused || view.cause.empty() || told_to_wait)) {
    if (observed.paused) view.state = "paused";
    view.cause = observed.held_by;
    view.remedy = observed.held_remedy;
  }
  if (observed.connected && !observed.waits_for.empty() && view.cause.empty()) {
    view.cause = observed.waits_for;
    view.remedy = "it goes on by itself; if it lasts, look at the staging disk";
  }
  if (!record.quarantine().empty() && !observed.connected) {
    view.state = "stopped";
    view.cause = record.quarantine();
    view.remedy = "if the newcomer took its place: `tidemark machine accept " + record.name() +
                  "`; if it is a clone: `tidemark machine keep " + record.name() + "`";
  }

  const WallMicros held_us = std::max(machine.newest_point_us, machine.unchanged_as_of_us);
  if (machine.newest_point.value() != 0) view.lag_seconds = std::max(0.0, static_cast<double>(now_us - held_us) / 1e6);
  view.alarm = no_new_point(machine, observed, now_us, rules);
  if (view.alarm && view.cause.empty()) {
    view.cause =
        fmt::format("no new point for {} minutes", (now_us - waiting_since(machine, observed, rules)) / 60'000'000);
    view.remedy = "see the agent's log on the machine";
  }
  const StoredDamage& damage = observed.damage;
  if (damage.newest || damage.unlisted) {
    view.alarm = true;
    if (!view.cause.empty()) return view;
    view.cause = fmt::format("{} stored blocks, {} bytes, of its newest state are damaged{}", damage.extents,
                             damage.bytes, damage.unlisted ? ", and more than could be listed" : "");
    view.remedy = fmt::format(
        "its agent is asked to send them again; `tidemark damage {}` tells which points are affected", record.name());
  }
  if (observed.differences != 0 && now_us - observed.difference_us < kDifferenceAlarmUs) {
    view.alarm = true;
    if (!view.cause.empty()) return view;
    view.cause =
        fmt::format("{} blocks differed from the source; the last: {}", observed.differences, observed.difference);
    view.remedy = "they were sent again; see what wrote to the disk unseen, and trust older points with care";
  }
  if (view.cause.empty() && !observed.near_quota.empty()) {
    view.cause = observed.near_quota;
    view.remedy = "raise the quota (`tidemark machine quota " + record.name() + " SIZE`), or let go of points";
  }
  return view;
}

}  // namespace tidemark::server
