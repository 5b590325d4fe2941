#include <httplib.h>
#include <spdlog/spdlog.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "net/connect.h"
#include "net/token.h"
#include "server/admin_routes.h"
#include "server/json_shapes.h"
#include "server/logging.h"
#include "server/metrics.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

constexpr std::int64_t kTtlDefault = 3600;
constexpr std::int64_t kTtlMax = 30 * 24 * 3600;
constexpr std::size_t kAuditDefault = 100;
constexpr std::size_t kAuditMax = 100'000;

// What agents are told: what the administrator named, or what can be guessed.
std::string token_address(const Node& node) {
  if (!node.superblock.addresses.empty()) return node.superblock.addresses.front();
  const auto listening = net::parse_host_port(node.listening);
  if (!listening) return node.listening;
  const bool any = listening->host == "0.0.0.0" || listening->host == "::";
  return net::HostPort{any ? host_name() : listening->host, listening->port}.to_string();
}

struct HostSummary {
  PartitionHost::Health health;
  std::size_t machines = 0, sessions = 0;
};

Result<std::vector<HostSummary>> summaries(Node& node) {
  std::vector<HostSummary> all;
  for (const auto& shard : node.shards) {
    const auto some = TIDEMARK_TRY(shard->call([shard = shard.get()] {
      std::vector<HostSummary> list;
      for (const auto& host : shard->hosts())
        list.push_back({host->health(), host->machine_count(), host->session_count()});
      return list;
    }));
    all.insert(all.end(), some.begin(), some.end());
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.health.id < b.health.id; });
  return all;
}

json partitions_json(const Node& node, const std::vector<HostSummary>& all) {
  json list = json::array();
  for (const auto& one : all) {
    list.push_back({{"id", one.health.id.value()},
                    {"state", to_string(one.health.state)},
                    {"why", one.health.why},
                    {"directory", node.directories.path_of(one.health.id)},
                    {"machines", one.machines},
                    {"percent", nullptr}});
    if (one.health.percent) list.back()["percent"] = *one.health.percent;
  }
  return list;
}

json directories_json(const Node& node) {
  json list = json::array();
  for (const auto& one : node.directories.views()) {
    json partitions = json::array();
    for (const PartitionId partition : one.partitions) partitions.push_back(partition.value());
    list.push_back({{"path", one.path},
                    {"id", one.id.empty() ? json() : json(one.id)},
                    {"state", one.state ? "well" : "failed"},
                    {"why", one.state ? "" : one.state.error().message()},
                    {"partitions", std::move(partitions)},
                    {"total_bytes", one.space.total},
                    {"available_bytes", one.space.available}});
  }
  return list;
}

Result<json> open_partition(Node& node, const httplib::Request& request) {
  const std::string text = request.matches[1];
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number >= node.superblock.partitions)
    return fail(Code::not_found, "partition " + text, "there is no such partition", "`tidemark health` lists them");
  const PartitionId partition(number);
  return audited(node, request, {"partition.open", "partition " + text, {}}, [&](Action&) -> Result<json> {
    Shard& shard = node.shard_for(partition);
    PartitionHost* const host = shard.host(partition);
    const auto answered = TIDEMARK_TRY(shard.call([host] { return host->reopen(); }));
    if (!answered) return std::unexpected(answered.error());
    return json{{"id", number}, {"state", to_string(host->state())}};
  });
}

Result<json> server_json(Node& node) {
  const auto all = TIDEMARK_TRY(summaries(node));
  std::size_t machines = 0, sessions = 0;
  for (const auto& one : all) {
    machines += one.machines;
    sessions += one.sessions;
  }
  return json{{"version", TIDEMARK_VERSION},
              {"id", node.superblock.server_id},
              {"name", node.superblock.name},
              {"started", format_rfc3339(node.started_us)},
              {"uptime_seconds", (node.clock.wall_us() - node.started_us) / 1'000'000},
              {"data_directory", node.directory.path()},
              {"listening", json::array({node.listening})},
              {"admin_socket", node.admin_socket},
              {"addresses", json::array({token_address(node)})},
              {"shards", node.shards.size()},
              {"partitions", partitions_json(node, all)},
              {"directories", directories_json(node)},
              {"certificate_expires", format_rfc3339(node.authority.server_info().not_after_us)},
              {"totals", {{"machines", machines}, {"connected", sessions}}}};
}

