#include "server/json_shapes.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "wire/tidemark.pb.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

json time_or_null(WallMicros time_us) { return time_us == 0 ? json() : json(format_rfc3339(time_us)); }
json text_or_null(const std::string& text) { return text.empty() ? json() : json(text); }
json rounded(const std::optional<double>& value, double unit) {
  return value ? json(std::round(*value / unit) * unit) : json();
}

json to_json(const std::vector<DiskReport>& disks) {
  json list = json::array();
  for (const auto& disk : disks) list.push_back({{"disk", disk.disk}, {"name", disk.name}, {"size", disk.size}});
  return list;
}

const char* consistency_name(std::uint32_t consistency) {
  switch (consistency) {
    case pb::CRASH: return "crash";
    case pb::FILESYSTEM: return "filesystem";
    case pb::APPLICATION: return "application";
    default: return "fuzzy";
  }
}

}  // namespace

json space_to_json(const SpaceReport& space) {
  return {{"logical_bytes", space.logical_bytes},
          {"stored_bytes", space.stored_bytes},
          {"quota_bytes", space.quota_bytes == 0 ? json() : json(space.quota_bytes)},
          {"quota_state", to_string(space.quota)},
          {"growth_bytes_per_s", space.growth},
          {"held", space.hold == Watermark::Hold::none ? json() : json(to_string(space.hold))},
          {"rate_bytes_per_s", space.hold == Watermark::Hold::slowed ? json(space.rate) : json()}};
}

json to_json(const MachineReport& machine) {
  const StatusView& status = machine.status;
  return {{"id", machine.id.to_string()},
          {"name", machine.name},
          {"state", status.state},
          {"state_since", time_or_null(machine.state_since_us)},
          {"percent", rounded(status.percent, 0.01)},
          {"eta_seconds", status.eta_seconds ? json(*status.eta_seconds) : json()},
          {"cause", text_or_null(status.cause)},
          {"remedy", text_or_null(status.remedy)},
          {"alarm", status.alarm},
          {"connected", machine.connected},
          {"address", text_or_null(machine.address)},
          {"agent_version", text_or_null(machine.agent_version)},
          {"durable_epoch", machine.durable_epoch.value()},
          {"newest_point", machine.newest_point.value() == 0 ? json() : json(machine.newest_point.value())},
          {"newest_point_time", machine.newest_point.value() == 0 ? json() : time_or_null(machine.newest_point_us)},
          {"unchanged_as_of", time_or_null(machine.unchanged_as_of_us)},
          {"proven_as_of", time_or_null(machine.proven_us)},
          {"differences", machine.differences},
          {"difference_time", time_or_null(machine.difference_us)},
          {"lag_seconds", rounded(status.lag_seconds, 0.001)},
          {"backlog_bytes", status.backlog_bytes},
          {"disks", to_json(machine.disks)},
          {"quarantine", text_or_null(machine.quarantine)},
          {"revoked", machine.revoked},
          {"certificate_expires", time_or_null(machine.certificate_expires_us)},
          {"partition", machine.partition.value()},
          {"damage", machine.damage.any() ? json{{"extents", machine.damage.extents},
                                                 {"bytes", machine.damage.bytes},
                                                 {"points", machine.damage.points},
                                                 {"newest", machine.damage.newest},
                                                 {"complete", !machine.damage.unlisted}}
                                          : json()},
          {"space", space_to_json(machine.space)},
          {"removal", machine.removal ? json{{"requested", format_rfc3339(machine.removal->requested_us)},
                                             {"effective", format_rfc3339(machine.removal->effective_us)},
                                             {"by", machine.removal->by},
                                             {"reason", text_or_null(machine.removal->reason)}}
                                      : json()}};
}

json to_json(const Error& error) {
  return {
      {"error",
       {{"code", to_string(error.code)}, {"object", error.object}, {"what", error.what}, {"remedy", error.remedy}}}};
}

json point_to_json(const storage::pb::EpochEntry& epoch, const std::vector<DiskReport>& disks) {
  json list = json::array();
  for (const auto& size : epoch.disks()) {
    const auto known =
        std::find_if(disks.begin(), disks.end(), [&](const DiskReport& disk) { return disk.disk == size.disk(); });
    list.push_back({{"disk", size.disk()},
                    {"name", known == disks.end() ? "disk" + std::to_string(size.disk()) : known->name},
                    {"size", size.size()}});
  }
  return {{"epoch", epoch.number()},
          {"time", format_rfc3339(epoch.time_us())},
          {"arrival", format_rfc3339(epoch.arrival_us())},
          {"consistency", consistency_name(epoch.consistency())},
          {"plain_bytes", epoch.plain_bytes()},
          {"stored_bytes", epoch.stored_bytes()},
          {"verified", epoch.verified()},
          {"disks", std::move(list)}};
}

int http_status(Code code) {
  switch (code) {
    case Code::ok: return 200;
    case Code::invalid_argument:
    case Code::protocol: return 400;
    case Code::unauthenticated: return 401;
    case Code::permission_denied: return 403;
    case Code::not_found: return 404;
    case Code::already_exists:
    case Code::quarantined:
    case Code::history_diverged: return 409;
    case Code::corrupt: return 422;
    case Code::busy: return 429;
    case Code::unsupported: return 501;
    case Code::unavailable:
    case Code::timed_out:
    case Code::cancelled: return 503;
    case Code::no_space: return 507;
    case Code::io:
    case Code::internal: return 500;
  }
  return 500;
}

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

}  // namespace tidemark::server
