// Changes of machines by an administrator: one at a time, durable when they are answered, and in the audit log.
#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>
#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/admin_socket.h"
#include "server/logging.h"

namespace tidemark::server {

using nlohmann::json;
using storage::pb::MachineRecord;

std::mutex& change_mutex() {
  static std::mutex mutex;
  return mutex;
}

Status change_machine(const MachinePlace& place, std::function<Status(MachineRecord&)> how) {
  auto promise = std::make_shared<std::promise<Status>>();
  auto written = promise->get_future();
  place.shard->post([place, promise, how = std::move(how)] {
    const auto* machine = place.host->find(place.id);
    if (machine == nullptr || machine->record.removed()) {
      promise->set_value(fail(Code::not_found, place.id.to_string(), "no such machine"));
      return;
    }
    if (machine->record.has_clone()) {
      promise->set_value(fail(Code::invalid_argument, machine->record.name(), "it is a clone, which cannot be changed",
                              "`tidemark clone drop` removes it"));
      return;
    }
    MachineRecord trial = machine->record;
    if (Status allowed = how(trial); !allowed) {
      promise->set_value(std::move(allowed));
      return;
    }
    // Asked again when its turn comes, on the record as it is then; what is refused then changes nothing.
    auto outcome = std::make_shared<Status>();
    place.host->put(
        place.id,
        [how, outcome](MachineRecord& record) {
          MachineRecord changed = record;
          *outcome = how(changed);
          if (*outcome) record = std::move(changed);
        },
        [promise, outcome](const Status& done) { promise->set_value(done ? *outcome : done); });
  });
  if (written.wait_for(kIndexTimeout) != std::future_status::ready)
    return fail(Code::timed_out, place.id.to_string(), "the change is not durable yet", "look again in a moment");
  return written.get();
}

Result<json> audited(Node& node, const httplib::Request& request, const Action& action,
                     const std::function<Result<json>(Action&)>& carry_out) {
  TIDEMARK_TRY(node.audit.ready());
  const Peer peer = peer_of(request);
  Action done = action;
  auto result = carry_out(done);
  const auto written = node.audit.append({.who = peer.name(),
                                          .uid = peer.uid,
                                          .pid = peer.pid,
                                          .action = done.name,
                                          .object = done.object,
                                          .error = result ? std::nullopt : std::optional(result.error()),
                                          .details = done.details});
  if (!written) {
    spdlog::error("audit log not written{}{}{}{}", kv("action", done.name), kv("object", done.object),
                  kv("who", peer.name()), kv(written.error()));
    if (result) return std::unexpected(written.error());
  }
  return result;
}

std::string by_whom(const httplib::Request& request) { return peer_of(request).name(); }

Result<json> parse_body(const std::string& text, const std::string& example) {
  json body = text.empty() ? json::object() : json::parse(text, nullptr, false);
  if (!body.is_object()) return fail(Code::invalid_argument, "body", "it is not a JSON object", "like " + example);
  return body;
}

Result<std::string> text_at(const json& body, const char* key) {
  const auto found = body.find(key);
  if (found == body.end() || found->is_null()) return std::string();
  if (!found->is_string()) return fail(Code::invalid_argument, key, "is not a text");
  const std::string text = found->get<std::string>();
  if (text.size() > kAdminTextMax)
    return fail(Code::invalid_argument, key, "is longer than " + std::to_string(kAdminTextMax) + " bytes");
  return text;
}

Status check_keys(const json& body, const std::vector<std::string>& known) {
  for (const auto& [key, value] : body.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    std::string there;
    for (const auto& one : known) there += (there.empty() ? "" : ", ") + one;
    return fail(Code::invalid_argument, key, "is not a known key", "there are " + there);
  }
  return {};
}

}  // namespace tidemark::server
