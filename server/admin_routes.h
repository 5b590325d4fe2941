// The routes of the admin API, by subject, and what they share. Private to admin*.cc.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "server/machine_report.h"
#include "server/node.h"
#include "server/partition_host.h"
#include "server/shard.h"
#include "storage/partition.h"

namespace httplib {
class Server;
struct Request;
struct Response;
}  // namespace httplib

namespace tidemark::server {

void add_server_routes(httplib::Server& http, Node& node);   // admin_server.cc: server, tokens, health, metrics
void add_machine_routes(httplib::Server& http, Node& node);  // admin_machines.cc
void add_point_routes(httplib::Server& http, Node& node);    // admin_points.cc: points, map
void add_data_routes(httplib::Server& http, Node& node);     // admin_data.cc: data, verify

void answer(httplib::Response& response, const Error& error);
void answer(httplib::Response& response, const nlohmann::json& body);
void answer(httplib::Response& response, const Result<nlohmann::json>& result);

// Where a machine is.
struct MachinePlace {
  MachineId id;
  Shard* shard;
  PartitionHost* host;
  storage::Partition* partition;  // never null
};
Result<MachinePlace> find_place(Node& node, const std::string& name_or_id);
// Code::not_found when the catalog does not have it.
Result<MachineReport> find_report(const MachinePlace& place);
// The point that AT means.
Result<storage::pb::EpochEntry> find_point(Node& node, const MachinePlace& place, const std::string& at);
// DISK: a number or a name.
Result<DiskReport> find_disk(const std::vector<DiskReport>& disks, const storage::pb::EpochEntry& point,
                             const std::string& disk);

inline constexpr auto kIndexTimeout = std::chrono::seconds(30);

}  // namespace tidemark::server
