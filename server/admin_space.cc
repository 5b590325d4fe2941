// Space: who takes it, and quotas.
#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/json_shapes.h"
#include "server/logging.h"

namespace tidemark::server {
namespace {

using nlohmann::json;
using storage::pb::MachineRecord;

// 0: none.
Result<std::uint64_t> quota_of(const json& body) {
  const std::string remedy = "write a size from 1MiB to 1EiB, like 200GiB or a number of bytes, or none";
  const auto found = body.find("quota");
  if (body.size() != 1 || found == body.end())
    return fail(Code::invalid_argument, "body", "it must have the key quota, and no other", remedy);
  if (found->is_null() || *found == "none") return 0;
  std::uint64_t quota = 0;
  if (found->is_number_unsigned()) {
    quota = found->get<std::uint64_t>();
  } else if (found->is_string()) {
    const auto parsed = parse_size(found->get<std::string>());
    if (!parsed) return fail(Code::invalid_argument, found->get<std::string>(), "not a size", remedy);
    quota = *parsed;
  } else {
    return fail(Code::invalid_argument, dump(*found), "not a size", remedy);
  }
  if (quota < kQuotaMin || quota > kQuotaMax)
    return fail(Code::invalid_argument, dump(*found), "out of bounds for a quota", remedy);
  return quota;
}

// One below what is used is taken: it pauses the machine, and the answer says so.
Result<json> put_quota(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const auto before = TIDEMARK_TRY(find_report(place));
  action.object = before.name;
  const json body = TIDEMARK_TRY(parse_body(request.body, R"({"quota": "200GiB"})"));
  const std::uint64_t quota = TIDEMARK_TRY(quota_of(body));
  action.details = (quota == 0 ? "none" : std::to_string(quota) + " bytes") + ", was " +
                   (before.space.quota_bytes == 0 ? "none" : std::to_string(before.space.quota_bytes));
  TIDEMARK_TRY(change_machine(place, [quota](MachineRecord& record) -> Status {
    record.set_quota(quota);
    return {};
  }));
  json answer = to_json(TIDEMARK_TRY(find_report(place)));
  answer["note"] = json();
  if (quota != 0 && before.space.stored_bytes >= quota)
    answer["note"] =
        "it stores more than that already: it is paused until points are let go of, or the quota is raised; what is "
        "there stays";
  return answer;
}

json file_system_json(const Watermarks::View& view) {
  return {{"total_bytes", view.on.total},
          {"available_bytes", view.on.available},
          {"used_percent", static_cast<double>(static_cast<std::int64_t>(view.used * 10'000)) / 100},
          {"level", to_string(view.level)},
          {"slowed", view.slowed},
          {"paused", view.paused}};
}

json partition_json(PartitionId id, const storage::Partition::Stats& stats) {
  const std::uint64_t log = stats.segments * stats.segment_size;
  return {{"id", id.value()},
          {"file_system", std::to_string(stats.space.file_system)},
          {"stored_bytes", stats.stored_bytes},
          {"log_bytes", log},
          {"cold_bytes", stats.cold_bytes},
          {"reserve_bytes", stats.segments_reserved * stats.segment_size},
          {"garbage_bytes", log + stats.cold_bytes - std::min(log + stats.cold_bytes, stats.stored_bytes)},
          {"index_bytes", stats.index.disk_bytes}};
}

// Where the bytes of a partition's machines are, all of one moment. On the caller's thread: the index may have to be
// read.
void add_places(const storage::Partition& partition, std::map<MachineId, json>& to) {
  const auto spaces = partition.machine_space();
  std::vector<MachineId> machines;
  machines.reserve(spaces.size());
  for (const auto& space : spaces) machines.push_back(space.machine);
  const auto index_bytes = partition.index_bytes(machines);
  for (std::size_t i = 0; i < spaces.size(); ++i)
    to[machines[i]] = {{"logical_bytes", spaces[i].logical_bytes},
                       {"stored_bytes", spaces[i].stored_bytes},
                       {"stored_log_bytes", spaces[i].stored_bytes - spaces[i].cold_bytes},
                       {"stored_cold_bytes", spaces[i].cold_bytes},
                       {"index_bytes", index_bytes[i]}};
}

Result<json> space_of_all(Node& node) {
  std::vector<MachineReport> machines;
  std::map<MachineId, json> places;
  json partitions = json::array();
  json totals = {{"logical_bytes", 0}, {"stored_bytes", 0},  {"log_bytes", 0},  {"cold_bytes", 0},
                 {"reserve_bytes", 0}, {"garbage_bytes", 0}, {"index_bytes", 0}};
  for (const auto& shard : node.shards) {
    auto some = TIDEMARK_TRY(shard->call([shard = shard.get()] {
      std::vector<MachineReport> reports;
      for (const auto& host : shard->hosts())
        for (auto& report : host->reports()) reports.push_back(std::move(report));
      return reports;
    }));
    std::move(some.begin(), some.end(), std::back_inserter(machines));
    for (const auto& host : shard->hosts()) {
      const auto partition = host->share();
      if (partition == nullptr) continue;
      add_places(*partition, places);
      partitions.push_back(partition_json(host->id(), partition->stats()));
      for (auto& [key, total] : totals.items())
        if (partitions.back().contains(key))
          total = total.get<std::uint64_t>() + partitions.back()[key].get<std::uint64_t>();
    }
  }
  std::sort(machines.begin(), machines.end(),
            [](const auto& a, const auto& b) { return a.space.stored_bytes > b.space.stored_bytes; });
  json list = json::array();
  for (const auto& machine : machines) {
    json one = space_to_json(machine.space);
    if (const auto place = places.find(machine.id); place != places.end()) one.update(place->second);
    totals["logical_bytes"] = totals["logical_bytes"].get<std::uint64_t>() + one["logical_bytes"].get<std::uint64_t>();
    one["id"] = machine.id.to_string();
    one["name"] = machine.name;
    list.push_back(std::move(one));
  }
  json file_systems = json::array();
  for (const auto& view : node.watermarks.views()) {
    json one = file_system_json(view);
    one["id"] = std::to_string(view.on.id);
    file_systems.push_back(std::move(one));
  }
  std::sort(partitions.begin(), partitions.end(), [](const json& a, const json& b) { return a["id"] < b["id"]; });
  return json{{"machines", std::move(list)},
              {"partitions", std::move(partitions)},
              {"totals", std::move(totals)},
              {"file_systems", std::move(file_systems)},
              {"high_water", node.watermarks.marks().high},
              {"full_water", node.watermarks.marks().full},
              {"free_space_min", free_space_min(node)}};
}

}  // namespace

void add_space_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/space",
           [&node](const httplib::Request&, httplib::Response& response) { answer(response, space_of_all(node)); });
  http.Put("/v1/machines/([^/]+)/quota", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"quota.set", request.matches[1], {}},
                             [&](Action& action) { return put_quota(node, request, action); }));
  });
}

}  // namespace tidemark::server
