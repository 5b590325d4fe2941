// A point that somebody asks the running agent for: one file in the state directory with the request, one with the
// answer. The directory is root's alone, and so is the asking.
//
//   asker:  lock point.lock; write point.request; wait for point.answer of the same id; remove it
//   agent:  sees point.request; makes the point; writes point.answer; removes point.request
//
// Each file is replaced as a whole. A request names the process that it is for: one that an earlier agent left over is
// not served. Whoever asked takes a request back by removing it; one whose asker was killed is dropped after its time.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

#include "agent/engine.h"
#include "agent/file_descriptor.h"
#include "agent/state_dir.h"
#include "base/clock.h"
#include "base/status.h"

namespace tidemark::agent {

struct PointRequest {
  std::string id;  // random
  pid_t agent = 0;
  bool application = false;
  bool final = false;  // the agent ends once the point is durable
  std::chrono::milliseconds timeout{60'000};
};

struct PointAnswer {
  std::string id;
  std::optional<Error> error;  // none: the point is durable
  EpochNumber epoch;
  WallMicros time_us = 0;
  std::string consistency;
  bool final = false;              // the agent ends
  std::string hooks_failure;       // asked for an application point, and why it is none
  std::string post_hooks_failure;  // post hooks that failed
  double seconds = 0, frozen_seconds = 0, held_seconds = 0;
};

// The agent's side. Belongs to one thread.
class PointRequests {
 public:
  PointRequests(const StateDir& dir, const Clock& clock) : dir_(dir), clock_(clock) {}
  // What was asked for before this agent began.
  void drop_stale();
  // The request to be served now, seen again at every call; nothing: there is none, or it was taken back.
  const PointRequest* current();
  // Answers it, if there is one. Done before the process may end.
  void answer(PointAnswer answer);
  void refuse(const Error& error);

 private:
  const StateDir& dir_;
  const Clock& clock_;
  std::optional<PointRequest> current_;
  std::chrono::steady_clock::time_point drop_at_{};
  std::string ignored_;  // the text of a request that is none: said once
};

// The asker's side.
class PointAsker {
 public:
  // busy: somebody else is asking.
  static Result<PointAsker> start(const StateDir& dir);
  Status ask(const PointRequest& request);
  Result<std::optional<PointAnswer>> answer(const std::string& id);  // and takes it away
  void take_back();

 private:
  PointAsker(const StateDir& dir, FileDescriptor lock) : dir_(&dir), lock_(std::move(lock)) {}
  const StateDir* dir_;
  FileDescriptor lock_;
};

}  // namespace tidemark::agent
