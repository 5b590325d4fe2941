#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/json_shapes.h"
#include "server/logging.h"
#include "server/moment.h"

namespace tidemark::server {
namespace {

using nlohmann::json;
using storage::pb::MachineRecord;

void expel(const MachinePlace& place, Error why) {
  place.shard->post([place, why = std::move(why)] { place.host->expel(place.id, why, 0); });
}

Status rename(Node& node, const MachinePlace& place, const std::string& old_name, const std::string& new_name) {
  TIDEMARK_TRY(check_machine_name(new_name));
  if (new_name == old_name) return {};
  TIDEMARK_TRY(node.names.take(new_name, place.id));
  const auto renamed = change_machine(place, [new_name](MachineRecord& record) -> Status {
    record.set_name(new_name);
    return {};
  });
  node.names.release(renamed ? old_name : new_name, place.id);
  return renamed;
}

Status decide_quarantine(const MachinePlace& place, const std::string& name, bool accept) {
  TIDEMARK_TRY(change_machine(place, [name, accept](MachineRecord& record) -> Status {
    if (record.quarantine().empty()) return fail(Code::invalid_argument, name, "the machine is not quarantined");
    if (accept) record.set_fingerprint(record.quarantine_fingerprint());
    record.clear_quarantine();
    record.clear_quarantine_fingerprint();
    return {};
  }));
  // Whoever is connected now has the other fingerprint.
  if (accept) expel(place, {Code::quarantined, name, "another machine was accepted in its place", {}});
  return {};
}

Status set_revoked(const MachinePlace& place, const std::string& name, bool revoked) {
  TIDEMARK_TRY(change_machine(place, [revoked](MachineRecord& record) -> Status {
    record.set_revoked(revoked);
    return {};
  }));
  if (revoked)
    expel(place, {Code::permission_denied, name, "the certificates of this machine are revoked",
                  "enrol it again with a token made for it"});
  return {};
}

Result<json> patch(Node& node, const std::string& who, const std::string& text, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto place = TIDEMARK_TRY(find_place(node, who));
  const auto before = TIDEMARK_TRY(find_report(place));
  action.object = before.name;
  const json body = json::parse(text, nullptr, false);
  const auto wrong = [&](const std::string& what) {
    return fail(Code::invalid_argument, "body", what,
                R"(one of {"name": "new"}, {"quarantine": "accept"|"keep"}, {"revoked": true|false})");
  };
  if (!body.is_object() || body.size() != 1) return wrong("it must be a JSON object with one key");
  const std::string key = body.begin().key();
  const json& value = body.begin().value();
  action.details = key + " = " + dump(value);
  if (key == "name") {
    if (!value.is_string()) return wrong("name must be a text");
    TIDEMARK_TRY(rename(node, place, before.name, value.get<std::string>()));
  } else if (key == "quarantine") {
    if (value != "accept" && value != "keep") return wrong("quarantine must be accept or keep");
    TIDEMARK_TRY(decide_quarantine(place, before.name, value == "accept"));
  } else if (key == "revoked") {
    if (!value.is_boolean()) return wrong("revoked must be true or false");
    TIDEMARK_TRY(set_revoked(place, before.name, value.get<bool>()));
  } else {
    return wrong("the key " + key + " is not known");
  }
  spdlog::info("machine changed{}{}{}{}", kv("machine", before.name), kv("id", place.id.to_string()), kv("what", key),
               kv("to", dump(value)));
  return to_json(TIDEMARK_TRY(find_report(place)));
}

}  // namespace

void add_machine_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/machines", [&node](const httplib::Request&, httplib::Response& response) {
    std::vector<MachineReport> all;
    for (const auto& shard : node.shards) {
      auto some = shard->call([shard = shard.get()] {
        std::vector<MachineReport> reports;
        for (const auto& host : shard->hosts())
          for (auto& report : host->reports()) reports.push_back(std::move(report));
        return reports;
      });
      if (!some) return answer(response, some.error());
      for (auto& report : *some) all.push_back(std::move(report));
    }
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    json list = json::array();
    for (const auto& report : all) list.push_back(to_json(report));
    answer(response, json{{"machines", std::move(list)}});
  });
  http.Get("/v1/machines/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, [&]() -> Result<json> {
      const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
      return to_json(TIDEMARK_TRY(find_report(place)));
    }());
  });
  http.Patch("/v1/machines/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"machine.change", request.matches[1], {}},
                             [&](Action& action) { return patch(node, request.matches[1], request.body, action); }));
  });
  http.Delete("/v1/machines/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    const auto removed = audited(node, request, {"machine.remove", request.matches[1], {}},
                                 [&](Action& action) { return remove_machine(node, request, action); });
    if (!removed) return answer(response, removed.error());
    if (removed->is_null()) {
      response.status = 204;
    } else {
      response.status = 202;
      answer(response, *removed);
    }
  });
}

}  // namespace tidemark::server
