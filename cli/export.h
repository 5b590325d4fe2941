// Export and verification of a recovery point: the two jobs of the command line that move a disk's worth of bytes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/status.h"
#include "cli/client.h"
#include "cli/progress.h"

namespace tidemark::cli {

struct ExportRequest {
  std::string machine{};
  std::string at{};    // as the user gave it
  std::string disk{};  // a name; empty: all of them
  std::string output{};
  bool force = false;
};

// Writes the disks of a point as sparse raw images: one file when one disk is asked for or the machine has only one and
// `output` names no directory; else a directory with a file for each disk and manifest.json. The answer is the
// manifest. Either everything stands durably under its final name when it returns, or nothing does.
Result<nlohmann::json> export_point(AdminClient& client, const ExportRequest& request, Progress& progress);

// Has the server read and check every block of a point. The answer is {"machine", "epoch", "time", "ok", "sha256",
// "damaged"}.
Result<nlohmann::json> verify_point(AdminClient& client, const std::string& machine, const std::string& at,
                                    Progress& progress);

// The point that `at` means.
Result<nlohmann::json> find_point(AdminClient& client, const std::string& machine, const std::string& at);

}  // namespace tidemark::cli
