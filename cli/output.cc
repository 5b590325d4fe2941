#include "cli/output.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"

namespace tidemark::cli {

using nlohmann::json;

std::string clean(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
  return text;
}

std::string or_dash(std::string text) { return text.empty() ? "-" : clean(std::move(text)); }

std::string moment(const json& object, const char* key, WallMicros now_us) {
  const auto time = time_at(object, key);
  return time ? human_time(*time) + " (" + human_age(*time, now_us) + ")" : "-";
}

std::string disks_of(const json& machine) {
  std::uint64_t bytes = 0;
  const json& disks = array_at(machine, "disks");
  for (const json& disk : disks) bytes += number_at(disk, "size").value_or(0);
  return fmt::format("{}, {}", disks.size(), human_size(bytes));
}

int answer(const Context& context, const json& value) {
  context.out << value.dump(2, ' ', false, json::error_handler_t::replace) << '\n';
  return 0;
}

}  // namespace tidemark::cli
