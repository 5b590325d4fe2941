// Names of exports, as clients ask for them:
//   web1/disk0@2026-11-20T10:15:03Z   a disk of a machine at a point: a time, latest, -15m, epoch:7
//   web1/vda                          the same at its newest point
//   clone/check/disk0                 a disk of a clone
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::nbd {

struct ExportName {
  bool clone = false;
  std::string owner;  // machine or clone: a name or an id
  std::string disk;   // a name, a number, or diskN for the disk of that number
  std::string at;     // of a machine's disk; "latest" when the name has none
};

Result<ExportName> parse_export_name(std::string_view name);

}  // namespace tidemark::nbd
