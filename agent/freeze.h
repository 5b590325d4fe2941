// Freezing file systems for the read of the differences, with a watchdog that thaws them whatever happens.
//
// The watchdog is a process of its own, forked before the first freeze. It thaws when the limit has passed, or when the
// agent dies (its end of a pipe closes), and knows by intents and results which file systems were frozen by us. Should
// the watchdog die, the agent notices at its next look and thaws. Both dying at one blow (a killed control group)
// leaves a record in the state directory, which `thaw` and the next start undo; that directory must therefore not lie
// on a frozen file system.
//
// A Freeze belongs to one thread. While one exists the agent must not write to the frozen file systems.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "agent/file_descriptor.h"
#include "base/status.h"

namespace tidemark::agent {

class Freeze {
 public:
  // Freezes the file systems mounted there, last one first, since a later mount may stand on an earlier one (a loop
  // device's). permission_denied, with nothing frozen, when `state_dir` or the agent's log (stderr) lies on one of
  // them; busy when somebody else has frozen one; timed_out when freezing took longer than `limit`.
  static Result<std::unique_ptr<Freeze>> start(const std::vector<std::string>& mountpoints,
                                               std::chrono::milliseconds limit, const std::filesystem::path& state_dir);
  ~Freeze();  // thaws
  Freeze(const Freeze&) = delete;
  Freeze& operator=(const Freeze&) = delete;

  // All frozen since start() returned? Once false it stays so. Thaws when the watchdog is gone.
  bool intact();
  // Undoes the freeze; true when it was intact up to this call.
  Result<bool> thaw();

  pid_t watchdog() const { return watchdog_; }  // for tests, which kill it

 private:
  Freeze() = default;
  struct Place {
    std::string mountpoint;
    FileDescriptor folder;
    bool frozen = false;
  };
  Status start_watchdog(std::chrono::milliseconds limit);
  Status freeze_all();
  Status thaw_own();  // what this process froze; harmless where the watchdog was faster
  void tell(char what, std::size_t place);

  std::vector<Place> places_;
  std::filesystem::path record_;
  FileDescriptor to_watchdog_;
  FileDescriptor from_watchdog_;
  pid_t watchdog_ = -1;
  bool broken_ = false;
  bool done_ = false;
};

// Thaws what the record in `state_dir` names, and removes it. The mount points thawed; empty when there is no record.
Result<std::vector<std::string>> thaw_leftovers(const std::filesystem::path& state_dir);

}  // namespace tidemark::agent
