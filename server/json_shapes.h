// The objects of the admin API as JSON (docs/admin_api.md).
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/status.h"
#include "server/machine_report.h"
#include "storage/records.pb.h"

namespace tidemark::server {

nlohmann::json to_json(const MachineReport& machine);
nlohmann::json space_to_json(const SpaceReport& space);
nlohmann::json to_json(const Error& error);
// `disks` of the machine give the names; the sizes are those of the epoch.
nlohmann::json point_to_json(const storage::pb::EpochEntry& epoch, const std::vector<DiskReport>& disks);

int http_status(Code code);
// Foreign bytes in a text become U+FFFD.
std::string dump(const nlohmann::json& json);

}  // namespace tidemark::server
