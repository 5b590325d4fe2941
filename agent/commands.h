// The commands of tidemark-agent. Each prints its result and returns an error, if any, to be printed by the caller.
#pragma once

#include <stop_token>
#include <string>
#include <vector>

#include "agent/state_dir.h"
#include "base/status.h"

namespace tidemark::agent {

struct EnrollCommand {
  std::string address, token, name;
  bool replace = false;
};
Status do_enroll(const StateDir& dir, const EnrollCommand& command, bool json);

struct ProtectCommand {
  std::vector<std::string> paths;
  bool all = false;
};
Status do_protect(const StateDir& dir, const ProtectCommand& command, bool json);
Status do_unprotect(const StateDir& dir, const std::vector<std::string>& paths, bool json);

struct SyncCommand {
  std::string consistency = "point";
  bool no_freeze = false;
  unsigned retry_for_s = 60;
  double rate_limit_mib_s = 0;
};
// The value: whether what was asked for was reached.
Result<bool> do_sync(const StateDir& dir, const SyncCommand& command, bool json, std::stop_token stop);
Status do_run(const StateDir& dir, std::stop_token stop);

struct PointCommand {
  bool application = false;
  bool final = false;
  double timeout_s = 60;
};
// The value: whether the point is what was asked for.
Result<bool> do_point(const StateDir& dir, const PointCommand& command, bool json, std::stop_token stop);
Status do_status(const StateDir& dir, bool json);
Status do_thaw(const StateDir& dir, bool json);
Status do_untrack(const StateDir& dir, bool json);  // nothing of this machine stays in the kernel

}  // namespace tidemark::agent
