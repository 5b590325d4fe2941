// Has the server read and check everything of a point.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/client.h"
#include "cli/commands.h"
#include "cli/progress.h"

namespace tidemark::cli {

// `damage` is told of each damaged range at once. The answer is {"machine", "epoch", "time", "ok", "sha256",
// "damaged"}.
Result<nlohmann::json> verify_point(AdminClient& client, const std::string& machine, const std::string& at,
                                    Progress& progress, const std::function<void(const nlohmann::json&)>& damage = {});

Outcome run_verify(Context& context, const std::string& machine, const std::string& at);

}  // namespace tidemark::cli
