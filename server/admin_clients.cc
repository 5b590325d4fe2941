// Certificates of clients of exports: which there are, and revoking them.
#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "server/admin_routes.h"
#include "server/export_clients.h"
#include "server/json_shapes.h"
#include "server/logging.h"
#include "server/nbd_service.h"

namespace tidemark::server {

namespace {

using nlohmann::json;

json known_time(WallMicros time_us) { return time_us == 0 ? json() : json(format_rfc3339(time_us)); }

json clients_to_json(const std::vector<ExportClients::Certificate>& certificates) {
  json list = json::array();
  for (const auto& one : certificates)
    list.push_back({{"client", one.client},
                    {"serial", one.serial},
                    {"issued", known_time(one.issued_us)},
                    {"expires", known_time(one.expires_us)},
                    {"revoked", one.revoked_us.has_value()},
                    {"revoked_at", known_time(one.revoked_us.value_or(0))}});
  return {{"clients", std::move(list)}};
}

Result<json> revoke(Node& node, const std::string& who, const std::string& text, Action& action) {
  const json body = TIDEMARK_TRY(parse_body(text, R"({"revoked": true})"));
  TIDEMARK_TRY(check_keys(body, {"revoked", "reason"}));
  if (body.value("revoked", json()) != true)
    return fail(Code::invalid_argument, "revoked", "it must be true",
                "what was revoked stays so; `tidemarkd certificate client` issues another one");
  const std::string reason = TIDEMARK_TRY(text_at(body, "reason"));
  const auto revoked = TIDEMARK_TRY(node.clients->revoke(who, node.clock.wall_us()));
  std::string serials;
  for (const auto& one : revoked) {
    serials += (serials.empty() ? "" : ", ") + one.serial;
    node.nbd->end_certificate(one.serial);
    spdlog::info("client certificate revoked{}{}", kv("client", one.client.empty() ? "-" : one.client),
                 kv("serial", one.serial));
  }
  action.details = serials + (reason.empty() ? "" : "; " + reason);
  return clients_to_json(revoked);
}

}  // namespace

void add_client_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/clients", [&node](const httplib::Request&, httplib::Response& response) {
    answer(response, [&]() -> Result<json> { return clients_to_json(TIDEMARK_TRY(node.clients->list())); }());
  });
  http.Patch("/v1/clients/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"client.revoke", request.matches[1], {}},
                             [&](Action& action) { return revoke(node, request.matches[1], request.body, action); }));
  });
}

}  // namespace tidemark::server
