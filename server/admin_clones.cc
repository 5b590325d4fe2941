// Clones of points: made, listed, dropped. A clone lives in the partition of the machine it stands on, and is known as
// clone:NAME where a machine could be named as well.
#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "server/admin_routes.h"
#include "server/json_shapes.h"
#include "server/logging.h"
#include "server/moment.h"
#include "server/nbd_service.h"
#include "storage/epoch_progress.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

constexpr char kPrefix[] = "clone:";

std::string bare(const std::string& name) { return name.starts_with(kPrefix) ? name.substr(sizeof kPrefix - 1) : name; }

// What a clone stands on, as people know it.
std::string name_of(const storage::Partition& partition, const std::string& machine_bytes) {
  const auto id = storage::machine_from_bytes(machine_bytes);
  if (!id) return {};
  const auto* machine = partition.find(*id);
  return machine == nullptr ? id->to_string() : machine->record.name();
}

// On the shard's thread.
json clone_json(const Node& node, const storage::Partition& partition, const storage::MachineState& clone) {
  const auto& record = clone.record;
  json disks = json::array();
  for (const auto& disk : record.disks())
    if (disk.size() != 0) disks.push_back({{"disk", disk.disk()}, {"name", disk.name()}, {"size", disk.size()}});
  return {{"name", bare(record.name())},
          {"id", machine_id_of(record).to_string()},
          {"parent", name_of(partition, record.clone().parent())},
          {"epoch", record.clone().epoch()},
          {"depth", record.clone().depth()},
          {"created", format_rfc3339(record.clone().created_us())},
          {"by", record.clone().by()},
          {"written_epoch", clone.durable_epoch.value()},
          {"cloned", !clone.cloned.empty()},
          {"nbd", node.nbd->sockets_of(bare(record.name()))},
          {"clients", node.nbd->users_of(machine_id_of(record))},
          {"disks", std::move(disks)}};
}

Result<std::vector<json>> all_clones(Node& node) {
  std::vector<json> all;
  for (const auto& shard : node.shards) {
    auto some = TIDEMARK_TRY(shard->call([shard = shard.get(), &node] {
      std::vector<json> clones;
      for (const auto& host : shard->hosts()) {
        if (host->partition() == nullptr) continue;
        host->partition()->for_each_clone(
            [&](const storage::MachineState& clone) { clones.push_back(clone_json(node, *host->partition(), clone)); });
      }
      return clones;
    }));
    std::move(some.begin(), some.end(), std::back_inserter(all));
  }
  std::sort(all.begin(), all.end(), [](const json& a, const json& b) { return a["name"] < b["name"]; });
  return all;
}

Result<MachinePlace> find_clone(Node& node, const std::string& name) {
  const auto id = node.names.find(kPrefix + bare(name));
  if (!id) return fail(Code::not_found, name, "there is no clone of this name", "`tidemark clone list` lists them");
  return find_place(node, id->to_string());
}

Result<json> one_clone(Node& node, const std::string& name) {
  const auto place = TIDEMARK_TRY(find_clone(node, name));
  auto clone = TIDEMARK_TRY(place.shard->call([place, &node] {
    const auto* state = place.host->find(place.id);
    return state == nullptr ? json() : clone_json(node, *place.partition, *state);
  }));
  if (clone.is_null()) return fail(Code::not_found, name, "there is no clone of this name");
  return clone;
}

MachineId new_id_in(const Node& node, PartitionId partition) {
  for (;;) {
    std::array<std::byte, MachineId::kSize> bytes;
    secure_random(bytes);
    const MachineId id(bytes);
    if (node.partition_for(id) == partition) return id;
  }
}

// Names that are taken until the clones are there, or given back when they are not to be.
class TakenNames {
 public:
  explicit TakenNames(MachineNames& names) : names_(names) {}
  ~TakenNames() {
    for (const auto& clone : taken_) names_.release(clone.name, clone.id);
  }
  TakenNames(const TakenNames&) = delete;
  TakenNames& operator=(const TakenNames&) = delete;

