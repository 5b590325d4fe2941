#include <httplib.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/json_shapes.h"
#include "server/logging.h"
#include "server/moment.h"
#include "server/retention_json.h"

namespace tidemark::server {
namespace {

using nlohmann::json;
using storage::pb::MachineRecord;

// Machine, point and time of a request that changes something.
struct Subject {
  MachinePlace place;
  std::string name;
  WallMicros now_us;         // of the wall clock: what people are told
  WallMicros holdoff_until;  // 0: there is none
  bool cloned;               // some clone stands on a point of it
};

Result<Subject> subject_of(Node& node, const std::string& who, Action& action) {
  Subject subject{
      .place = TIDEMARK_TRY(find_place(node, who)), .name = {}, .now_us = 0, .holdoff_until = 0, .cloned = false};
  const auto report = TIDEMARK_TRY(find_report(subject.place));
  if (report.is_clone)
    return fail(Code::invalid_argument, report.name, "it is a clone, and has no retention of its own",
                "`tidemark clone drop` removes it");
  subject.name = report.name;
  subject.cloned = report.cloned;
  action.object = subject.name;
  subject.now_us = node.clock.wall_us();
  const auto holdoff = static_cast<WallMicros>(node.config.retention.removal_holdoff) * 1'000'000;
  if (holdoff != 0) subject.holdoff_until = subject.now_us + holdoff;
  return subject;
}

std::string point_name(const Subject& subject, std::uint64_t epoch) {
  return subject.name + " epoch:" + std::to_string(epoch);
}

Status check_pin_name(const std::string& name) {
  if (check_machine_name(name)) return {};
  return fail(Code::invalid_argument, name, "cannot be the name of a pin",
              "it has 1 to 64 characters of A-Z a-z 0-9 . _ -");
}

// A time, or a duration from now; 0: without end.
Result<WallMicros> until_of(const json& body, WallMicros now_us) {
  const std::string text = TIDEMARK_TRY(text_at(body, "until"));
  if (text.empty()) return 0;
  const std::string remedy = "write a time like 2027-01-31T00:00:00Z, or how long from now: 12h, 30d";
  WallMicros until = 0;
  if (const auto seconds = parse_duration(text)) {
    until = now_us + static_cast<WallMicros>(*seconds) * 1'000'000;
  } else if (const auto time = parse_rfc3339(text)) {
    until = *time;
  } else {
    return fail(Code::invalid_argument, text, "not a time until which a pin can hold", remedy);
  }
  if (until <= now_us) return fail(Code::invalid_argument, text, "is over already", remedy);
  return until;
}

Result<json> retention_of(Node& node, const std::string& who) {
  const auto place = TIDEMARK_TRY(find_place(node, who));
  return retention_json(TIDEMARK_TRY(retention_view(place)), node.config.retention.removal_holdoff);
}

// --- the ladder ---

Result<json> put_ladder(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto subject = TIDEMARK_TRY(subject_of(node, request.matches[1], action));
  const json body = TIDEMARK_TRY(parse_body(request.body, R"({"preset": 60})"));
  const auto ladder = TIDEMARK_TRY(ladder_from_json(body));
  action.details = storage::to_string(ladder);
  TIDEMARK_TRY(storage::check_ladder(ladder));
  TIDEMARK_TRY(change_machine(subject.place,
                              [ladder, place = subject.place, until = subject.holdoff_until](MachineRecord& record) {
                                return storage::set_ladder(record, ladder, place.host->retention()->now_us(), until);
                              }));
  return retention_of(node, request.matches[1]);
}

// --- pins ---

Result<json> add_pin(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto subject = TIDEMARK_TRY(subject_of(node, request.matches[1], action));
  const json body = TIDEMARK_TRY(parse_body(request.body, R"({"at": "latest", "name": "before-upgrade"})"));
  TIDEMARK_TRY(check_keys(body, {"at", "name", "reason", "until"}));
  storage::pb::PinRecord pin;
  pin.set_name(TIDEMARK_TRY(text_at(body, "name")));
  if (!pin.name().empty()) TIDEMARK_TRY(check_pin_name(pin.name()));
  pin.set_reason(TIDEMARK_TRY(text_at(body, "reason")));
  pin.set_until_us(TIDEMARK_TRY(until_of(body, subject.now_us)));
  const std::string at = TIDEMARK_TRY(text_at(body, "at"));
  const auto point = TIDEMARK_TRY(exact_point(node, subject.place, subject.name, at));
  const EpochNumber epoch(point.number());
  pin.set_epoch(point.number());
  if (pin.name().empty()) pin.set_name("epoch-" + std::to_string(point.number()));
  pin.set_created_us(subject.now_us);
  pin.set_by(by_whom(request));
  const std::string object = point_name(subject, point.number());
  action.object = object;
  action.details = "as " + pin.name() + (pin.until_us() == 0 ? "" : " until " + format_rfc3339(pin.until_us()));
  const auto dropped = [object] {
    return fail(Code::not_found, object, "the point was dropped", "pin another one: `tidemark points` lists them");
  };
  TIDEMARK_TRY(change_machine(
      subject.place, [pin, epoch, object, dropped, place = subject.place](MachineRecord& record) -> Status {
        const auto* retention = place.host->retention();
        if (retention->going(place.id, epoch)) return dropped();
        int in_force = 0;
        for (const auto& other : record.pins()) {
          if (!storage::is_in_force(other, retention->now_us())) continue;
          ++in_force;
          if (other.name() == pin.name())
            return fail(Code::already_exists, pin.name(),
                        "a pin of this machine has this name, on epoch:" + std::to_string(other.epoch()),
                        "give another --name, or unpin that one first");
        }
        for (const auto& removal : record.removals())
          if (removal.epoch() == pin.epoch())
            return fail(Code::busy, object, "it is to be removed",
                        "take that back first: `tidemark point keep " + record.name() +
                            " --at epoch:" + std::to_string(pin.epoch()) + "`");
        if (in_force >= static_cast<int>(storage::kPinsMax))
          return fail(Code::busy, record.name(), "it has " + std::to_string(in_force) + " pins, which is the limit",
                      "unpin some: `tidemark pins " + record.name() + "` lists them");
        *record.add_pins() = pin;
        return {};
      }));
  // A drop that was written before the pin is in the index by now.
  const auto points = TIDEMARK_TRY(subject.place.partition->epochs(subject.place.id, 0, false, kIndexTimeout));
  if (std::none_of(points.begin(), points.end(), [&](const auto& one) { return one.number() == pin.epoch(); })) {
    TIDEMARK_TRY(change_machine(subject.place, [pin](MachineRecord& record) -> Status {
      auto& pins = *record.mutable_pins();
      pins.erase(std::remove_if(pins.begin(), pins.end(), [&](const auto& one) { return one.name() == pin.name(); }),
                 pins.end());
      return {};
    }));
    return dropped();
  }
  json answer = pin_json(pin);
  answer["time"] = format_rfc3339(point.time_us());
  return answer;
}

Result<json> list_pins(Node& node, const std::string& who) {
  const auto place = TIDEMARK_TRY(find_place(node, who));
  const auto view = TIDEMARK_TRY(retention_view(place));
  const auto points = TIDEMARK_TRY(place.partition->epochs(place.id, 0, false, kIndexTimeout));
  json pins = json::array();
  for (const auto& pin : view.record.pins()) {
    if (!storage::is_in_force(pin, view.now_us)) continue;
    pins.push_back(pin_json(pin));
    pins.back()["time"] = nullptr;
    for (const auto& point : points)
      if (point.number() == pin.epoch()) pins.back()["time"] = format_rfc3339(point.time_us());
  }
  return json{{"pins", std::move(pins)}};
}

// The point stays for the hold-off: an unpinned one may be gone a moment later.
Result<json> remove_pin(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto subject = TIDEMARK_TRY(subject_of(node, request.matches[1], action));
  const std::string name = request.matches[2];
  action.object = subject.name + " pin " + name;
  auto answer = std::make_shared<storage::pb::PinRecord>();
  TIDEMARK_TRY(change_machine(
      subject.place,
      [name, answer, place = subject.place, until = subject.holdoff_until](MachineRecord& record) -> Status {
        auto& pins = *record.mutable_pins();
        const WallMicros now = place.host->retention()->now_us();
        const auto found = std::find_if(pins.begin(), pins.end(), [&](const auto& pin) {
          return pin.name() == name && storage::is_in_force(pin, now);
        });
        if (found == pins.end())
          return fail(Code::not_found, name, "the machine has no pin of this name",
                      "`tidemark pins " + record.name() + "` lists them");
        if (until != 0 && (found->until_us() == 0 || found->until_us() > until)) found->set_until_us(until);
        *answer = *found;
        if (until == 0) {
          answer->set_until_us(now);
          pins.erase(found);
        }
        return {};
      }));
  action.details = "epoch:" + std::to_string(answer->epoch()) + ", held until " + format_rfc3339(answer->until_us());
  return pin_json(*answer);
}

// --- removals ---

Status add_removal(MachineRecord& record, const storage::pb::RemovalRecord& removal, const std::string& object) {
  for (const auto& other : record.removals())
    if (other.epoch() == removal.epoch())
      return fail(Code::already_exists, object,
                  "it is to be removed already, at " + format_rfc3339(other.effective_us()),
                  removal.epoch() == 0 ? "take it back with `tidemark machine unremove " + record.name() + "`"
                                       : "take it back with `tidemark point keep " + record.name() +
                                             " --at epoch:" + std::to_string(removal.epoch()) + "`");
  if (static_cast<std::size_t>(record.removals_size()) >= storage::kRemovalsMax)
    return fail(Code::busy, record.name(), "as many removals wait as may", "wait until some are done");
  *record.add_removals() = removal;
  return {};
}

storage::pb::RemovalRecord removal_of(const Subject& subject, const httplib::Request& request, std::uint64_t epoch,
                                      const std::string& reason) {
  storage::pb::RemovalRecord removal;
  removal.set_epoch(epoch);
  removal.set_requested_us(subject.now_us);
  removal.set_effective_us(subject.holdoff_until != 0 ? subject.holdoff_until : subject.now_us);
  removal.set_by(by_whom(request));
  removal.set_reason(reason);
  return removal;
}

Result<json> remove_point(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto subject = TIDEMARK_TRY(subject_of(node, request.matches[1], action));
  const json body = TIDEMARK_TRY(parse_body(request.body, R"({"at": "epoch:17", "reason": "..."})"));
  TIDEMARK_TRY(check_keys(body, {"at", "reason"}));
  const std::string reason = TIDEMARK_TRY(text_at(body, "reason"));
  const std::string at = TIDEMARK_TRY(text_at(body, "at"));
  const auto point = TIDEMARK_TRY(exact_point(node, subject.place, subject.name, at));
  const auto removal = removal_of(subject, request, point.number(), reason);
  const std::string object = point_name(subject, point.number());
  action.object = object;
  action.details = "not before " + format_rfc3339(removal.effective_us()) + (reason.empty() ? "" : ": " + reason);
  TIDEMARK_TRY(change_machine(subject.place, [removal, object, place = subject.place](MachineRecord& record) -> Status {
    if (place.host->find(place.id)->newest_point.value() == removal.epoch())
      return fail(Code::busy, object, "it is the newest point, which always stays",
                  "ask again when there is a newer one, or remove the machine");
    for (const auto& pin : record.pins())
      if (pin.epoch() == removal.epoch() && storage::is_in_force(pin, place.host->retention()->now_us()))
        return fail(Code::busy, object, "it is pinned as " + pin.name(),
                    "unpin it first: `tidemark unpin " + record.name() + " " + pin.name() + "`");
    return add_removal(record, removal, object);
  }));
  json answer = removal_json(removal);
  answer["time"] = format_rfc3339(point.time_us());
  return answer;
}

// WHAT: "machine", or epoch:N.
Result<json> take_back(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto subject = TIDEMARK_TRY(subject_of(node, request.matches[1], action));
  const std::string what = request.matches[2];
  std::uint64_t epoch = 0;
  if (what != "machine") {
    const Moment moment = TIDEMARK_TRY(parse_at(what, subject.now_us));
    if (moment.epoch) {
      epoch = moment.epoch->value();
    } else {
      epoch = TIDEMARK_TRY(exact_point(node, subject.place, subject.name, what)).number();
    }
    if (epoch == 0) return fail(Code::not_found, what, "there is no such point");
    action.object = point_name(subject, epoch);
  }
  TIDEMARK_TRY(change_machine(
      subject.place, [epoch, object = action.object, place = subject.place](MachineRecord& record) -> Status {
        auto& removals = *record.mutable_removals();
        const auto found =
            std::find_if(removals.begin(), removals.end(), [&](const auto& one) { return one.epoch() == epoch; });
        if (found == removals.end() || (epoch != 0 && place.host->retention()->going(place.id, EpochNumber(epoch))))
          return fail(Code::not_found, object,
                      found == removals.end() ? "it is not to be removed" : "it is gone already",
                      "`tidemark ladder show " + record.name() + "` lists what is");
        removals.erase(found);
        return {};
      }));
  return retention_of(node, request.matches[1]);
}

}  // namespace

Result<json> remove_machine(Node& node, const httplib::Request& request, Action& action) {
  const std::lock_guard lock(change_mutex());
  const auto subject = TIDEMARK_TRY(subject_of(node, request.matches[1], action));
  if (request.get_param_value("confirm") != subject.name)
    return fail(Code::invalid_argument, subject.name,
                "removing a machine removes all its points: it needs confirm=" + subject.name,
                "add the query parameter confirm with the machine's name");
  const std::string reason = request.get_param_value("reason");
  if (reason.size() > kAdminTextMax)
    return fail(Code::invalid_argument, "reason", "is longer than " + std::to_string(kAdminTextMax) + " bytes");
  if (subject.cloned)
    return fail(Code::busy, subject.name, "clones stand on points of it",
                "drop them first: `tidemark clone list` lists them");
  action.object += " " + subject.place.id.to_string();
  action.details = reason;
  if (subject.holdoff_until == 0) {
    auto promise = std::make_shared<std::promise<Status>>();
    auto removed = promise->get_future();
    subject.place.shard->post([place = subject.place, promise] {
      place.host->remove(place.id, [promise](Status done) { promise->set_value(std::move(done)); });
    });
    if (removed.wait_for(kIndexTimeout) != std::future_status::ready)
      return fail(Code::timed_out, subject.name, "the removal is not durable yet", "look again in a moment");
    TIDEMARK_TRY(removed.get());
    spdlog::info("machine removed{}{}", kv("machine", subject.name), kv("id", subject.place.id.to_string()));
    return json();
  }
  const auto removal = removal_of(subject, request, 0, reason);
  action.details = "not before " + format_rfc3339(removal.effective_us()) + (reason.empty() ? "" : ": " + reason);
  TIDEMARK_TRY(change_machine(subject.place, [removal, object = subject.name](MachineRecord& record) {
    return add_removal(record, removal, object);
  }));
  spdlog::info("machine is to be removed{}{}{}{}", kv("machine", subject.name), kv("id", subject.place.id.to_string()),
               kv("by", removal.by()), kv("not_before", format_rfc3339(removal.effective_us())));
  return to_json(TIDEMARK_TRY(find_report(subject.place)));
}

void add_retention_routes(httplib::Server& http, Node& node) {
  http.Get("/v1/machines/([^/]+)/retention", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, retention_of(node, request.matches[1]));
  });
  http.Put("/v1/machines/([^/]+)/ladder", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"ladder.set", request.matches[1], {}},
                             [&](Action& action) { return put_ladder(node, request, action); }));
  });
  http.Get("/v1/machines/([^/]+)/pins", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, list_pins(node, request.matches[1]));
  });
  http.Post("/v1/machines/([^/]+)/pins", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"pin.add", request.matches[1], {}},
                             [&](Action& action) { return add_pin(node, request, action); }));
  });
  http.Delete("/v1/machines/([^/]+)/pins/([^/]+)",
              [&node](const httplib::Request& request, httplib::Response& response) {
                answer(response, audited(node, request, {"pin.remove", request.matches[1], {}},
                                         [&](Action& action) { return remove_pin(node, request, action); }));
              });
  http.Post("/v1/machines/([^/]+)/removals", [&node](const httplib::Request& request, httplib::Response& response) {
    answer(response, audited(node, request, {"point.remove", request.matches[1], {}},
                             [&](Action& action) { return remove_point(node, request, action); }));
  });
  http.Delete(
      "/v1/machines/([^/]+)/removals/([^/]+)", [&node](const httplib::Request& request, httplib::Response& response) {
        const bool machine = request.matches[2] == "machine";
        answer(response, audited(node, request, {machine ? "machine.unremove" : "point.keep", request.matches[1], {}},
                                 [&](Action& action) { return take_back(node, request, action); }));
      });
}

}  // namespace tidemark::server
