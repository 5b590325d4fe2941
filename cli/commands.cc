#include "cli/commands.h"

#include <fmt/format.h>

#include <charconv>
#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/output.h"
#include "cli/retention.h"
#include "cli/space.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

std::string seconds_of(const json& object, const char* key) {
  const auto seconds = number_at(object, key);
  return seconds ? human_duration(static_cast<std::int64_t>(*seconds)) : "-";
}

std::string size_of(const json& object, const char* key) {
  const auto bytes = number_at(object, key);
  return bytes ? human_size(*bytes) : "-";
}

bool quarantined(const json& machine) {
  return flag_at(machine, "quarantine") || !text_at(machine, "quarantine").empty();
}

std::string state_of(const json& machine) {
  std::string state = or_dash(text_at(machine, "state"));
  if (flag_at(machine, "revoked")) state += ", revoked";
  if (quarantined(machine)) state += ", quarantined";
  if (flag_at(machine, "alarm")) state += ", alarm";
  if (const auto removal = machine.find("removal"); removal != machine.end() && removal->is_object())
    state += ", to be removed";
  return state;
}

std::string percent_of(const json& machine) {
  const auto found = machine.find("percent");
  return found != machine.end() && found->is_number() ? fmt::format("{:.0f} %", found->get<double>()) : "-";
}

void field(std::ostream& out, const char* name, const std::string& value) {
  out << fmt::format("{:<20}{}\n", name, value);
}

void print_machine(const Context& context, const json& machine) {
  std::ostream& out = context.out;
  const WallMicros now = context.clock.wall_us();
  field(out, "machine", or_dash(text_at(machine, "name")));
  field(out, "id", or_dash(text_at(machine, "id")));
  field(out, "state", state_of(machine) + ", since " + moment(machine, "state_since", now));
  if (const std::string cause = text_at(machine, "cause"); !cause.empty()) {
    field(out, "cause", clean(cause));
    field(out, "remedy", or_dash(text_at(machine, "remedy")));
  }
  if (const std::string why = text_at(machine, "quarantine"); !why.empty()) field(out, "quarantine", clean(why));
  if (machine.contains("percent") && machine["percent"].is_number())
    field(out, "progress", percent_of(machine) + ", " + seconds_of(machine, "eta_seconds") + " left");
  const std::string peer = clean(text_at(machine, "address"));
  if (const auto removal = machine.find("removal"); removal != machine.end() && removal->is_object())
    field(out, "to be removed",
          moment(*removal, "effective", now) + ", asked for by " + or_dash(text_at(*removal, "by")) +
              "; `tidemark machine unremove` takes that back");
  field(out, "connected", flag_at(machine, "connected") ? (peer.empty() ? "yes" : "yes, from " + peer) : "no");
  const auto newest = number_at(machine, "newest_point");
  field(out, "newest point",
        newest ? fmt::format("epoch {}, {}", *newest, moment(machine, "newest_point_time", now)) : "none yet");
  if (time_at(machine, "unchanged_as_of")) field(out, "unchanged as of", moment(machine, "unchanged_as_of", now));
  field(out, "lag", seconds_of(machine, "lag_seconds") + ", backlog " + size_of(machine, "backlog_bytes"));
  if (const auto damage = machine.find("damage"); damage != machine.end() && damage->is_object())
    field(out, "damage",
          fmt::format("{} blocks, {}, {} points affected{}; see `tidemark damage`",
                      number_at(*damage, "extents").value_or(0), size_of(*damage, "bytes"),
                      number_at(*damage, "points").value_or(0),
                      flag_at(*damage, "newest") ? ", the newest state too" : ", not the newest state"));
  field(out, "durable epoch", std::to_string(number_at(machine, "durable_epoch").value_or(0)));
  for (const json& disk : array_at(machine, "disks"))
    field(out, "disk",
          fmt::format("{}  {}  {}", number_at(disk, "disk").value_or(0), or_dash(text_at(disk, "name")),
                      size_of(disk, "size")));
  if (time_at(machine, "proven_as_of"))
    field(out, "complete", "proven by comparison as of " + moment(machine, "proven_as_of", now));
  if (const auto differences = number_at(machine, "differences").value_or(0); differences != 0) {
    field(out, "differed",
          fmt::format("{} blocks so far, the last one at {}", differences, moment(machine, "difference_time", now)));
  }
  field(out, "stored", stored_of(machine) + ", quota " + quota_of(machine));
  field(out, "agent", or_dash(text_at(machine, "agent_version")));
  field(out, "certificate expires", moment(machine, "certificate_expires", now));
  field(out, "partition", std::to_string(number_at(machine, "partition").value_or(0)));
}

