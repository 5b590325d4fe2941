// Applications that stand still for a cut: the hooks of pre-cut.d hold them, those of post-cut.d let them go on.
//
// The idea: an object that holds, as a lock does. The hooks of pre-cut.d are run in the order of their names when it is
// made, those of post-cut.d in the reverse order when it is released, whatever happened between. A post hook that has
// the name of a pre hook which was not begun is left out; every other one is run, once. A hold that nobody releases in
// time ends by itself.
//
// Before the first pre hook is begun, a record in the state directory says so; it goes when the last post hook was run.
// After an agent that was killed, release_leftovers() does what is left: a post hook may so be run twice.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "agent/hook_folder.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::agent {

struct HookSettings {
  std::filesystem::path folder;  // holds pre-cut.d and post-cut.d
  std::filesystem::path state_dir;
  std::chrono::milliseconds hook_limit{30'000};  // of each
  std::chrono::milliseconds hold_limit{60'000};  // from the last pre hook to the first post hook
  std::string machine;                           // its id
  std::string name;
};

// Belongs to one thread. While it lives, a thread of its own guards the limit.
class Quiesce {
 public:
  // Runs the pre hooks, up to the first that fails. `stop`: the hook at hand is ended, the others are not begun. No
  // hooks, or ones that others may write to: nothing is run, and failure() says so.
  Quiesce(HookSettings settings, EpochNumber epoch, const std::stop_token& stop);
  ~Quiesce();  // releases
  Quiesce(const Quiesce&) = delete;
  Quiesce& operator=(const Quiesce&) = delete;

  // Why the applications do not stand still, in a sentence that names the hook. Empty: they do, or did.
  const std::string& failure() const { return failure_; }
  // Runs the post hooks, or waits for them. True when the applications stood still from the last pre hook to this call.
  bool release();
  // After release().
  std::vector<std::string> post_failures() const;  // "post-cut.d/NAME: exit status 3"
  double held_seconds() const { return held_seconds_; }

 private:
  Status find_hooks();
  void run_pre(EpochNumber epoch, const std::stop_token& stop);
  void run_post();
  void guard(const std::stop_token& over);

  HookSettings settings_;
  EpochNumber epoch_;
  std::string failure_;
  std::vector<Hook> pre_, post_;
  std::vector<std::string> begun_;
  std::vector<std::string> post_failures_;
  std::chrono::steady_clock::time_point held_from_{};
  double held_seconds_ = 0;

  enum class Hold : std::uint8_t { none, holds, released, expired };
  std::atomic<Hold> hold_{Hold::none};
  std::once_flag post_once_;
  std::jthread guard_;
};

// Is there a record?
bool anything_held(const std::filesystem::path& state_dir);
// What is left of an agent that was killed while applications stood still: its post hooks are run. Nothing when there
// is no record; else what went wrong, each in a sentence that names the hook; none: all went well.
Result<std::optional<std::vector<std::string>>> release_leftovers(const HookSettings& settings);

}  // namespace tidemark::agent