  Status take(const storage::CloneName& clone) {
    if (!names_.take(clone.name, clone.id))
      return fail(Code::already_exists, bare(clone.name), "there is a clone of this name already",
                  "give another --name, or drop that one: `tidemark clone drop " + bare(clone.name) + "`");
    taken_.push_back(clone);
    return {};
  }
  const std::vector<storage::CloneName>& all() const { return taken_; }
  void keep() { taken_.clear(); }

 private:
  MachineNames& names_;
  std::vector<storage::CloneName> taken_;
};

Result<std::uint64_t> count_of(const json& body) {
  const auto found = body.find("count");
  if (found == body.end() || found->is_null()) return 0;
  if (!found->is_number_unsigned() || *found == 0 || found->get<std::uint64_t>() > storage::kClonesAtOnceMax)
    return fail(Code::invalid_argument, "count", "is " + dump(*found),
                "1 to " + std::to_string(storage::kClonesAtOnceMax) + " clones can be made at once");
  return found->get<std::uint64_t>();
}

Status create_durably(const MachinePlace& place, const storage::CloneBase& base,
                      const std::vector<storage::CloneName>& names, const std::string& by, WallMicros now_us) {
  auto promise = std::make_shared<std::promise<Status>>();
  auto created = promise->get_future();
  place.shard->post([=] {
    if (place.host->retention()->going(base.parent, base.epoch)) {
      promise->set_value(fail(Code::not_found, "epoch:" + std::to_string(base.epoch.value()),
                              "the point is being dropped", "clone another one: `tidemark points` lists them"));
      return;
    }
    place.host->create_clones(base, names, by, now_us, [promise](Status done) { promise->set_value(std::move(done)); });
  });
  if (created.wait_for(kIndexTimeout) != std::future_status::ready)
    return fail(Code::timed_out, names.front().name, "the clones are not durable yet",
                "look in a moment: `tidemark clone list`");
  return created.get();
}

Result<json> create(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto place = TIDEMARK_TRY(find_place(node, request.matches[1]));
  const std::string parent = TIDEMARK_TRY(find_report(place)).name;
  action.object = parent;
  const json body = TIDEMARK_TRY(parse_body(request.body, R"({"at": "latest", "name": "check"})"));
  TIDEMARK_TRY(check_keys(body, {"at", "name", "count"}));
  const std::string at = TIDEMARK_TRY(text_at(body, "at"));
  const auto point = TIDEMARK_TRY(exact_point(node, place, parent, at));
  std::string name = TIDEMARK_TRY(text_at(body, "name"));
  if (name.empty()) name = bare(parent) + "-" + std::to_string(point.number());
  const std::uint64_t count = TIDEMARK_TRY(count_of(body));
  TakenNames names(node.names);
  for (std::uint64_t i = 1; i <= std::max<std::uint64_t>(count, 1); ++i) {
    const std::string numbered = count == 0 ? name : name + "-" + std::to_string(i);
    TIDEMARK_TRY(check_machine_name(numbered));
    TIDEMARK_TRY(names.take({new_id_in(node, place.host->id()), kPrefix + numbered}));
  }
  action.object = parent + " epoch:" + std::to_string(point.number());
  action.details = count == 0 ? "as " + name : "as " + name + "-1 to " + name + "-" + std::to_string(count);
  const auto base = TIDEMARK_TRY(place.partition->clone_base(place.id, EpochNumber(point.number()), kIndexTimeout));
  auto made = create_durably(place, base, names.all(), by_whom(request), node.clock.wall_us());
  // What may still become durable keeps its name.
  if (!made && made.error().code != Code::timed_out) return std::unexpected(made.error());
  const auto clones = names.all();
  names.keep();
  TIDEMARK_TRY(std::move(made));
  spdlog::info("clones made{}{}{}{}", kv("of", parent), kv("epoch", point.number()),
               kv("name", bare(clones.front().name)), kv("count", clones.size()));
  json list = json::array();
  for (const auto& clone : clones) list.push_back(TIDEMARK_TRY(one_clone(node, clone.name)));
  return json{{"point", {{"epoch", point.number()}, {"time", format_rfc3339(point.time_us())}}},
              {"clones", std::move(list)}};
}

