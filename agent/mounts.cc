#include "agent/mounts.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdio>
#include <sstream>

#include "agent/text_file.h"

namespace tidemark::agent {
namespace {

// Blanks, tabs, newlines and backslashes stand as \ooo.
std::string decode(std::string_view text) {
  std::string out;
  const auto octal = [](char c) { return c >= '0' && c <= '7'; };
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && octal(text[i + 1]) && octal(text[i + 2]) && octal(text[i + 3])) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

bool has_option(const std::string& options, std::string_view wanted) {
  std::istringstream rest(options);
  for (std::string option; std::getline(rest, option, ',');) {
    if (option == wanted) return true;
  }
  return false;
}

std::vector<Mount> parse_mountinfo(std::string_view text) {
  std::vector<Mount> mounts;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    // 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/vda1 rw,errors=continue
    std::istringstream fields(line);
    std::string id, parent, device, root, mountpoint, options, field, filesystem, source, super_options;
    if (!(fields >> id >> parent >> device >> root >> mountpoint >> options)) continue;
    while (fields >> field && field != "-") {
    }
    if (!(fields >> filesystem >> source)) continue;
    fields >> super_options;
    unsigned major_number = 0, minor_number = 0;
    if (std::sscanf(device.c_str(), "%u:%u", &major_number, &minor_number) != 2) continue;
    mounts.push_back({makedev(major_number, minor_number), decode(root), decode(mountpoint), filesystem, decode(source),
                      has_option(super_options, "ro"), super_options});
  }
  return mounts;
}

Result<std::vector<Mount>> read_mounts(const OsPaths& os) {
  return parse_mountinfo(TIDEMARK_TRY(read_text_file(os.proc / "self/mountinfo", 16 << 20)));
}

std::vector<Mount> mounts_of(const std::vector<Mount>& mounts, const std::set<dev_t>& devices) {
  std::vector<Mount> found;
  std::set<dev_t> seen;
  for (const Mount& mount : mounts) {
    bool here = devices.contains(mount.device);
    if (!here && major(mount.device) == 0 && mount.source.starts_with('/')) {
      struct stat status{};
      here = ::stat(mount.source.c_str(), &status) == 0 && S_ISBLK(status.st_mode) && devices.contains(status.st_rdev);
    }
    if (here && seen.insert(mount.device).second) found.push_back(mount);
  }
  return found;
}

std::vector<Swap> read_swaps(const OsPaths& os) {
  std::vector<Swap> swaps;
  const auto text = read_text_file(os.proc / "swaps");
  if (!text) return swaps;
  std::istringstream lines(*text);
  std::string line;
  std::getline(lines, line);  // the heading
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string name, kind;
    std::uint64_t size_kib = 0;
    if (!(fields >> name >> kind >> size_kib)) continue;
    const std::string path = decode(name);
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode))
      swaps.push_back({status.st_rdev, path, size_kib * 1024});
  }
  return swaps;
}

}  // namespace tidemark::agent
