// Commands about damage and scrubs.
#pragma once

#include <string>

#include "cli/commands.h"

namespace tidemark::cli {

// Of all machines, or of one; exit status 1 when there is any that is not healed.
Outcome show_damage(Context& context, const std::string& machine);
Outcome change_scrub(Context& context, bool start);
Outcome show_scrub(Context& context);

}  // namespace tidemark::cli
