// What changed between two points of a machine.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/client.h"
#include "cli/commands.h"
#include "cli/disk_map.h"

namespace tidemark::cli {

struct DiffRequest {
  std::string machine{};
  std::string from{}, to{};  // as the user gave them
  std::string disk{};
  bool written = false;  // what was written, whether it is another content or not: from the index alone
};

// Calls `take` with each changed range, disk by disk and in order. The answer is the last line of the server's: totals.
// `from` and `to` name points exactly.
Result<nlohmann::json> read_diff(AdminClient& client, const DiffRequest& request,
                                 const std::function<Status(std::uint64_t disk, const Extent& range)>& take);

Outcome run_diff(Context& context, const DiffRequest& request);

}  // namespace tidemark::cli
