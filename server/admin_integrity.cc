// Damage and scrubs (docs/admin_api.md).
#include <httplib.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "server/admin_routes.h"
#include "server/json_shapes.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

struct NamedMachine {
  std::string name;
  std::map<std::uint32_t, std::string> disks;
};
using Machines = std::map<MachineId, NamedMachine>;

struct OpenPartition {
  PartitionId id;
  std::shared_ptr<storage::Partition> partition;
};

std::vector<OpenPartition> open_partitions(Node& node) {
  std::vector<OpenPartition> all;
  for (const auto& shard : node.shards)
    for (const auto& host : shard->hosts())
      if (auto partition = host->share()) all.push_back({host->id(), std::move(partition)});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return all;
}

// By the names that people know.
Result<Machines> names_of(Node& node, const std::set<MachineId>& machines) {
  Machines all;
  for (const auto& shard : node.shards) {
    const auto some = TIDEMARK_TRY(shard->call([machines, shard = shard.get()] {
      Machines of_shard;
      for (const auto& host : shard->hosts()) {
        if (host->partition() == nullptr) continue;
        for (const MachineId& id : machines) {
          const auto* machine = host->find(id);
          if (machine == nullptr) continue;
          NamedMachine& named = of_shard[id];
          named.name = machine->record.name();
          for (const auto& disk : machine->record.disks()) named.disks[disk.disk()] = disk.name();
        }
      }
      return of_shard;
    }));
    all.insert(some.begin(), some.end());
  }
  return all;
}

const char* state_of(const storage::DamageReport& report) {
  if (!report.located) return "new";
  if (report.open) return "open";
  return report.newest ? "damaged" : "healed";
}

json to_json(const storage::DamageReport& report, const Machines& machines) {
  const storage::DamagedExtent& extent = report.extent;
  const auto machine = machines.find(extent.machine);
  const auto known = machine != machines.end();
  json disk_name;
  if (known)
    if (const auto disk = machine->second.disks.find(extent.disk.value()); disk != machine->second.disks.end())
      disk_name = disk->second;
  const bool shown = report.first != EpochNumber();
  return {{"machine", known ? json(machine->second.name) : json()},
          {"id", extent.machine.to_string()},
          {"disk", extent.disk.value()},
          {"disk_name", std::move(disk_name)},
          {"offset", extent.first_granule * limits::kGranuleSize},
          {"length", std::uint64_t{extent.granules} * limits::kGranuleSize},
          {"epoch", extent.epoch.value()},
          {"state", state_of(report)},
          {"first_epoch", shown ? json(report.first.value()) : json()},
          {"last_epoch", shown && !report.newest ? json(report.last.value()) : json()},
          {"points", report.points},
          {"what", extent.what},
          {"found", extent.found_us == 0 ? json() : json(format_rfc3339(extent.found_us))},
          {"segment", storage::cold_number(extent.segment)},
          {"cold", storage::is_cold(extent.segment)},
          {"segment_offset", extent.offset}};
}

Result<json> damage_json(Node& node, const std::optional<MachineId>& only) {
  std::vector<storage::DamageReport> reports;
  std::set<MachineId> machines;
  json segments = json::array(), incomplete = json::array();
  for (const OpenPartition& one : open_partitions(node)) {
    if (only && one.id != node.partition_for(*only)) continue;
    const storage::Checker& checker = one.partition->checker();
    for (const auto& report : checker.damage()) {
      if (only && report.extent.machine != *only) continue;
      if (report.located && !report.open && report.first == EpochNumber()) continue;  // no point shows it any more
      reports.push_back(report);
      machines.insert(report.extent.machine);
    }
    for (const auto& [id, damage] : checker.machines())
      if (damage.unlisted && (!only || id == *only)) incomplete.push_back(id.to_string());
    if (only) continue;
    for (const auto& segment : checker.damaged_segments())
      segments.push_back({{"partition", one.id.value()},
                          {"segment", storage::cold_number(segment.segment)},
                          {"cold", storage::is_cold(segment.segment)},
                          {"first_byte", segment.first_byte},
                          {"end_byte", segment.end_byte},
                          {"what", segment.what},
                          {"found", format_rfc3339(segment.found_us)}});
  }
  const Machines names = TIDEMARK_TRY(names_of(node, machines));
  json list = json::array();
  for (const auto& report : reports) list.push_back(to_json(report, names));
  return json{{"damage", std::move(list)}, {"segments", std::move(segments)}, {"incomplete", std::move(incomplete)}};
}

