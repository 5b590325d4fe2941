// The agent's memory, shared by the thread that talks to the server and the one that syncs; every change that matters
// is on the disk when the call returns. Thread-safe.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>

#include "agent/memory.h"

namespace tidemark::agent {

class MemoryKeeper {
 public:
  MemoryKeeper(std::filesystem::path path, Memory memory, std::string boot_id);

  Memory get() const;  // a copy
  // Each returns the error of the file, if any: the caller ends the session, for what is not remembered must not go on.
  Status set_pending(EpochFacts epoch);
  // `session` is AgentSession::memory() at that moment.
  Status durable(const wire::AgentMemory& session, EpochNumber epoch, const Hash128& digest);
  Status session_changed(const wire::AgentMemory& session);
  // Saved at most once a second: an older position only means that a little more is sent again.
  Status progress(const wire::AgentMemory& session);
  Status change(const std::function<void(Memory&)>& change);

 private:
  Status save();  // with mutex_ held

  mutable std::mutex mutex_;
  std::filesystem::path path_;
  Memory memory_;
  std::string boot_id_;
  std::chrono::steady_clock::time_point progress_saved_{};
};

}  // namespace tidemark::agent
