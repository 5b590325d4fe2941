#include "cli/clones.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/output.h"

namespace tidemark::cli {

using nlohmann::json;

Outcome create_clones(Context& context, const std::string& machine, const CloneRequest& request) {
  json body = {{"at", request.at}};
  if (!request.name.empty()) body["name"] = request.name;
  if (request.count != 0) body["count"] = request.count;
  const json made = TIDEMARK_TRY(context.client.post(machine_path(machine, "/clones"), body));
  if (context.json) return answer(context, made);
  const json point = made.value("point", json::object());
  const auto time = time_at(point, "time");
  const json& clones = array_at(made, "clones");
  if (clones.empty()) return fail(Code::internal, machine, "the server's answer names no clone");
  const std::string first = clean(text_at(clones.front(), "name"));
  // 0: nothing was written to the clone that it was made of.
  const auto epoch = number_at(point, "epoch").value_or(0);
  context.out << fmt::format("{}: {} of {}{}\n",
                             clones.size() == 1 ? first : first + " to " + clean(text_at(clones.back(), "name")),
                             clones.size() == 1 ? "a clone" : fmt::format("{} clones", clones.size()),
                             epoch != 0 ? fmt::format("epoch {}", epoch) : "what " + clean(machine) + " stands on",
                             time ? " of " + human_time(*time) : "");
  context.out << fmt::format("read it:  tidemark export clone:{} --output ./{}/\n", first, first);
  context.out << fmt::format("drop it:  tidemark clone drop {}\n", first);
  return 0;
}

Outcome list_clones(Context& context) {
  const json list = TIDEMARK_TRY(context.client.get("/v1/clones"));
  if (context.json) return answer(context, list);
  const json& clones = array_at(list, "clones");
  if (clones.empty()) {
    context.out << "no clones; `tidemark clone create MACHINE --at latest` makes one\n";
    return 0;
  }
  const WallMicros now = context.clock.wall_us();
  Table table({{"NAME"},
               {"OF"},
               {"EPOCH", Table::Align::right},
               {"DEPTH", Table::Align::right},
               {"WRITTEN"},
               {"MADE"},
               {"BY"}});
  for (const json& clone : clones)
    table.add({or_dash(text_at(clone, "name")), or_dash(text_at(clone, "parent")),
               std::to_string(number_at(clone, "epoch").value_or(0)),
               std::to_string(number_at(clone, "depth").value_or(0)),
               number_at(clone, "written_epoch").value_or(0) == 0 ? "no" : "yes", moment(clone, "created", now),
               or_dash(text_at(clone, "by"))});
  table.print(context.out);
  return 0;
}

Outcome serve_clone(Context& context, const std::string& name, const std::string& nbd) {
  const json served = TIDEMARK_TRY(context.client.post("/v1/clones/" + path_segment(name) + "/serve", {{"nbd", nbd}}));
  if (context.json) return answer(context, served);
  const std::string uri = clean(text_at(served, "uri"));
  context.out << fmt::format("{}: served at {}\n", clean(name), clean(text_at(served, "nbd")));
  context.out << fmt::format("look at it:  nbdinfo '{}'\n", uri);
  context.out << fmt::format("end it:      tidemark clone unserve {}\n", clean(name));
  return 0;
}

Outcome unserve_clone(Context& context, const std::string& name) {
  TIDEMARK_TRY(context.client.remove("/v1/clones/" + path_segment(name) + "/serve"));
  if (context.json) return answer(context, {{"unserved", name}});
  context.out << clean(name) << ": not served any more\n";
  return 0;
}

Outcome drop_clones(Context& context, const std::vector<std::string>& names) {
  json dropped = json::array();
  for (const std::string& name : names) {
    TIDEMARK_TRY(context.client.remove("/v1/clones/" + path_segment(name)));
    dropped.push_back(name);
    if (!context.json) context.out << clean(name) << ": dropped\n" << std::flush;
  }
  return context.json ? answer(context, {{"dropped", std::move(dropped)}}) : 0;
}

}  // namespace tidemark::cli
