#include "cli/retention.h"

#include <fmt/format.h>

#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/output.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

// "10m", "6h", "30d".
std::string short_duration(std::uint64_t seconds) {
  if (seconds != 0 && seconds % 86'400 == 0) return fmt::format("{}d", seconds / 86'400);
  if (seconds != 0 && seconds % 3'600 == 0) return fmt::format("{}h", seconds / 3'600);
  if (seconds != 0 && seconds % 60 == 0) return fmt::format("{}m", seconds / 60);
  return fmt::format("{}s", seconds);
}

// Like parse_duration, but nothing is a duration too: a ladder without a dense window.
Result<std::uint64_t> parse_span(const std::string& text) {
  if (text == "0" || text == "0s") return 0;
  return parse_duration(text);
}

Result<json> rung_of(const std::string& text) {
  const auto colon = text.find(':');
  if (colon == std::string::npos)
    return fail(Code::invalid_argument, text, "not a rung", "write EVERY:SPAN, like 10m:6h for 36 ten-minute points");
  const auto every = parse_duration(text.substr(0, colon));
  const auto keep = parse_duration(text.substr(colon + 1));
  if (!every || !keep)
    return fail(Code::invalid_argument, text, "not a rung",
                "write EVERY:SPAN, like 1d:30d for 30 daily points; each is like 90s, 10m, 1h or 1d");
  return json{{"every_seconds", *every}, {"keep_seconds", *keep}};
}

void print_ladder(const Context& context, const json& ladder) {
  std::ostream& out = context.out;
  if (const auto dense = number_at(ladder, "dense_seconds").value_or(0); dense != 0)
    out << "  every epoch of the last " << short_duration(dense) << '\n';
  for (const json& rung : array_at(ladder, "rungs"))
    out << fmt::format("  {} point{}, one every {}\n", number_at(rung, "points").value_or(0),
                       number_at(rung, "points") == 1 ? "" : "s",
                       short_duration(number_at(rung, "every_seconds").value_or(0)));
}

int print_retention(const Context& context, const json& retention) {
  std::ostream& out = context.out;
  const WallMicros now = context.clock.wall_us();
  const json ladder = retention.value("ladder", json::object());
  out << clean(text_at(retention, "machine")) << " keeps" << (flag_at(ladder, "default") ? ", by default" : "") << '\n';
  print_ladder(context, ladder);
  out << "  the newest point, what is pinned, and what is in use\n";
  for (const json& former : array_at(retention, "former_ladders")) {
    out << "and until " << moment(former, "until", now) << " what it kept before\n";
    print_ladder(context, former);
  }
  for (const json& pin : array_at(retention, "pins"))
    out << fmt::format("pin {}: epoch {}, until {}\n", clean(text_at(pin, "name")), number_at(pin, "epoch").value_or(0),
                       time_at(pin, "until") ? moment(pin, "until", now) : "it is unpinned");
  for (const json& removal : array_at(retention, "removals")) {
    const auto epoch = number_at(removal, "epoch");
    out << fmt::format("to be removed: {}, not before {}, asked for by {}\n",
                       epoch ? fmt::format("epoch {}", *epoch) : "the whole machine", moment(removal, "effective", now),
                       or_dash(text_at(removal, "by")));
  }
  const json clock = retention.value("clock", json::object());
  if (const auto held = clock.find("held"); held != clock.end() && held->is_object())
    out << "the server's clock leapt ahead: nothing expires by it before " << moment(*held, "believed_at", now)
        << "; if it is wrong, set it right until then\n";
  return 0;
}

std::string named_point(const json& point) {
  return fmt::format("epoch {}{}", number_at(point, "epoch").value_or(0),
                     time_at(point, "time") ? " of " + human_time(*time_at(point, "time")) : "");
}

}  // namespace

