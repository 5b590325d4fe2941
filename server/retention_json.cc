#include "server/retention_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "server/admin_routes.h"
#include "server/json_shapes.h"

namespace tidemark::server {
namespace {

using nlohmann::json;
using storage::Hold;

json time_or_null(WallMicros time_us) { return time_us == 0 ? json() : json(format_rfc3339(time_us)); }
json text_or_null(const std::string& text) { return text.empty() ? json() : json(text); }

const char* kind_name(Hold::Kind kind) {
  switch (kind) {
    case Hold::Kind::dense: return "dense";
    case Hold::Kind::rung: return "rung";
    case Hold::Kind::pin: return "pin";
    case Hold::Kind::in_use: return "in-use";
    case Hold::Kind::newest_point: return "newest-point";
    case Hold::Kind::newest_verified: return "newest-verified";
    case Hold::Kind::newest_epoch: return "newest-epoch";
  }
  return "";
}

json hold_json(const Hold& hold) {
  json one = {{"kind", kind_name(hold.kind)}, {"until", time_or_null(hold.until_us)}};
  if (hold.kind == Hold::Kind::rung) one["every_seconds"] = hold.every_s;
  if (hold.kind == Hold::Kind::pin) one["pin"] = hold.pin;
  if (hold.former) one["former"] = true;
  return one;
}

Result<std::uint64_t> seconds_at(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number_unsigned())
    return fail(Code::invalid_argument, key, found == object.end() ? "it is missing" : "is " + dump(*found),
                "give a whole number of seconds");
  return found->get<std::uint64_t>();
}

}  // namespace

Result<RetentionView> retention_view(const MachinePlace& place) {
  auto view = TIDEMARK_TRY(place.shard->call([place]() -> std::optional<RetentionView> {
    const auto* machine = place.host->find(place.id);
    const auto* retention = place.host->retention();
    if (machine == nullptr || machine->record.removed() || retention == nullptr) return std::nullopt;
    return RetentionView{machine->record, guards_of(*machine), retention->now_us(), retention->held(),
                         retention->going(place.id)};
  }));
  if (!view) return fail(Code::not_found, place.id.to_string(), "no such machine", "`tidemark machines` lists them");
  return std::move(*view);
}

json ladder_json(const storage::Ladder& ladder) {
  json rungs = json::array();
  for (const auto& rung : ladder.rungs)
    rungs.push_back({{"every_seconds", rung.every_s}, {"keep_seconds", rung.keep_s}, {"points", rung.points()}});
  return {{"dense_seconds", ladder.dense_s}, {"rungs", std::move(rungs)}, {"text", storage::to_string(ladder)}};
}

Result<storage::Ladder> ladder_from_json(const json& body) {
  storage::Ladder ladder;
  if (const auto preset = body.find("preset"); preset != body.end()) {
    if (*preset == 60) {
      ladder = storage::ladder_of_60();
    } else if (*preset == "default") {
      ladder = storage::default_ladder();
    } else {
      return fail(Code::invalid_argument, "preset", "is " + dump(*preset), R"(there are 60 and "default")");
    }
  }
  for (const auto& [key, value] : body.items()) {
    if (key == "preset") continue;
    if (key == "dense_seconds") {
      ladder.dense_s = TIDEMARK_TRY(seconds_at(body, "dense_seconds"));
    } else if (key == "rungs") {
      if (!value.is_array()) return fail(Code::invalid_argument, key, "is not a list");
      ladder.rungs.clear();
      for (const json& rung : value) {
        if (!rung.is_object())
          return fail(Code::invalid_argument, key, "has " + dump(rung),
                      R"(a rung is like {"every_seconds": 600, "keep_seconds": 21600})");
        ladder.rungs.push_back(
            {TIDEMARK_TRY(seconds_at(rung, "every_seconds")), TIDEMARK_TRY(seconds_at(rung, "keep_seconds"))});
      }
    } else {
      return fail(Code::invalid_argument, key, "is not a known key", "there are preset, dense_seconds and rungs");
    }
  }
  return ladder;
}

json pin_json(const storage::pb::PinRecord& pin) {
  return {{"name", pin.name()},
          {"epoch", pin.epoch()},
          {"reason", text_or_null(pin.reason())},
          {"created", format_rfc3339(pin.created_us())},
          {"until", time_or_null(pin.until_us())},
          {"by", pin.by()}};
}

json removal_json(const storage::pb::RemovalRecord& removal) {
  return {{"epoch", removal.epoch() == 0 ? json() : json(removal.epoch())},
          {"requested", format_rfc3339(removal.requested_us())},
          {"effective", format_rfc3339(removal.effective_us())},
          {"by", removal.by()},
          {"reason", text_or_null(removal.reason())}};
}

json retention_json(const RetentionView& view, std::uint64_t holdoff_s) {
  json pins = json::array(), removals = json::array(), formers = json::array();
  for (const auto& pin : view.record.pins())
    if (storage::is_in_force(pin, view.now_us)) pins.push_back(pin_json(pin));
  for (const auto& removal : view.record.removals()) removals.push_back(removal_json(removal));
  for (const auto& former : view.record.former_ladders()) {
    if (former.until_us() <= view.now_us) continue;
    formers.push_back(ladder_json(storage::from_record(former.ladder())));
    formers.back()["until"] = format_rfc3339(former.until_us());
  }
  json clock = {{"now", format_rfc3339(view.now_us)}, {"held", nullptr}};
  if (view.held)
    clock["held"] = {{"clock", format_rfc3339(view.held->wall_us)},
                     {"believed_at", format_rfc3339(view.held->believed_us)}};
  json ladder = ladder_json(storage::ladder_of(view.record));
  ladder["default"] = !view.record.has_ladder();
  return {{"machine", view.record.name()}, {"ladder", std::move(ladder)},     {"former_ladders", std::move(formers)},
          {"pins", std::move(pins)},       {"removals", std::move(removals)}, {"removal_holdoff_seconds", holdoff_s},
          {"clock", std::move(clock)}};
}

std::vector<json> holds_json(const RetentionView& view, const std::vector<storage::pb::EpochEntry>& epochs) {
  std::vector<storage::LadderEpoch> ascending;
  ascending.reserve(epochs.size());
  for (auto at = epochs.rbegin(); at != epochs.rend(); ++at) ascending.push_back(storage::ladder_epoch(*at));
  storage::Guards guards = view.guards;
  storage::guard_newest_verified(guards, epochs);
  const auto holds = storage::explain(ascending, view.record, guards, view.now_us);
  std::vector<json> all;
  all.reserve(epochs.size());
  for (std::size_t i = 0; i < epochs.size(); ++i) {
    const auto& of_one = holds[epochs.size() - 1 - i];
    const EpochNumber number(epochs[i].number());
    json list = json::array();
    WallMicros expires_us = 0;
    bool ends = true;
    for (const Hold& hold : of_one) {
      list.push_back(hold_json(hold));
      ends = ends && hold.until_us != 0;
      expires_us = std::max(expires_us, hold.until_us);
    }
    const bool going = of_one.empty() || std::any_of(view.going.begin(), view.going.end(), [&](const auto& range) {
                         return number >= range.first && number <= range.second;
                       });
    json removal;
    for (const auto& one : view.record.removals())
      if (one.epoch() == epochs[i].number()) removal = removal_json(one);
    all.push_back({{"holds", std::move(list)},
                   {"expires", ends && !of_one.empty() ? time_or_null(expires_us) : json()},
                   {"going", going},
                   {"removal", std::move(removal)}});
  }
  return all;
}

}  // namespace tidemark::server
