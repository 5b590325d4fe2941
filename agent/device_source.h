// A block device, whole disk or partition, as a source.
#pragma once

#include <memory>
#include <string>

#include "agent/source.h"

namespace tidemark::agent {

// Identity: WWN or serial number, the backing file of a loop device, the UUID of a mapped one; where the kernel knows
// none, number and path. A partition has its disk's with "-partN".
Result<std::unique_ptr<BlockSource>> open_device_source(const std::string& path, const OsPaths& os);

}  // namespace tidemark::agent
