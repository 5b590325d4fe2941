// What the agent is doing, for whoever asks: written to status.json, drawn as a progress bar, told to the server.
// Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "agent/memory_keeper.h"
#include "agent/pace.h"
#include "agent/rate_schedule.h"
#include "base/clock.h"
#include "base/status.h"
#include "wire/tidemark.pb.h"

namespace tidemark::agent {

// The states of replication. `paused` and the like are the server's to say.
enum class State : std::uint8_t {
  stopped,
  initiating,
  initial_sync,
  creating_first_point,
  continuous,
  backlog,
  rescan,
  paused,
  stalled,
  disconnected
};
std::string_view to_string(State state);

struct DiskStatus {
  std::string path;
  std::string name;
  std::int64_t disk = -1;  // the server's number; -1: not known yet
  std::uint64_t size = 0;
};

struct StatusReport {
  std::int64_t pid = 0;
  WallMicros updated_us = 0;
  MachineId machine;
  std::string name;
  std::string command;  // "run" or "sync"; only `run` makes points that are asked for
  std::string server;
  bool connected = false;
  State state = State::stopped;
  WallMicros state_since_us = 0;
  std::uint64_t done_bytes = 0, total_bytes = 0, rate_bytes_per_second = 0, backlog_bytes = 0;
  std::string cause, remedy;
  std::string limited_by;            // a Stage, or empty: what the sending waited for in the last second
  std::string tracking;              // "ebpf" or "digests"; empty: not known yet
  WallMicros tracking_since_us = 0;  // ebpf: since when nothing escaped it
  std::string tracking_reason;       // why not ebpf
  EpochNumber application_point;     // the newest one
  WallMicros application_point_us = 0;
  std::string hooks_failure;  // since then; empty: none
  WallMicros hooks_failure_us = 0;
  std::optional<RateCap> rate_cap;  // none: no agent runs
  std::vector<DiskStatus> disks;
  WallMicros certificate_expires_us = 0;
  // From the memory.
  EpochNumber durable_epoch;
  std::string durable_consistency;
  EpochNumber newest_point;
  WallMicros newest_point_us = 0, unchanged_as_of_us = 0;
  std::string alarm;
  WallMicros alarm_us = 0;
  WallMicros proven_us = 0;  // of AuditRecord, as the next three
  std::uint64_t differences = 0;
  std::string difference;
  WallMicros difference_us = 0;

  void take(const Memory& memory);
};

// The object of docs/agent.md. `running`: nothing leaves the key out.
std::string report_json(const StatusReport& report, WallMicros now_us, std::optional<bool> running);
// For people: a few lines, or the line of a progress bar.
std::string report_text(const StatusReport& report, WallMicros now_us, bool running);
std::string size_text(std::uint64_t bytes);  // "8.0 MiB"
std::string progress_line(const StatusReport& report, std::size_t width);
Result<StatusReport> parse_report(const std::string& json, const std::string& name);

class StatusBoard {
 public:
  // `path` empty: no file. `bar`: draws on stderr. What `pace` says held the sending up becomes the cause, when there
  // is no other, of a lag.
  StatusBoard(StatusReport first, std::filesystem::path path, bool bar, const Clock& clock, const MemoryKeeper* keeper,
              Pace* pace = nullptr);
  ~StatusBoard();  // writes once more

  void set_state(State state, std::string cause = {}, std::string remedy = {});
  void set_connected(bool connected, const std::string& server);
  // The server asks to wait, for `reason`: shown as the cause, when there is no other, until the pause is over (the
  // server repeats what lasts). No pause, or the connection's end: it is over.
  void set_throttle(std::chrono::milliseconds pause, const std::string& reason);
  void set_disks(std::vector<DiskStatus> disks);
  void set_tracking(std::string tracking, WallMicros since_us, std::string reason);
  void set_application_point(EpochNumber epoch, WallMicros time_us);  // and no failure any more
  void set_hooks_failure(const std::string& failure);                 // the cause that is shown when there is no other
  void set_rate_schedule(RateSchedule schedule);
  void set_certificate_expiry(WallMicros expires_us);
  void start_progress(std::uint64_t done, std::uint64_t total);
  void set_progress(std::uint64_t done);
  void end_progress();

  StatusReport report() const;
  pb::Progress message() const;

 private:
  void publish();
  void tick(std::stop_token stop);
  StatusReport shown() const;  // with the mutex

  mutable std::mutex mutex_;
  StatusReport report_;
  std::filesystem::path path_;
  bool bar_;
  const Clock& clock_;
  const MemoryKeeper* keeper_;
  Pace* pace_;
  bool in_progress_ = false;
  std::string throttle_;
  std::optional<Stage> limit_;
  RateSchedule rates_;
  std::chrono::steady_clock::time_point throttled_until_{};
  std::uint64_t rate_from_bytes_ = 0;
  std::chrono::steady_clock::time_point rate_from_{};
  std::jthread ticker_;
};

}  // namespace tidemark::agent
