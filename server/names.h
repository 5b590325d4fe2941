// Who is called what: every machine's name in all partitions of the server, so that a name is taken once. Thread-safe.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "base/ids.h"
#include "base/status.h"

namespace tidemark::server {

class MachineNames {
 public:
  // Takes a name for a machine. Code::already_exists when another has it. Taking one's own again is well.
  Status take(const std::string& name, const MachineId& machine);
  void release(const std::string& name, const MachineId& machine);
  std::optional<MachineId> find(const std::string& name) const;
  // From a catalog at start. False when another machine has it already: then only the id tells them apart.
  bool load(const std::string& name, const MachineId& machine);
  // A name or an id.
  Result<MachineId> resolve(const std::string& text) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, MachineId> names_;
};

}  // namespace tidemark::server
