// A regular file as a disk.
#pragma once

#include <memory>
#include <string>

#include "agent/source.h"

namespace tidemark::agent {

// `path` is real (no links). Identity: "file:" and the path, so that a file restored under its name is the same disk.
Result<std::unique_ptr<BlockSource>> open_file_source(const std::string& path, const OsPaths& os);

// Processes that have the file open for writing or mapped, as "name (pid)", from /proc; the kernel's own users (loop
// devices) too. Sets `complete` false when some processes could not be looked at.
std::vector<std::string> writers_of(const OsPaths& os, const std::string& real_path, std::uint64_t device,
                                    std::uint64_t inode, bool& complete);

}  // namespace tidemark::agent