std::string holds_of(const json& point) {
  std::string text;
  const auto add = [&](const std::string& one) { text += (text.empty() ? "" : ", ") + one; };
  for (const json& hold : array_at(point, "holds")) {
    const std::string kind = text_at(hold, "kind");
    const std::string former = flag_at(hold, "former") ? " (former)" : "";
    if (kind == "dense") {
      add("all" + former);
    } else if (kind == "rung") {
      add(short_duration(number_at(hold, "every_seconds").value_or(0)) + former);
    } else if (kind == "pin") {
      add("pin " + clean(text_at(hold, "pin")));
    } else if (kind == "in-use") {
      add("in use");
    } else if (kind == "newest-point") {
      add("newest");
    } else if (kind == "newest-verified") {
      add("newest verified");
    } else if (kind != "newest-epoch") {  // of a newer server
      add(clean(kind));
    }
  }
  if (flag_at(point, "going")) return "going";
  return text.empty() ? "-" : text;
}

Outcome show_ladder(Context& context, const std::string& machine) {
  const json retention = TIDEMARK_TRY(context.client.get(machine_path(machine, "/retention")));
  return context.json ? answer(context, retention) : print_retention(context, retention);
}

Outcome set_ladder(Context& context, const std::string& machine, const LadderRequest& request) {
  json body = json::object();
  if (request.preset == "60") {
    body["preset"] = 60;
  } else if (!request.preset.empty()) {
    body["preset"] = request.preset;
  }
  if (!request.dense.empty()) body["dense_seconds"] = TIDEMARK_TRY(parse_span(request.dense));
  if (!request.rungs.empty()) {
    body["rungs"] = json::array();
    for (const std::string& rung : request.rungs) body["rungs"].push_back(TIDEMARK_TRY(rung_of(rung)));
  }
  if (body.empty())
    return fail(Code::invalid_argument, "ladder", "nothing is said of what to keep",
                "give --preset 60, or --dense and --rung, like --dense 1h --rung 10m:6h --rung 1h:24h --rung 1d:30d");
  const json retention = TIDEMARK_TRY(context.client.put(machine_path(machine, "/ladder"), body));
  return context.json ? answer(context, retention) : print_retention(context, retention);
}

Outcome pin_point(Context& context, const std::string& machine, const PinRequest& request) {
  json body = {{"at", request.at}};
  if (!request.name.empty()) body["name"] = request.name;
  if (!request.reason.empty()) body["reason"] = request.reason;
  if (!request.until.empty()) body["until"] = request.until;
  const json pin = TIDEMARK_TRY(context.client.post(machine_path(machine, "/pins"), body));
  if (context.json) return answer(context, pin);
  context.out << fmt::format(
      "{}: {} is pinned as {}, {}\n", machine, named_point(pin), clean(text_at(pin, "name")),
      time_at(pin, "until") ? "until " + moment(pin, "until", context.clock.wall_us()) : "until it is unpinned");
  return 0;
}

Outcome unpin_point(Context& context, const std::string& machine, const std::string& pin) {
  const json gone = TIDEMARK_TRY(context.client.remove(machine_path(machine, "/pins/" + path_segment(pin))));
  if (context.json) return answer(context, gone);
  context.out << fmt::format("{}: {} was pinned as {}; the pin holds until {}, then the ladder decides\n", machine,
                             named_point(gone), clean(pin), moment(gone, "until", context.clock.wall_us()));
  return 0;
}

Outcome list_pins(Context& context, const std::string& machine) {
  const json list = TIDEMARK_TRY(context.client.get(machine_path(machine, "/pins")));
  if (context.json) return answer(context, list);
  const json& pins = array_at(list, "pins");
  if (pins.empty()) {
    context.out << "no pins; `tidemark pin " << machine << " --at latest` makes one\n";
    return 0;
  }
  const WallMicros now = context.clock.wall_us();
  Table table({{"NAME"}, {"EPOCH", Table::Align::right}, {"TIME"}, {"UNTIL"}, {"BY"}, {"REASON"}});
  for (const json& pin : pins)
    table.add({or_dash(text_at(pin, "name")), std::to_string(number_at(pin, "epoch").value_or(0)),
               time_at(pin, "time") ? human_time(*time_at(pin, "time")) : "-",
               time_at(pin, "until") ? moment(pin, "until", now) : "unpinned", or_dash(text_at(pin, "by")),
               or_dash(text_at(pin, "reason"))});
  table.print(context.out);
  return 0;
}

