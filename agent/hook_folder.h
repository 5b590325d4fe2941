// A folder of hooks: which programs of it are run, in which order, and which are not, and why.
//
// What is run here runs as root: a program, its folder and every folder above it must belong to root (or to the user
// whom the agent runs as) and must not be writable by others. A folder above may be, when it is sticky, as /tmp is.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::agent {

struct Hook {
  std::string name;            // in the folder
  std::filesystem::path path;  // links resolved
};

struct HookFolder {
  std::vector<Hook> hooks;           // by name, ascending
  std::vector<std::string> skipped;  // "NAME: why"
};

// Hidden names, those that editors and package managers leave (~, .bak, .dpkg-new, ...), and what is no executable file
// are skipped. A folder that is not there has no hooks. permission_denied names who may write where.
Result<HookFolder> read_hook_folder(const std::filesystem::path& folder);

}  // namespace tidemark::agent
