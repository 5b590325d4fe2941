// What a new export and an update of one have in common. Private to export*.cc.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "cli/copy_disk.h"
#include "cli/export.h"
#include "cli/export_target.h"
#include "cli/point.h"

namespace tidemark::cli {

// "data.img" of the disk "/dev/data"; unique among `taken`.
std::string image_name(const Disk& disk, const std::string& format, std::set<std::string>& taken);

// What is zero of a disk at a point.
Result<std::vector<Extent>> read_map(AdminClient& client, const std::string& machine, std::uint64_t epoch,
                                     const Disk& disk);

// Everything of a manifest but its disks. `point` tells which machine by its id, which a name may not for ever.
Result<nlohmann::json> begin_manifest(AdminClient& client, const ExportRequest& request, const Point& point);
// What makes a journal one of this disk at this point.
nlohmann::json journal_head(const nlohmann::json& manifest, const Disk& disk, const std::string& base);

}  // namespace tidemark::cli
