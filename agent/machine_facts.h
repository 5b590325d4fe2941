// What identifies this machine and this boot of it.
#pragma once

#include <string>

#include "agent/os_paths.h"
#include "base/status.h"

namespace tidemark::agent {

// SHA-256 over the DMI UUID and the machine id, 32 bytes: the same over disks added and removed, different for a clone
// that got hardware or an identity of its own. `override_text`, when not empty, stands for both. not_found when there
// is neither.
Result<std::string> machine_fingerprint(const OsPaths& os, const std::string& machine_id_path,
                                        const std::string& override_text);

Result<std::string> boot_id(const OsPaths& os);  // 16 bytes
std::string host_name();                         // made a valid machine name

}  // namespace tidemark::agent
