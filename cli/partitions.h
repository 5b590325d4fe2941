// The commands about the server's partitions and the disks they stand on.
#pragma once

#include <cstdint>

#include "cli/commands.h"

namespace tidemark::cli {

Outcome show_health(Context& context);
Outcome open_partition(Context& context, std::uint32_t partition);

}  // namespace tidemark::cli
