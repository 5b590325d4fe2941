// Which way of finding changes: by the kernel's marks or by digests. Says aloud which one it is, and why.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "agent/config.h"
#include "agent/source_set.h"
#include "agent/tracker.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::agent {

struct ChosenTracker {
  std::unique_ptr<Tracker> tracker;
  std::string why;     // not by the kernel: a sentence
  bool again = false;  // what the kernel refused may be had later
};

// `sources` are open. `once`: what is pinned is used, but nothing is left behind that was not there, unless the
// configuration asks for it. An error only when the configuration insists on what cannot be had.
Result<ChosenTracker> choose_tracker(const Config& config, const MachineId& machine, const std::string& boot_id,
                                     SourceSet& sources, bool once, const Clock& clock);

// Where this machine's tracking is pinned.
std::filesystem::path pins_of(const Config& config, const MachineId& machine);

}  // namespace tidemark::agent
