// Commands about what stays and what goes: ladders, pins, removals, and the audit log that tells who wanted it so.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace tidemark::cli {

struct LadderRequest {
  std::string preset;              // "60", "default"
  std::string dense;               // a duration
  std::vector<std::string> rungs;  // EVERY:SPAN
};
Outcome show_ladder(Context& context, const std::string& machine);
Outcome set_ladder(Context& context, const std::string& machine, const LadderRequest& request);

struct PinRequest {
  std::string at;
  std::string name;
  std::string reason;
  std::string until;
};
Outcome pin_point(Context& context, const std::string& machine, const PinRequest& request);
Outcome unpin_point(Context& context, const std::string& machine, const std::string& pin);
Outcome list_pins(Context& context, const std::string& machine);

Outcome remove_point(Context& context, const std::string& machine, const std::string& at, const std::string& reason);
Outcome keep_point(Context& context, const std::string& machine, const std::string& at);
Outcome remove_machine(Context& context, const std::string& machine, const std::string& confirmation,
                       const std::string& reason);
Outcome unremove_machine(Context& context, const std::string& machine);

Outcome show_audit(Context& context, std::uint64_t limit);

// What holds a point, for people: "all, 10m, 1h, pin before-upgrade".
std::string holds_of(const nlohmann::json& point);

}  // namespace tidemark::cli
