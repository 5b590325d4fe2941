// The log of tidemarkd, on stderr. Every line is an event in words, then key=value pairs; with log_format = "json" the
// same line becomes one JSON object a line: {"time","level","event","key":"value",...}.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::server {

// Sets up spdlog's default logger for the whole process. Level and format are names of the configuration.
void start_logging(const std::string& level, const std::string& format);

// " key=value", quoted when it is not one plain word.
std::string kv(std::string_view key, std::string_view value);
std::string kv(std::string_view key, const char* value);
std::string kv(std::string_view key, std::uint64_t value);
// " code=... object=... why=... remedy=..." as far as there are any.
std::string kv(const Error& error);

// The JSON object for one line of text, without its time and level: "event":"...","key":"value".
std::string log_line_to_json(std::string_view line);
std::string json_escape(std::string_view text);

}  // namespace tidemark::server
