#include "cli/export_target.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>

#include "cli/format.h"
#include "cli/raw_image.h"

namespace tidemark::cli {
namespace {

constexpr std::size_t kNameMax = 200;

Status sync_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return fail_errno(errno, path, "open");
  // Some file systems cannot sync a directory, and say so; there the rename is as durable as it gets.
  const int error = ::fsync(fd) != 0 && errno != EINVAL ? errno : 0;
  ::close(fd);
  if (error != 0) return fail_errno(error, path, "sync");
  return {};
}

std::string parent_of(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  return path;
}

Status write_durably(const std::string& path, const std::string& content) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return fail_errno(errno, path, "create");
  Status done;
  for (std::size_t at = 0; done && at < content.size();) {
    const ssize_t written = ::write(fd, content.data() + at, content.size() - at);
    if (written <= 0)
      done = fail_errno(written == 0 ? EIO : errno, path, "write");
    else
      at += static_cast<std::size_t>(written);
  }
  if (done && ::fsync(fd) != 0) done = fail_errno(errno, path, "write");
  if (::close(fd) != 0 && done) done = fail_errno(errno, path, "write");
  return done;
}

// A directory that an export made, and in which nothing else has been put since.
bool is_former_export(const std::string& path) {
  std::ifstream file(path + "/" + kManifestName);
  const auto manifest = nlohmann::json::parse(file, nullptr, false);
  if (text_at(manifest, "format") != kManifestFormat) return false;
  std::set<std::string> known = {kManifestName};
  for (const auto& disk : array_at(manifest, "disks")) known.insert(text_at(disk, "file"));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(path, error))
    if (!known.contains(entry.path().filename().string())) return false;
  return !error;
}

}  // namespace

ExportTarget::ExportTarget(std::string path, std::string temporary, Kind kind, bool force)
    : path_(std::move(path)), temporary_(std::move(temporary)), kind_(kind), force_(force) {}
ExportTarget::ExportTarget(ExportTarget&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      kind_(other.kind_),
      force_(other.force_),
      begun_(other.begun_),
      kept_(std::exchange(other.kept_, true)) {}
ExportTarget::~ExportTarget() {
  std::error_code ignored;  // nothing better can be done than to leave it
  if (kept_ || begun_) return;
  if (kind_ != Kind::device) std::filesystem::remove_all(temporary_, ignored);
  if (kind_ != Kind::directory) std::filesystem::remove(journal_path({}), ignored);
}

Result<ExportTarget> ExportTarget::create(const std::string& given, Kind kind, bool force) {
  std::string path = without_slashes(given);
  std::string name = "." + std::filesystem::path(path).filename().string();
  name.resize(std::min(name.size(), kNameMax));
  name += ".tidemark-partial";
  if (kind == Kind::device) return ExportTarget(std::move(path), "./" + name, kind, force);
  struct stat found{};
  if (::lstat(path.c_str(), &found) == 0) {
    const bool empty_directory = S_ISDIR(found.st_mode) && std::filesystem::is_empty(path);
    if (kind == Kind::file && S_ISDIR(found.st_mode))
      return fail(Code::already_exists, path, "is a directory",
                  "name a file in it, or end it with a slash to export into it");
    if (kind == Kind::directory && !S_ISDIR(found.st_mode))
      return fail(Code::already_exists, path, "is not a directory, but this export makes several files",
                  "name a directory");
    if (kind == Kind::file && !S_ISREG(found.st_mode))
      return fail(Code::already_exists, path, "is not a regular file, and is never replaced",
                  "export to a file, then copy it there");
    if (!empty_directory && !force)
      return fail(Code::already_exists, path, "exists already", "give --force to replace it");
    if (kind == Kind::directory && !empty_directory && !is_former_export(path))
      return fail(Code::already_exists, path, "holds files that no export made, and is never replaced",
                  "name another directory");
  } else if (errno != ENOENT) {
    return fail_errno(errno, path, "look at");
  }
  if (kind == Kind::file && !force && ::access(manifest_path(path, kind).c_str(), F_OK) == 0)
    return fail(Code::already_exists, manifest_path(path, kind), "exists already", "give --force to replace it");
  const std::string parent = parent_of(path);
  if (::access(parent.c_str(), F_OK) != 0) return fail(Code::not_found, parent, "no such directory", "make it first");

  std::string temporary = parent + "/" + name;
  if (kind == Kind::directory && ::mkdir(temporary.c_str(), 0700) != 0 && errno != EEXIST)
    return fail_errno(errno, temporary, "make");
  return ExportTarget(std::move(path), std::move(temporary), kind, force);
}

std::string ExportTarget::file_path(const std::string& name) const {
  if (kind_ == Kind::device) return path_;
  return kind_ == Kind::file ? temporary_ : temporary_ + "/" + name;
}

std::string ExportTarget::journal_path(const std::string& name) const {
  return (kind_ == Kind::directory ? temporary_ + "/" + name : temporary_) + ".state";
}

std::string ExportTarget::final_path(const std::string& name) const {
  return kind_ == Kind::directory ? path_ + "/" + name : path_;
}

Status ExportTarget::replace() {
  if (kind_ == Kind::file) {
    if (force_)
      return ::rename(temporary_.c_str(), path_.c_str()) == 0 ? Status{} : fail_errno(errno, path_, "rename to");
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) == 0) return {};
    if (errno == EEXIST)
      return fail(Code::already_exists, path_, "was made by somebody else meanwhile", "give --force to replace it");
    if (errno != EINVAL && errno != ENOSYS) return fail_errno(errno, path_, "rename to");
    return ::rename(temporary_.c_str(), path_.c_str()) == 0 ? Status{} : fail_errno(errno, path_, "rename to");
  }
  if (::rename(temporary_.c_str(), path_.c_str()) == 0) return {};  // nothing, or an empty directory, was there
  if (errno != ENOTEMPTY && errno != EEXIST) return fail_errno(errno, path_, "rename to");
  if (!force_ || !is_former_export(path_))
    return fail(Code::already_exists, path_, "was filled by somebody else meanwhile", "name another directory");
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) != 0)
    return fail_errno(errno, path_, "exchange with the new export");
  std::error_code error;
  std::filesystem::remove_all(temporary_, error);  // now the earlier export
  if (error)
    return fail(Code::io, temporary_, "cannot remove the earlier export: " + error.message(), "remove it by hand");
  return {};
}