// Nobody opens it meanwhile.
class DropMark {
 public:
  DropMark(NbdService& nbd, const MachineId& clone) : nbd_(nbd), clone_(clone) {}
  ~DropMark() { nbd_.dropped(clone_); }
  DropMark(const DropMark&) = delete;
  DropMark& operator=(const DropMark&) = delete;

 private:
  NbdService& nbd_;
  const MachineId clone_;
};

Result<json> serve(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const std::string name = bare(request.matches[1]);
  TIDEMARK_TRY(find_clone(node, name));
  const json body = TIDEMARK_TRY(parse_body(request.body, R"({"nbd": "unix:/run/tidemark/check.sock"})"));
  TIDEMARK_TRY(check_keys(body, {"nbd"}));
  const std::string at = TIDEMARK_TRY(text_at(body, "nbd"));
  if (!at.starts_with("unix:/"))
    return fail(Code::invalid_argument, "nbd", "is \"" + at + "\"", "write unix: and the whole path of a socket");
  action.object = kPrefix + name;
  action.details = "at " + at;
  const std::string socket = TIDEMARK_TRY(node.nbd->serve(name, at.substr(5)));
  return json{{"clone", name}, {"nbd", socket}, {"uri", "nbd+unix:///?socket=" + at.substr(5)}};
}

Result<json> drop(Node& node, const std::string& name, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto place = TIDEMARK_TRY(find_clone(node, name));
  action.object = kPrefix + bare(name);
  TIDEMARK_TRY(node.nbd->begin_drop(place.id, bare(name)));
  const DropMark mark(*node.nbd, place.id);
  auto promise = std::make_shared<std::promise<Status>>();
  auto dropped = promise->get_future();
  place.shard->post([place, promise, name] {
    const auto* clone = place.host->find(place.id);
    if (clone != nullptr && !clone->cloned.empty()) {
      promise->set_value(fail(Code::busy, bare(name), "other clones stand on it",
                              "drop them first: `tidemark clone list` lists them"));
      return;
    }
    place.host->remove(place.id, [promise](Status done) { promise->set_value(std::move(done)); });
  });
  if (dropped.wait_for(kIndexTimeout) != std::future_status::ready)
    return fail(Code::timed_out, name, "the drop is not durable yet", "look again in a moment");
  TIDEMARK_TRY(dropped.get());
  spdlog::info("clone dropped{}", kv("clone", bare(name)));
  return json();
}

}  // namespace

void add_clone_routes(httplib::Server& http, Node& node) {
  http.Post("/v1/machines/([^/]+)/clones", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"clone.create", request.matches[1], {}},
                             [&](Action& action) { return create(node, request, action); }));
  });
  http.Get("/v1/clones", [&node](const httplib::Request&, httplib::Response& response) {
    answer(response, [&]() -> Result<json> { return json{{"clones", TIDEMARK_TRY(all_clones(node))}}; }());
  });
  http.Get("/v1/clones/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, one_clone(node, request.matches[1]));
  });
  http.Post("/v1/clones/([^/]+)/serve", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"clone.serve", request.matches[1], {}},
                             [&](Action& action) { return serve(node, request, action); }));
  });
  http.Delete("/v1/clones/([^/]+)/serve", [&node](const httplib::Request& request, httplib::Response& response) {
    const auto ended = audited(node, request, {"clone.unserve", request.matches[1], {}}, [&](Action&) -> Result<json> {
      TIDEMARK_TRY(node.nbd->unserve(bare(request.matches[1])));
      return json();
    });
    if (!ended) return answer(response, ended.error());
    response.status = 204;
  });
  http.Delete("/v1/clones/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
    const auto dropped = audited(node, request, {"clone.drop", request.matches[1], {}},
                                 [&](Action& action) { return drop(node, request.matches[1], action); });
    if (!dropped) return answer(response, dropped.error());
    response.status = 204;
  });
}

}  // namespace tidemark::server
