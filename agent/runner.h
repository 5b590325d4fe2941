// The agent at work: connects, makes epochs, and comes back after whatever went wrong. `run` and `sync --once` are
// this.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/block_device.h"
#include "agent/choose_tracker.h"
#include "agent/config.h"
#include "agent/engine.h"
#include "agent/state_dir.h"
#include "base/clock.h"
#include "base/status.h"

namespace tidemark::agent {

struct RunOptions {
  bool once = false;
  bool want_point = true;                                            // once: a fuzzy epoch is followed by more tries
  std::chrono::seconds retry_for{60};                                // once: without an answer of the server
  bool bar = false;                                                  // draw a progress bar on stderr
  decltype(&choose_tracker) choose = &choose_tracker;                // another one in tests
  std::chrono::milliseconds track_again = std::chrono::minutes(10);  // what the kernel refused is tried again so often
  UnusedSpace unused;                                                // for tests: in place of what the disks say
  // For tests: in place of the disks there are.
  std::function<Result<std::vector<std::string>>()> whole_disks = [] { return list_whole_disks({}); };
};

struct RunOutcome {
  std::vector<EpochReport> epochs;  // once: all that were made
  int reconnects = 0;
};

// The state directory's lock is held by the caller. Returns when stopped (not an error), when `once` is done, or with
// an error that no retry can mend.
Result<RunOutcome> run_agent(const Config& config, const StateDir& dir, const RunOptions& options, const Clock& clock,
                             std::stop_token stop);

// What to do after a link ended so. Pure.
struct Retry {
  bool again = false;
  std::chrono::milliseconds at_least{0};
};
Retry retry_after(const LinkEnd& end);

}  // namespace tidemark::agent