json time_or_null(WallMicros time_us) { return time_us == 0 ? json() : json(format_rfc3339(time_us)); }

// All partitions together, and each of them.
json scrub_json(Node& node) {
  json list = json::array();
  bool running = false;
  std::optional<WallMicros> completed;
  WallMicros next = 0;
  std::uint64_t bytes = 0, damaged = 0, last_bytes = 0, last_damaged = 0;
  for (const OpenPartition& one : open_partitions(node)) {
    const auto scrub = one.partition->checker().scrub();
    running = running || scrub.running;
    completed = std::min(completed.value_or(scrub.completed_us), scrub.completed_us);
    if (scrub.next_us != 0) next = next == 0 ? scrub.next_us : std::min(next, scrub.next_us);
    if (scrub.running) {
      bytes += scrub.bytes;
      damaged += scrub.damaged;
    }
    last_bytes += scrub.completed_bytes;
    last_damaged += scrub.completed_damaged;
    list.push_back({{"partition", one.id.value()},
                    {"running", scrub.running},
                    {"started", scrub.running ? time_or_null(scrub.started_us) : json()},
                    {"bytes", scrub.bytes},
                    {"blocks", scrub.blocks},
                    {"damaged", scrub.damaged},
                    {"volumes_done", scrub.volumes_done},
                    {"volumes", scrub.volumes},
                    {"last_started", time_or_null(scrub.completed_started_us)},
                    {"last_completed", time_or_null(scrub.completed_us)},
                    {"last_bytes", scrub.completed_bytes},
                    {"last_blocks", scrub.completed_blocks},
                    {"last_damaged", scrub.completed_damaged},
                    {"next", time_or_null(scrub.next_us)}});
  }
  return {{"running", running},
          {"bytes", bytes},
          {"damaged", damaged},
          {"last_completed", time_or_null(completed.value_or(0))},
          {"last_bytes", last_bytes},
          {"last_damaged", last_damaged},
          {"next", time_or_null(next)},
          {"rate_bytes_per_s", node.config.storage.scrub_rate},
          {"interval_seconds", node.config.storage.scrub_interval},
          {"partitions", std::move(list)}};
}

Result<json> change_scrub(Node& node, const httplib::Request& request, bool start) {
  return audited(node, request, {start ? "scrub.start" : "scrub.stop", "server", {}},
                 [&node, start](Action&) -> Result<json> {
                   for (const OpenPartition& one : open_partitions(node)) {
                     if (start) {
                       one.partition->checker().start_scrub();
                     } else {
                       one.partition->checker().stop_scrub();
                     }
                   }
                   return scrub_json(node);
                 });
}

}  // namespace

void add_integrity_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/damage", [&node](const httplib::Request&, httplib::Response& response) {
    answer(response, damage_json(node, std::nullopt));
  });
  http.Get("/v1/machines/([^/]+)/damage", [&node](const httplib::Request& request, httplib::Response& response) {
    const auto place = find_place(node, request.matches[1]);
    answer(response, place ? damage_json(node, place->id) : Result<json>(std::unexpected(place.error())));
  });
  http.Get("/v1/scrub",
           [&node](const httplib::Request&, httplib::Response& response) { answer(response, scrub_json(node)); });
  http.Post("/v1/scrub/start", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, change_scrub(node, request, true));
  });
  http.Post("/v1/scrub/stop", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, change_scrub(node, request, false));
  });
}

}  // namespace tidemark::server