// When a point goes; the ladder's times are the earliest: a machine that makes no points loses none.
std::string expiry_of(const json& point, WallMicros now_us) {
  if (const auto removal = point.find("removal"); removal != point.end() && removal->is_object())
    return "removed " + moment(*removal, "effective", now_us);
  const auto expires = time_at(point, "expires");
  return expires ? (*expires <= now_us ? "with the next ones" : human_age(*expires, now_us)) : "-";
}

Outcome patch_machine(Context& context, const std::string& machine, const json& change, const std::string& done) {
  const json changed = TIDEMARK_TRY(context.client.patch(machine_path(machine), change));
  if (context.json) return answer(context, changed);
  context.out << clean(text_at(changed, "name")) << ": " << done << '\n';
  return 0;
}

}  // namespace

Result<std::uint64_t> parse_duration(const std::string& text) {
  std::uint64_t amount = 0;
  const char* const end = text.data() + text.size();
  const auto [unit, error] = std::from_chars(text.data(), end, amount);
  std::uint64_t seconds = 0;
  if (unit + 1 == end) {
    switch (*unit) {
      case 's': seconds = 1; break;
      case 'm': seconds = 60; break;
      case 'h': seconds = 3600; break;
      case 'd': seconds = 86400; break;
      default: break;
    }
  }
  constexpr std::uint64_t kSecondsMax = 10ULL * 366 * 86400;
  if (error != std::errc{} || seconds == 0 || amount == 0 || amount > kSecondsMax / seconds)
    return fail(Code::invalid_argument, text, "not a duration", "write it like 90s, 15m, 1h or 2d");
  return amount * seconds;
}

Outcome create_token(Context& context, const TokenRequest& request) {
  json body = {{"ttl_seconds", TIDEMARK_TRY(parse_duration(request.ttl))}};
  if (!request.machine.empty()) body["machine"] = request.machine;
  if (!request.address.empty()) body["address"] = request.address;
  const json made = TIDEMARK_TRY(context.client.post("/v1/tokens", body));
  if (context.json) return answer(context, made);
  // The token alone on stdout, so that TOKEN=$(tidemark token create) works; the rest is for who reads along.
  context.out << text_at(made, "token") << std::endl;
  if (const auto expires = time_at(made, "expires"))
    context.err << "works once, until " << human_time(*expires) << " (" << human_age(*expires, context.clock.wall_us())
                << "); on the source machine: tidemark-agent enroll --token TOKEN"
                << (request.machine.empty() ? "" : " --replace") << '\n';
  return 0;
}

Outcome list_machines(Context& context) {
  const json list = TIDEMARK_TRY(context.client.get("/v1/machines"));
  if (context.json) return answer(context, list);
  const json& machines = array_at(list, "machines");
  if (machines.empty()) {
    context.out << "no machines yet; `tidemark token create` makes the token to enrol one with\n";
    return 0;
  }
  const WallMicros now = context.clock.wall_us();
  using enum Table::Align;
  Table table({{"NAME"},
               {"STATE"},
               {"DONE", right},
               {"ETA", right},
               {"LAG", right},
               {"BACKLOG", right},
               {"NEWEST POINT"},
               {"STORED", right},
               {"QUOTA", right},
               {"DISKS"}});
  for (const json& machine : machines)
    table.add({or_dash(text_at(machine, "name")), state_of(machine), percent_of(machine),
               seconds_of(machine, "eta_seconds"), seconds_of(machine, "lag_seconds"),
               size_of(machine, "backlog_bytes"), moment(machine, "newest_point_time", now), stored_of(machine),
               quota_of(machine), disks_of(machine)});
  table.print(context.out);
  bool first = true;
  for (const json& machine : machines) {
    std::string cause = text_at(machine, "cause");
    if (cause.empty()) cause = text_at(machine, "quarantine");
    if (cause.empty()) continue;
    if (std::exchange(first, false)) context.out << '\n';
    const std::string remedy = text_at(machine, "remedy");
    context.out << clean(text_at(machine, "name")) << ": " << clean(cause)
                << (remedy.empty() ? "" : " (" + clean(remedy) + ")") << '\n';
  }
  return 0;
}

