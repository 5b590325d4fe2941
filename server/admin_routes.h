// The routes of the admin API, by subject, and what they share. Private to admin*.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
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

void add_server_routes(httplib::Server& http, Node& node);     // admin_server.cc: server, tokens, health, metrics
void add_machine_routes(httplib::Server& http, Node& node);    // admin_machines.cc
void add_point_routes(httplib::Server& http, Node& node);      // admin_points.cc: points, map
void add_data_routes(httplib::Server& http, Node& node);       // admin_data.cc: data, verify
void add_diff_routes(httplib::Server& http, Node& node);       // admin_diff.cc: differences, holds
void add_clone_routes(httplib::Server& http, Node& node);      // admin_clones.cc
void add_space_routes(httplib::Server& http, Node& node);      // admin_space.cc: space, quotas
void add_retention_routes(httplib::Server& http, Node& node);  // admin_retention.cc: ladders, pins, removals

void add_integrity_routes(httplib::Server& http, Node& node);  // admin_integrity.cc: damage, scrubs
void add_client_routes(httplib::Server& http, Node& node);     // admin_clients.cc

void answer(httplib::Response& response, const Error& error);
void answer(httplib::Response& response, const nlohmann::json& body);
void answer(httplib::Response& response, const Result<nlohmann::json>& result);

// Where a machine is.
struct MachinePlace {
  MachineId id;
  Shard* shard;
  PartitionHost* host;
  std::shared_ptr<storage::Partition> partition;  // never null
};
Result<MachinePlace> find_place(Node& node, const std::string& name_or_id);
// Code::not_found when the catalog does not have it.
Result<MachineReport> find_report(const MachinePlace& place);
// The point that AT means.
Result<storage::pb::EpochEntry> find_point(Node& node, const MachinePlace& place, const std::string& at);
// Exactly this point: what is not there any more is not replaced by another one.
Result<storage::pb::EpochEntry> exact_point(Node& node, const MachinePlace& place, const std::string& name,
                                            const std::string& at);
// Its query parameter `limit`, or what is usual.
Result<std::size_t> limit_of(const httplib::Request& request, std::size_t usual, std::size_t max);
// DISK: a number or a name.
Result<DiskReport> find_disk(const std::vector<DiskReport>& disks, const storage::pb::EpochEntry& point,
                             const std::string& disk);

// A disk as it was at a point.
struct OpenDisk {
  std::string what;  // machine/disk
  std::uint64_t epoch;
  std::shared_ptr<storage::Partition> partition;
  std::shared_ptr<storage::Reader> reader;
};
// What a path names: MACHINE, AT and DISK are its first three captures.
Result<OpenDisk> open_disk(Node& node, const httplib::Request& request);

// --- changes (admin_change.cc) ---
// Held while a machine is changed, so that a name is not taken and given back in two of them at once.
std::mutex& change_mutex();
// Changes the record and waits until that is durable. `how` runs on the shard's thread, twice.
Status change_machine(const MachinePlace& place, std::function<Status(storage::pb::MachineRecord&)> how);
// What the audit log will say; whoever carries it out makes it more precise.
struct Action {
  std::string name, object, details;
};
// Carries an action out and records it with who asked and what came of it. Nothing is done that could not be recorded.
Result<nlohmann::json> audited(Node& node, const httplib::Request& request, const Action& action,
                               const std::function<Result<nlohmann::json>(Action&)>& carry_out);
std::string by_whom(const httplib::Request& request);
// An empty text is an empty object.
Result<nlohmann::json> parse_body(const std::string& text, const std::string& example);
inline constexpr std::size_t kAdminTextMax = 200;
// A text of a body; empty when it is not there.
Result<std::string> text_at(const nlohmann::json& body, const char* key);
// Code::invalid_argument: it has a key that is not one of these.
Status check_keys(const nlohmann::json& body, const std::vector<std::string>& known);

// --- removals (admin_retention.cc) ---
// At once when there is no hold-off (answers null), else when it is over; answers the machine.
Result<nlohmann::json> remove_machine(Node& node, const httplib::Request& request, Action& action);

inline constexpr auto kIndexTimeout = std::chrono::seconds(30);

}  // namespace tidemark::server
