#include "agent/source.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>

#include "agent/device_source.h"
#include "agent/file_source.h"
#include "base/limits.h"

namespace tidemark::agent {

std::string_view to_string(BlockSource::Kind kind) {
  switch (kind) {
    case BlockSource::Kind::file: return "file";
    case BlockSource::Kind::disk: return "disk";
    case BlockSource::Kind::partition: return "partition";
  }
  return "unknown";
}

std::unexpected<Error> source_error(int error_number, const std::string& path, const char* doing) {
  auto error = fail_errno(error_number, path, doing);
  if (error.error().code == Code::not_found && error.error().remedy.empty())
    error.error().remedy = "put it back or attach it again, or take it off the list with `unprotect`";
  return error;
}

Result<std::unique_ptr<BlockSource>> open_source(const std::string& path, const OsPaths& os) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return source_error(errno, path, "find what is to be protected");
  std::unique_ptr<BlockSource> source;
  if (S_ISBLK(status.st_mode)) {
    source = TIDEMARK_TRY(open_device_source(path, os));
  } else if (S_ISREG(status.st_mode)) {
    std::error_code error;
    const std::string real = std::filesystem::canonical(path, error);
    if (error) return fail_errno(error.value(), path, "find the real place of");
    source = TIDEMARK_TRY(open_file_source(real, os));
  } else {
    return fail(Code::invalid_argument, path, "neither a block device nor a regular file",
                "name a disk, a partition or a disk image");
  }
  if (source->size() == 0)
    return fail(Code::invalid_argument, path, "it is empty", "protect something that has a size");
  if (source->size() > limits::kDiskSizeMax) {
    return fail(Code::unsupported, path, fmt::format("larger than {} bytes", limits::kDiskSizeMax),
                "such a disk cannot be protected");
  }
  if (source->identity().size() > kIdentityLengthMax) {
    return fail(Code::unsupported, path, fmt::format("its name has more than {} bytes", kIdentityLengthMax),
                "give it a shorter path");
  }
  return source;
}

std::vector<std::string> disk_names(const std::vector<std::string>& paths) {
  const auto last_part = [](const std::string& path) { return std::filesystem::path(path).filename().string(); };
  std::map<std::string, int> count;
  for (const std::string& path : paths) ++count[last_part(path)];
  std::vector<std::string> names;
  for (const std::string& path : paths) {
    std::string name = last_part(path);
    if (count[name] > 1) {
      name = path.substr(path.find_first_not_of('/'));
      std::replace(name.begin(), name.end(), '/', '_');
    }
    if (name.size() > limits::kNameLengthMax) name = name.substr(name.size() - limits::kNameLengthMax);
    names.push_back(std::move(name));
  }
  return names;
}

}  // namespace tidemark::agent
