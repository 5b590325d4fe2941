#include "cli/clients.h"

#include <nlohmann/json.hpp>
#include <ostream>

#include "cli/format.h"
#include "cli/output.h"

namespace tidemark::cli {

using nlohmann::json;

Outcome list_clients(Context& context) {
  const json list = TIDEMARK_TRY(context.client.get("/v1/clients"));
  if (context.json) return answer(context, list);
  const json& clients = array_at(list, "clients");
  if (clients.empty()) {
    context.out << "no certificate was issued yet; `tidemarkd certificate client NAME --out DIR` on the server does\n";
    return 0;
  }
  Table table({{"CLIENT"}, {"SERIAL"}, {"ISSUED"}, {"EXPIRES"}, {"REVOKED"}});
  for (const json& one : clients) {
    const auto time = [&](const char* key) {
      const auto at = time_at(one, key);
      return at ? human_time(*at) : std::string("-");
    };
    table.add({or_dash(text_at(one, "client")), or_dash(text_at(one, "serial")), time("issued"), time("expires"),
               flag_at(one, "revoked") && !time_at(one, "revoked_at") ? "yes" : time("revoked_at")});
  }
  table.print(context.out);
  return 0;
}

Outcome revoke_client(Context& context, const std::string& client, const std::string& reason) {
  json body{{"revoked", true}};
  if (!reason.empty()) body["reason"] = reason;
  const json revoked = TIDEMARK_TRY(context.client.patch("/v1/clients/" + path_segment(client), body));
  if (context.json) return answer(context, revoked);
  for (const json& one : array_at(revoked, "clients"))
    context.out << clean(client) << ": certificate " << clean(text_at(one, "serial"))
                << " is revoked: it opens no export any more, and who was connected with it is not now\n";
  return 0;
}

}  // namespace tidemark::cli
