// Ladders, pins, removals and what holds a point, as the admin API tells them (docs/admin_api.md).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "storage/retention.h"

namespace tidemark::server {

struct MachinePlace;

// What a shard knows of a machine's retention.
struct RetentionView {
  storage::pb::MachineRecord record;
  storage::Guards guards;
  WallMicros now_us = 0;  // of the retention clock
  std::optional<storage::RetentionClock::Held> held;
  std::vector<std::pair<EpochNumber, EpochNumber>> going;  // ranges, ascending
};
Result<RetentionView> retention_view(const MachinePlace& place);

nlohmann::json ladder_json(const storage::Ladder& ladder);
// {"dense_seconds", "rungs": [{"every_seconds", "keep_seconds"}]} or {"preset": 60 | "default"}. Code::invalid_argument
// says what is wrong; what it keeps is not checked.
Result<storage::Ladder> ladder_from_json(const nlohmann::json& body);
nlohmann::json pin_json(const storage::pb::PinRecord& pin);
nlohmann::json removal_json(const storage::pb::RemovalRecord& removal);
nlohmann::json retention_json(const RetentionView& view, std::uint64_t holdoff_s);
// The newest verified point. `epochs`: newest first.
std::optional<EpochNumber> newest_verified(const std::vector<storage::pb::EpochEntry>& epochs);
// For each epoch, in the order given (newest first): {"holds", "expires", "removal"}.
std::vector<nlohmann::json> holds_json(const RetentionView& view, const std::vector<storage::pb::EpochEntry>& epochs);

}  // namespace tidemark::server
