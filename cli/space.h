// Commands about space: who takes it, and how much a machine may take.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/commands.h"

namespace tidemark::cli {

Outcome show_space(Context& context);
// SIZE as the server takes it, or "none".
Outcome set_quota(Context& context, const std::string& machine, const std::string& size);

// Of a machine as the server shows it, for people; "-" when it does not say.
std::string stored_of(const nlohmann::json& machine);
std::string quota_of(const nlohmann::json& machine);  // "200 GiB, 91 %"

}  // namespace tidemark::cli