Outcome remove_point(Context& context, const std::string& machine, const std::string& at, const std::string& reason) {
  json body = {{"at", at}};
  if (!reason.empty()) body["reason"] = reason;
  const json removal = TIDEMARK_TRY(context.client.post(machine_path(machine, "/removals"), body));
  if (context.json) return answer(context, removal);
  context.out << fmt::format(
      "{}: {} is to be removed, not before {}; until then `tidemark point keep {} --at epoch:{}` takes that back\n",
      machine, named_point(removal), moment(removal, "effective", context.clock.wall_us()), machine,
      number_at(removal, "epoch").value_or(0));
  return 0;
}

Outcome keep_point(Context& context, const std::string& machine, const std::string& at) {
  const json retention = TIDEMARK_TRY(context.client.remove(machine_path(machine, "/removals/" + path_segment(at))));
  if (context.json) return answer(context, retention);
  context.out << machine << ": the point at " << at << " is not removed; the ladder decides\n";
  return 0;
}

Outcome remove_machine(Context& context, const std::string& machine, const std::string& confirmation,
                       const std::string& reason) {
  const json found = TIDEMARK_TRY(context.client.get(machine_path(machine)));
  const std::string name = text_at(found, "name");
  std::string confirmed = confirmation;
  if (confirmed.empty() && context.terminal && !context.json) {
    context.err << "This removes " << clean(name) << " (" << disks_of(found) << ") and all of its recovery points.\n"
                << "Type its name to go on: " << std::flush;
    std::getline(context.in, confirmed);
  }
  if (confirmed != name)
    return fail(Code::invalid_argument, name, "not removed: its name was not given as confirmation",
                "add --confirm " + name + "; all of its points would be gone");
  const std::string query =
      "?confirm=" + path_segment(confirmed) + (reason.empty() ? "" : "&reason=" + path_segment(reason));
  const json left = TIDEMARK_TRY(context.client.remove(machine_path(text_at(found, "id"), query)));
  const json removal = left.is_object() ? left.value("removal", json()) : json();
  if (context.json)
    return answer(context, {{"removed", removal.is_null() ? json(name) : json()},
                            {"machine", name},
                            {"id", text_at(found, "id")},
                            {"removal", removal}});
  if (removal.is_null()) {
    context.out << clean(name) << ": removed, with all of its points\n";
  } else {
    context.out << fmt::format(
        "{}: to be removed with all of its points, not before {}; until then it goes on as it is, and `tidemark "
        "machine "
        "unremove {}` takes that back\n",
        clean(name), moment(removal, "effective", context.clock.wall_us()), clean(name));
  }
  return 0;
}

Outcome unremove_machine(Context& context, const std::string& machine) {
  const json retention = TIDEMARK_TRY(context.client.remove(machine_path(machine, "/removals/machine")));
  if (context.json) return answer(context, retention);
  context.out << clean(text_at(retention, "machine")) << ": it is not removed\n";
  return 0;
}

Outcome show_audit(Context& context, std::uint64_t limit) {
  const json audit =
      TIDEMARK_TRY(context.client.get("/v1/audit" + (limit == 0 ? "" : "?limit=" + std::to_string(limit))));
  if (context.json) return answer(context, audit);
  const json& entries = array_at(audit, "entries");
  if (entries.empty()) {
    context.out << "nothing was changed yet\n";
    return 0;
  }
  Table table({{"TIME"}, {"WHO"}, {"ACTION"}, {"OBJECT"}, {"RESULT"}, {"DETAILS"}});
  for (const json& entry : entries) {
    const auto time = time_at(entry, "time");
    std::string details = text_at(entry, "details");
    if (const auto error = entry.find("error"); error != entry.end()) details = text_at(*error, "what");
    table.add({time ? human_time(*time) : "-", or_dash(text_at(entry, "who")), or_dash(text_at(entry, "action")),
               or_dash(text_at(entry, "object")), or_dash(text_at(entry, "result")), clean(details)});
  }
  table.print(context.out);
  return 0;
}

}  // namespace tidemark::cli
