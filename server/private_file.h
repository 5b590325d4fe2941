// Small files of the server's own that hold secrets or identity: written whole and atomically, mode 0600. Blocking.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::server {

inline constexpr std::size_t kPrivateFileSizeMax = 16 << 20;

// Durable when it returns well; after a crash the old or the new content is there.
Status write_private_file(const std::string& path, std::string_view content);
Result<std::string> read_private_file(const std::string& path);  // Code::not_found when there is none

}  // namespace tidemark::server
