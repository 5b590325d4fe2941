// AT of the admin API: which point of a machine is meant.
#pragma once

#include <optional>
#include <string_view>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::server {

struct Moment {
  std::optional<EpochNumber> epoch;   // "epoch:7": the newest point whose number is at most 7
  std::optional<WallMicros> time_us;  // neither: latest
};

// "latest", RFC 3339, "-15m", "epoch:N".
Result<Moment> parse_at(std::string_view text, WallMicros now_us);

// 1 to 64 of A-Z a-z 0-9 . _ -, and not 32 hex digits, which would read as an id.
Status check_machine_name(std::string_view name);

}  // namespace tidemark::server
