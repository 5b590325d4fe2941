// Images in the formats of others, made by qemu-img from the server's NBD.
#pragma once

#include <string>

#include "base/crypto.h"
#include "base/status.h"
#include "cli/client.h"
#include "cli/point.h"
#include "cli/progress.h"

namespace tidemark::cli {

// A disk at a point as an image of this format (qcow2, vmdk, vhdx) at `path`, durable when it returns. The SHA-256 of
// the file. Not gone on with after an interruption: qemu-img makes the file anew.
Result<Sha256> convert_disk(AdminClient& client, const std::string& machine, std::uint64_t epoch, const Disk& disk,
                            const std::string& format, const std::string& path, PointHold& hold, Progress& progress);

}  // namespace tidemark::cli
