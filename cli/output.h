// What all commands write alike.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/commands.h"

namespace tidemark::cli {

int answer(const Context& context, const nlohmann::json& value);  // as JSON
// Scrubs what could act on a terminal: names and reasons come from machines.
std::string clean(std::string text);
std::string or_dash(std::string text);
// "2026-11-20 10:15:03Z (3 min ago)", or a dash.
std::string moment(const nlohmann::json& object, const char* key, WallMicros now_us);
std::string disks_of(const nlohmann::json& machine);  // how many, how large

}  // namespace tidemark::cli