Result<json> make_token(Node& node, const std::string& text) {
  const json body = text.empty() ? json::object() : json::parse(text, nullptr, false);
  const auto wrong = [](const std::string& key, const std::string& what, const std::string& remedy) {
    return fail(Code::invalid_argument, key, what, remedy);
  };
  if (!body.is_object()) return wrong("body", "it is not a JSON object", R"(like {"ttl_seconds": 3600})");
  std::int64_t ttl = kTtlDefault;
  std::optional<MachineId> machine;
  std::string address = token_address(node);
  for (const auto& [key, value] : body.items()) {
    if (key == "ttl_seconds") {
      if (!value.is_number_integer() || value.get<std::int64_t>() < 1 || value.get<std::int64_t>() > kTtlMax)
        return wrong(key, "is " + dump(value), "allowed is a whole number from 1 to " + std::to_string(kTtlMax));
      ttl = value.get<std::int64_t>();
    } else if (key == "machine") {
      if (value.is_null()) continue;
      if (!value.is_string()) return wrong(key, "is not a text", "name a machine that is enrolled already");
      const auto place = TIDEMARK_TRY(find_place(node, value.get<std::string>()));
      machine = TIDEMARK_TRY(find_report(place)).id;
    } else if (key == "address") {
      if (value.is_null()) continue;
      if (!value.is_string() || !is_agent_address(value.get<std::string>()))
        return wrong(key, "is " + dump(value) + ", not an address", "write HOST:PORT as agents reach this server");
      address = value.get<std::string>();
    } else {
      return wrong(key, "is not a known key", "there are ttl_seconds, machine and address");
    }
  }
  const auto created = TIDEMARK_TRY(node.tokens->create(std::chrono::seconds(ttl), machine));
  spdlog::info("token made{}{}", kv("expires", format_rfc3339(created.expires_us)),
               kv("machine", machine ? machine->to_string() : "new"));
  const net::Token token{.address = address, .ca_sha256 = node.authority.ca_sha256(), .secret = created.secret};
  return json{
      {"token", net::encode_token(token)}, {"expires", format_rfc3339(created.expires_us)}, {"address", address}};
}

Result<json> audit_json(Node& node, const httplib::Request& request) {
  const auto limit = TIDEMARK_TRY(limit_of(request, kAuditDefault, kAuditMax));
  return json{{"path", node.directory.audit()}, {"entries", TIDEMARK_TRY(node.audit.read(limit))}};
}

}  // namespace

void add_server_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/server",
           [&node](const httplib::Request&, httplib::Response& response) { answer(response, server_json(node)); });
  http.Get("/v1/health", [&node](const httplib::Request&, httplib::Response& response) {
    const auto all = summaries(node);
    if (!all) return answer(response, all.error());
    const bool ok = std::all_of(all->begin(), all->end(),
                                [](const auto& one) { return one.health.state == PartitionHost::State::serving; });
    response.status = ok ? 200 : 503;
    answer(response,
           json{{"ok", ok}, {"partitions", partitions_json(node, *all)}, {"directories", directories_json(node)}});
  });
  http.Post("/v1/partitions/([^/]+)/open", [&node](const httplib::Request& request, httplib::Response& response) {
    const auto begun = open_partition(node, request);
    answer(response, begun);
    if (begun) response.status = 202;
  });
  http.Post("/v1/tokens", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"token.create", {}, {}}, [&](Action& action) -> Result<json> {
             auto made = TIDEMARK_TRY(make_token(node, request.body));
             action.details = "until " + made.value("expires", "");
             return made;
           }));
  });
  http.Get("/v1/audit", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audit_json(node, request));
  });
  http.Get("/metrics", [&node](const httplib::Request&, httplib::Response& response) {
    response.set_content(metrics_text(node), "text/plain; version=0.0.4");
  });
}

}  // namespace tidemark::server
