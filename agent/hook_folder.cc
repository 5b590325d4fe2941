#include "agent/hook_folder.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace tidemark::agent {
namespace {

constexpr std::size_t kHooksMax = 64;  // of one folder
constexpr std::array<std::string_view, 12> kLeftEndings = {"~",     ".bak", ".old", ".orig",   ".rej",     ".swp",
                                                           ".save", ".tmp", ".new", ".rpmnew", ".rpmsave", ",v"};

bool left_behind(const std::string& name) {
  return name.starts_with('#') || name.find(".dpkg-") != std::string::npos || name.find(".ucf-") != std::string::npos ||
         std::any_of(kLeftEndings.begin(), kLeftEndings.end(),
                     [&](std::string_view end) { return name.ends_with(end); });
}

Status check_owner(const std::filesystem::path& path, bool sticky_will_do) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return fail_errno(errno, path.string(), "look at");
  const char* remedy = "hooks run as root: chown root it, and chmod go-w it";
  if (status.st_uid != 0 && status.st_uid != ::geteuid())
    return fail(Code::permission_denied, path.string(),
                fmt::format("belongs to user {}, not to root: no hook is run", status.st_uid), remedy);
  const bool writable = (status.st_mode & (S_IWGRP | S_IWOTH)) != 0;
  if (writable && !(sticky_will_do && (status.st_mode & S_ISVTX) != 0)) {
    return fail(Code::permission_denied, path.string(),
                fmt::format("is writable by others than root (mode {:04o}): no hook is run", status.st_mode & 07777U),
                remedy);
  }
  return {};
}

// `path` is absolute, without links.
Status check_whole_path(const std::filesystem::path& path) {
  TIDEMARK_TRY(check_owner(path, false));
  bool sticky_will_do = false;  // not for the folder that it stands in
  for (auto folder = path.parent_path();; folder = folder.parent_path()) {
    TIDEMARK_TRY(check_owner(folder, std::exchange(sticky_will_do, true)));
    if (folder == folder.root_path()) return {};
  }
}

}  // namespace

Result<HookFolder> read_hook_folder(const std::filesystem::path& folder) {
  HookFolder found;
  std::error_code error;
  if (!std::filesystem::exists(folder, error)) return found;
  const auto real = std::filesystem::canonical(folder, error);
  if (error) return fail_errno(error.value(), folder.string(), "find the real place of");
  TIDEMARK_TRY(check_owner(real, false));
  std::vector<std::string> names;
  auto entry = std::filesystem::directory_iterator(real, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error) return fail_errno(error.value(), folder.string(), "read");
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    struct stat status{};
    if (name.starts_with('.')) {
      found.skipped.push_back(name + ": hidden");
    } else if (left_behind(name)) {
      found.skipped.push_back(name + ": a backup or a leftover by its name");
    } else if (::stat((real / name).c_str(), &status) != 0) {
      found.skipped.push_back(name + ": a link to nothing");
    } else if (!S_ISREG(status.st_mode)) {
      found.skipped.push_back(name + ": no file");
    } else if ((status.st_mode & 0111) == 0) {
      found.skipped.push_back(name + ": not executable");
    } else {
      const auto path = std::filesystem::canonical(real / name, error);
      if (error) return fail_errno(error.value(), (real / name).string(), "find the real place of");
      found.hooks.push_back({name, path});
    }
  }
  if (found.hooks.size() > kHooksMax) {
    return fail(Code::unsupported, folder.string(), fmt::format("has more than {} hooks: none is run", kHooksMax),
                "let one call the others");
  }
  for (const Hook& hook : found.hooks) TIDEMARK_TRY(check_whole_path(hook.path));
  if (!found.hooks.empty()) TIDEMARK_TRY(check_whole_path(real));
  return found;
}

}  // namespace tidemark::agent