Outcome show_machine(Context& context, const std::string& machine) {
  const json found = TIDEMARK_TRY(context.client.get(machine_path(machine)));
  if (context.json) return answer(context, found);
  print_machine(context, found);
  return 0;
}

Outcome rename_machine(Context& context, const std::string& machine, const std::string& name) {
  return patch_machine(context, machine, {{"name", name}}, "renamed, was " + machine);
}

Outcome decide_quarantine(Context& context, const std::string& machine, bool accept) {
  return patch_machine(context, machine, {{"quarantine", accept ? "accept" : "keep"}},
                       accept ? "accepted: whoever showed the new fingerprint is this machine from now on"
                              : "kept: the fingerprint it was enrolled with stays the only one taken");
}

Outcome revoke_machine(Context& context, const std::string& machine) {
  return patch_machine(context, machine, {{"revoked", true}},
                       "revoked: none of its certificates is taken any more; its points stay. To let it back in: "
                       "`tidemark token create --machine " +
                           machine + "`");
}

Outcome list_points(Context& context, const std::string& machine, std::uint64_t limit, bool fuzzy) {
  std::string query = "/points";
  if (limit > 0) query += "?limit=" + std::to_string(limit);
  if (fuzzy) query += limit > 0 ? "&fuzzy=1" : "?fuzzy=1";
  const json list = TIDEMARK_TRY(context.client.get(machine_path(machine, query)));
  if (context.json) return answer(context, list);
  const json& points = array_at(list, "points");
  if (points.empty()) {
    context.out << "no points yet; `tidemark machine show " << machine << "` tells how far it is\n";
    return 0;
  }
  const WallMicros now = context.clock.wall_us();
  using enum Table::Align;
  Table table({{"EPOCH", right},
               {"TIME"},
               {"AGE", right},
               {"CONSISTENCY"},
               {"VERIFIED"},
               {"CHANGED", right},
               {"STORED", right},
               {"DISKS"},
               {"HELD BY"},
               {"EXPIRES"}});
  for (const json& point : points) {
    const auto time = time_at(point, "time");
    const std::string age = time ? human_duration((now - *time) / 1'000'000) : "-";
    table.add({std::to_string(number_at(point, "epoch").value_or(0)), time ? human_time(*time) : "-", age,
               or_dash(text_at(point, "consistency")), flag_at(point, "verified") ? "yes" : "no",
               size_of(point, "plain_bytes"), size_of(point, "stored_bytes"), disks_of(point), holds_of(point),
               expiry_of(point, now)});
  }
  table.print(context.out);
  return 0;
}

Outcome show_server(Context& context) {
  const json server = TIDEMARK_TRY(context.client.get("/v1/server"));
  if (context.json) return answer(context, server);
  // The server knows best what there is to tell: everything it says, a line each.
  for (const auto& [key, value] : server.items()) {
    std::string text;
    if (value.is_object()) {
      for (const auto& [name, inner] : value.items())
        text +=
            fmt::format("{}{} {}", text.empty() ? "" : ", ", name,
                        name.ends_with("bytes") && inner.is_number_unsigned() ? human_size(inner.get<std::uint64_t>())
                        : inner.is_string()                                   ? inner.get<std::string>()
                                                                              : inner.dump());
    } else if (value.is_array()) {
      for (const json& inner : value)
        text += (text.empty() ? "" : ", ") + (inner.is_string() ? inner.get<std::string>() : inner.dump());
    } else if (key.starts_with("uptime") && value.is_number()) {
      text = human_duration(static_cast<std::int64_t>(value.get<double>()));
    } else {
      text = value.is_string() ? value.get<std::string>() : value.dump();
    }
    field(context.out, key.c_str(), clean(text));
  }
  return 0;
}

}  // namespace tidemark::cli
