#include "cli/space.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/output.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

std::string size_at(const json& object, const char* key) {
  const auto bytes = number_at(object, key);
  return bytes ? human_size(*bytes) : "-";
}

std::string used_of(const json& space) {
  const auto quota = number_at(space, "quota_bytes");
  if (!quota || *quota == 0) return "none";
  const std::uint64_t percent = number_at(space, "stored_bytes").value_or(0) * 100 / *quota;
  return fmt::format("{}, {} %", human_size(*quota), percent);
}

std::string held_of(const json& space) {
  const std::string held = or_dash(text_at(space, "held"));
  return held == "slowed" ? "slowed to " + size_at(space, "rate_bytes_per_s") + "/s" : held;
}

const json& space_at(const json& machine) {
  static const json kNone = json::object();
  const auto found = machine.find("space");
  return found != machine.end() && found->is_object() ? *found : kNone;
}

void print_file_systems(std::ostream& out, const json& space) {
  for (const json& one : array_at(space, "file_systems")) {
    const auto used = one.find("used_percent");
    out << fmt::format("file system  {:.0f} % of {} in use, {} free",
                       used != one.end() && used->is_number() ? used->get<double>() : 0.0, size_at(one, "total_bytes"),
                       size_at(one, "available_bytes"));
    if (const std::string level = text_at(one, "level"); level == "high" || level == "full")
      out << fmt::format(": above {}, {} machines slowed, {} paused",
                         level == "high" ? "the high mark" : "the mark at which machines are paused",
                         number_at(one, "slowed").value_or(0), number_at(one, "paused").value_or(0));
    out << '\n';
  }
  out << "nothing new is taken in below " << size_at(space, "free_space_min") << " free\n";
}

}  // namespace

std::string stored_of(const json& machine) { return size_at(space_at(machine), "stored_bytes"); }
std::string quota_of(const json& machine) { return used_of(space_at(machine)); }

Outcome show_space(Context& context) {
  const json space = TIDEMARK_TRY(context.client.get("/v1/space"));
  if (context.json) return answer(context, space);
  using enum Table::Align;
  Table table({{"NAME"},
               {"DISKS", right},
               {"STORED", right},
               {"IN LOG", right},
               {"COLD", right},
               {"INDEX", right},
               {"QUOTA", right},
               {"GROWS BY", right},
               {"HELD"}});
  for (const json& machine : array_at(space, "machines"))
    table.add({or_dash(text_at(machine, "name")), size_at(machine, "logical_bytes"), size_at(machine, "stored_bytes"),
               size_at(machine, "stored_log_bytes"), size_at(machine, "stored_cold_bytes"),
               size_at(machine, "index_bytes"), used_of(machine), size_at(machine, "growth_bytes_per_s") + "/s",
               held_of(machine)});
  table.print(context.out);
  context.out << '\n';
  if (const auto totals = space.find("totals"); totals != space.end() && totals->is_object()) {
    context.out << fmt::format("in all       disks {}, stored {}\n", size_at(*totals, "logical_bytes"),
                               size_at(*totals, "stored_bytes"));
    context.out << fmt::format(
        "on disk      log {}, cold {} (of both {} is not stored data: what is overwritten and "
        "not yet given back, headers, what is not filled yet), reserve {}, index {}\n",
        size_at(*totals, "log_bytes"), size_at(*totals, "cold_bytes"), size_at(*totals, "garbage_bytes"),
        size_at(*totals, "reserve_bytes"), size_at(*totals, "index_bytes"));
  }
  print_file_systems(context.out, space);
  return 0;
}

Outcome set_quota(Context& context, const std::string& machine, const std::string& size) {
  const json body = {{"quota", size}};
  const json changed = TIDEMARK_TRY(context.client.put(machine_path(machine, "/quota"), body));
  if (context.json) return answer(context, changed);
  context.out << clean(text_at(changed, "name")) << ": quota " << quota_of(changed) << ", stored " << stored_of(changed)
              << '\n';
  if (const std::string note = text_at(changed, "note"); !note.empty()) context.out << clean(note) << '\n';
  return 0;
}

}  // namespace tidemark::cli
