// Commands about clones of points.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace tidemark::cli {

struct CloneRequest {
  std::string at;
  std::string name;         // empty: the server's choice
  std::uint64_t count = 0;  // 0: one, by that name; else NAME-1 to NAME-count
};
Outcome create_clones(Context& context, const std::string& machine, const CloneRequest& request);
Outcome list_clones(Context& context);
// A socket where this clone alone is to be had over NBD, its first disk under the name "" too.
Outcome serve_clone(Context& context, const std::string& name, const std::string& nbd);
Outcome unserve_clone(Context& context, const std::string& name);
Outcome drop_clones(Context& context, const std::vector<std::string>& names);

}  // namespace tidemark::cli
