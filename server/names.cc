#include "server/names.h"

namespace tidemark::server {

Status MachineNames::take(const std::string& name, const MachineId& machine) {
  const std::lock_guard lock(mutex_);
  const auto [at, inserted] = names_.emplace(name, machine);
  if (!inserted && at->second != machine)
    return fail(
        Code::already_exists, name, "another machine has this name",
        "choose another name, or re-enrol that machine with a token made for it: `tidemark token create --machine " +
            name + "`");
  return {};
}

void MachineNames::release(const std::string& name, const MachineId& machine) {
  const std::lock_guard lock(mutex_);
  const auto found = names_.find(name);
  if (found != names_.end() && found->second == machine) names_.erase(found);
}

std::optional<MachineId> MachineNames::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto found = names_.find(name);
  if (found == names_.end()) return std::nullopt;
  return found->second;
}

bool MachineNames::load(const std::string& name, const MachineId& machine) {
  const std::lock_guard lock(mutex_);
  return names_.emplace(name, machine).first->second == machine;
}

Result<MachineId> MachineNames::resolve(const std::string& text) const {
  if (const auto id = MachineId::parse(text)) return *id;
  if (const auto id = find(text)) return *id;
  return fail(Code::not_found, text, "no such machine", "`tidemark machines` lists them");
}

}  // namespace tidemark::server
