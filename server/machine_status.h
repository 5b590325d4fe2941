// What an operator is told about a machine: one of ten states, since when, how far, how late, and when it is not
// healthy why and what to do. Pure: from what the store knows, what its session was told, and the time.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/ids.h"

namespace tidemark::storage {
struct MachineState;
}

namespace tidemark::server {

// Of what is stored of a machine.
struct StoredDamage {
  std::uint64_t extents = 0, bytes = 0, points = 0;  // points that show some of it
  bool newest = false;                               // its newest state does
  bool unlisted = false;                             // there is more than is counted here
  bool any() const { return extents != 0 || unlisted; }
};

// What the agent said last, and what was seen of its connection. Kept by the machine's shard.
struct Observed {
  bool connected = false;
  std::string address;  // the last one
  std::string agent_version;
  std::int64_t certificate_expires_us = 0;
  WallMicros last_seen_us = 0;  // of the last connection's end
  // The agent's last Progress.
  std::string state;  // empty: none in this session
  std::uint64_t done_bytes = 0, total_bytes = 0, rate_bytes_per_s = 0, backlog_bytes = 0;
  std::string cause, remedy;
  // What its audit found: since when all was compared or sent, and how often the replica was wrong.
  WallMicros proven_us = 0, difference_us = 0;
  std::uint64_t differences = 0;
  std::string difference;
  std::string waits_for;  // why its session is asked to wait; empty: it is not
  // For want of space (server/space_watch.h): why it is held, and whether it is paused; and that its quota nears its
  // end.
  std::string held_by, held_remedy, near_quota;
  bool paused = false;
  WallMicros initial_progress_us = 0;  // when an initial epoch last came further
  std::string last_error;              // why its last connection was refused or ended
  std::string last_error_remedy;
  StoredDamage damage;
};

struct StatusView {
  std::string state;
  std::optional<double> percent;
  std::optional<std::uint64_t> eta_seconds;
  std::string cause, remedy;  // empty when healthy
  std::optional<double> lag_seconds;
  std::uint64_t backlog_bytes = 0;
  bool alarm = false;  // no new point for too long, its newest state is damaged, or its audit found it wrong
};

struct StatusRules {
  WallMicros server_started_us = 0;
  std::uint32_t no_point_minutes = 10;
  std::string partition_trouble;  // empty: its partition serves
};

// Whether the alarm "no new point" is on. Cheap: asked for every machine again and again.
bool no_new_point(const storage::MachineState& machine, const Observed& observed, WallMicros now_us,
                  const StatusRules& rules);

StatusView derive_status(const storage::MachineState& machine, const Observed& observed, WallMicros now_us,
                         const StatusRules& rules);

}  // namespace tidemark::server
