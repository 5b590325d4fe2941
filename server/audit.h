// Who did what to machines and points: `audit.log` in the data directory, one JSON object a line, only ever appended
// to. An action is answered after its line is durable. An administrator may move the file away; it is made anew.
// Blocking; thread-safe; not on a shard's thread.
#pragma once

#include <cstddef>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace tidemark::server {

struct AuditEntry {
  std::string who;              // a user's name, "uid N", or "server"
  std::optional<unsigned> uid;  // absent: the server itself
  std::optional<int> pid;
  std::string action;          // "machine.remove", "pin.add" ...
  std::string object;          // the machine, and what of it
  std::optional<Error> error;  // absent: done
  std::string details;         // what else was asked, or what came of it
};

class AuditLog {
 public:
  AuditLog(std::string path, const Clock& clock) : path_(std::move(path)), clock_(clock) {}
  // Whether a line could be written now: asked before something is done that could not be recorded then.
  Status ready();
  Status append(const AuditEntry& entry);  // durable when it returns well
  // The last `limit` lines, oldest first. A line that a crash left torn is passed over.
  Result<std::vector<nlohmann::json>> read(std::size_t limit);

 private:
  const std::string path_;
  const Clock& clock_;
  std::mutex mutex_;
};

}  // namespace tidemark::server
