// Export of a recovery point, as files or to a block device.
//
// It is resumed after any interruption: the image under its temporary name and a journal beside it stay, and the same
// command goes on with them. What the journal says is there is read back and compared before it counts, so nothing
// needs to have been durable. The point is held at the server as long as it takes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/status.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/progress.h"

namespace tidemark::cli {

struct ExportRequest {
  std::string machine{};
  std::string at{};    // as the user gave it
  std::string disk{};  // a name; empty: all of them
  std::string output{};
  std::string changed_since{};  // a point: brings the export of it that is there to the point `at`
  std::string format = "raw";   // or qcow2, vmdk, vhdx
  bool force = false;
  unsigned threads = 4;
};

// Writes the disks of a point as sparse raw images: one file (or device) when one disk is asked for or the machine has
// only one and `output` names no directory; else a directory with a file for each disk. The answer is the manifest,
// with whole paths. Either everything stands durably under its final name when it returns, or nothing does.
Result<nlohmann::json> export_point(AdminClient& client, const ExportRequest& request, Progress& progress);

// Brings an earlier export, after checking it against its manifest, to another point of the same machine: only what
// changed is fetched and written. Its manifest says meanwhile that it is neither; the same command goes on with it.
Result<nlohmann::json> update_export(AdminClient& client, const ExportRequest& request, Progress& progress);

Outcome run_export(Context& context, const ExportRequest& request);

}  // namespace tidemark::cli
