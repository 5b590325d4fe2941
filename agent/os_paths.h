// Where the kernel tells about disks and mounts. Tests point it at a directory of their own.
#pragma once

#include <filesystem>

namespace tidemark::agent {

struct OsPaths {
  std::filesystem::path sys = "/sys";
  std::filesystem::path proc = "/proc";
};

}  // namespace tidemark::agent
