#include "cli/integrity.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/output.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

std::uint64_t number(const json& object, const char* key) { return number_at(object, key).value_or(0); }

std::string points_of(const json& damage) {
  const auto first = number_at(damage, "first_epoch");
  if (!first) return text_at(damage, "state") == "open" ? "none yet" : "being worked out";
  const auto last = number_at(damage, "last_epoch");
  return fmt::format("{}: epoch {} {}", number(damage, "points"), *first,
                     last ? "to " + std::to_string(*last) : "and all after it");
}

std::string state_of(const json& damage) {
  const std::string state = text_at(damage, "state");
  if (state == "healed") return "healed";
  if (state == "damaged") return "to be sent again";
  return state == "open" ? "epoch still open" : "just found";
}

std::string place_of(const json& damage) {
  return fmt::format("{} {} at {}", flag_at(damage, "cold") ? "cold" : "log", number(damage, "segment"),
                     number(damage, "segment_offset"));
}

void print_scrub(const Context& context, const json& scrub) {
  const WallMicros now = context.clock.wall_us();
  std::ostream& out = context.out;
  if (flag_at(scrub, "running")) {
    std::uint64_t done = 0, all = 0;
    for (const json& partition : array_at(scrub, "partitions")) {
      if (!flag_at(partition, "running")) continue;
      done += number(partition, "volumes_done");
      all += number(partition, "volumes");
    }
    out << fmt::format("a scrub is running: {} read, {} of {} disks done, {} damaged so far\n",
                       human_size(number(scrub, "bytes")), done, all, number(scrub, "damaged"));
  } else {
    out << "no scrub is running\n";
  }
  if (time_at(scrub, "last_completed")) {
    out << fmt::format("last completed: {}, {} read, {} damaged\n", moment(scrub, "last_completed", now),
                       human_size(number(scrub, "last_bytes")), number(scrub, "last_damaged"));
  } else {
    out << "last completed: never, in all partitions\n";
  }
  if (time_at(scrub, "next")) out << "next by itself: " << moment(scrub, "next", now) << '\n';
  out << fmt::format("rate: {}/s at most\n", human_size(number(scrub, "rate_bytes_per_s")));
}

}  // namespace

Outcome show_damage(Context& context, const std::string& machine) {
  const json found =
      TIDEMARK_TRY(context.client.get(machine.empty() ? "/v1/damage" : machine_path(machine, "/damage")));
  const json& damage = array_at(found, "damage");
  const json& segments = array_at(found, "segments");
  const json& incomplete = array_at(found, "incomplete");
  bool unhealed = !segments.empty() || !incomplete.empty();
  for (const json& one : damage) unhealed = unhealed || text_at(one, "state") != "healed";
  const int status = unhealed ? 1 : 0;
  if (context.json) {
    answer(context, found);
    return status;
  }
  if (damage.empty() && segments.empty() && incomplete.empty()) {
    context.out << "no damage is known\n";
    return 0;
  }
  const WallMicros now = context.clock.wall_us();
  if (!damage.empty()) {
    using enum Table::Align;
    Table table({{"MACHINE"},
                 {"DISK"},
                 {"OFFSET", right},
                 {"LENGTH", right},
                 {"STATE"},
                 {"POINTS AFFECTED"},
                 {"FOUND"},
                 {"STORED IN"},
                 {"WHAT"}});
    for (const json& one : damage) {
      std::string disk = text_at(one, "disk_name");
      if (disk.empty()) disk = std::to_string(number(one, "disk"));
      std::string name = text_at(one, "machine");
      if (name.empty()) name = text_at(one, "id");
      table.add({clean(name), clean(disk), std::to_string(number(one, "offset")), std::to_string(number(one, "length")),
                 state_of(one), points_of(one), moment(one, "found", now), place_of(one), clean(text_at(one, "what"))});
    }
    table.print(context.out);
  }
  for (const json& segment : segments)
    context.out << fmt::format(
        "partition {}, {} segment {}, bytes {} to {}: {} (what blocks it holds can be read is checked one by one; an "
        "index that is lost could not be made again from it)\n",
        number(segment, "partition"), flag_at(segment, "cold") ? "cold" : "log", number(segment, "segment"),
        number(segment, "first_byte"), number(segment, "end_byte"), clean(text_at(segment, "what")));
  for (const json& id : incomplete)
    context.out << "machine " << clean(id.is_string() ? id.get<std::string>() : id.dump())
                << ": there is more damage than the list holds\n";
  return status;
}

Outcome change_scrub(Context& context, bool start) {
  const json scrub = TIDEMARK_TRY(context.client.post(start ? "/v1/scrub/start" : "/v1/scrub/stop", json::object()));
  if (context.json) return answer(context, scrub);
  print_scrub(context, scrub);
  return 0;
}

Outcome show_scrub(Context& context) {
  const json scrub = TIDEMARK_TRY(context.client.get("/v1/scrub"));
  if (context.json) return answer(context, scrub);
  print_scrub(context, scrub);
  return 0;
}

}  // namespace tidemark::cli