void ExportTarget::leave_only(const std::set<std::string>& names) {
  if (kind_ != Kind::directory) return;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(temporary_, ignored)) {
    std::string name = entry.path().filename().string();
    if (name.ends_with(".state")) name.resize(name.size() - 6);
    if (!names.contains(name)) std::filesystem::remove_all(entry.path(), ignored);
  }
}

Status ExportTarget::keep(const nlohmann::json& manifest) {
  const std::string text = manifest.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  std::error_code error;
  if (kind_ == Kind::directory) {
    for (const auto& entry : std::filesystem::directory_iterator(temporary_, error))
      if (entry.path().extension() == ".state") std::filesystem::remove(entry.path(), error);
    TIDEMARK_TRY(write_durably(temporary_ + "/" + kManifestName, text));
    TIDEMARK_TRY(sync_directory(temporary_));
    TIDEMARK_TRY(replace());
  } else {
    if (kind_ == Kind::file) TIDEMARK_TRY(replace());
    TIDEMARK_TRY(write_manifest(manifest_path(path_, kind_), manifest));
    std::filesystem::remove(journal_path({}), error);
  }
  kept_ = true;
  return kind_ == Kind::device ? Status{} : sync_directory(parent_of(path_));
}

std::string manifest_path(const std::string& output, ExportTarget::Kind kind) {
  const std::string path = without_slashes(output);
  switch (kind) {
    case ExportTarget::Kind::directory: return path + "/" + kManifestName;
    case ExportTarget::Kind::device: return std::filesystem::path(path).filename().string() + "." + kManifestName;
    case ExportTarget::Kind::file: break;
  }
  return path + "." + kManifestName;
}

ExportTarget::Kind kind_of_existing(const std::string& output) {
  std::error_code error;
  if (std::filesystem::is_directory(output, error)) return ExportTarget::Kind::directory;
  return is_block_device(output) ? ExportTarget::Kind::device : ExportTarget::Kind::file;
}

Status write_manifest(const std::string& path, const nlohmann::json& manifest) {
  const std::string temporary = path + ".new";
  TIDEMARK_TRY(write_durably(temporary, manifest.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"));
  if (::rename(temporary.c_str(), path.c_str()) != 0) return fail_errno(errno, path, "rename to");
  return sync_directory(parent_of(path));
}

}  // namespace tidemark::cli
