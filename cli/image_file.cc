#include "cli/image_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "base/hex.h"
#include "base/limits.h"
#include "base/random.h"
#include "cli/format.h"

namespace tidemark::cli {
namespace {

constexpr std::size_t kPage = limits::kGranuleSize;
constexpr std::size_t kBufferSize = 1_MiB;
constexpr std::array<std::byte, 64 << 10> kZeroes{};

bool is_zero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

std::unexpected<Error> write_failed(int error, const std::string& shown) { return fail_errno(error, shown, "write"); }

Status write_all(int fd, std::span<const std::byte> bytes, std::uint64_t offset, const std::string& shown) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return write_failed(written == 0 ? EIO : errno, shown);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

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

ImageFile::ImageFile(std::string shown, int fd, std::uint64_t size) : shown_(std::move(shown)), fd_(fd), size_(size) {
  buffer_.reserve(kBufferSize);
}
ImageFile::ImageFile(ImageFile&& other) noexcept
    : shown_(std::move(other.shown_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(other.size_),
      position_(other.position_),
      buffer_(std::move(other.buffer_)),
      hash_(std::move(other.hash_)) {}
ImageFile::~ImageFile() {
  if (fd_ >= 0) ::close(fd_);
}

Result<ImageFile> ImageFile::create(const std::string& path, std::string shown, std::uint64_t size) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return fail_errno(errno, std::move(shown), "create");
  ImageFile file(std::move(shown), fd, size);
  if (::ftruncate(fd, static_cast<off_t>(size)) != 0) {
    const int error = errno;
    if (error == EFBIG)
      return fail(Code::no_space, file.shown_, "its file system cannot hold a file of " + human_size(size),
                  "export to another file system");
    return fail_errno(error, file.shown_, "set the size");
  }
  return file;
}

Status ImageFile::append(std::span<const std::byte> bytes) {
  if (bytes.size() > size_ - position())
    return fail(Code::protocol, shown_, "the server sent more than the disk has",
                "use a tidemarkd of the same version");
  hash_.update(bytes);
  while (!bytes.empty()) {
    const std::size_t taken = std::min(bytes.size(), kBufferSize - buffer_.size());
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
    bytes = bytes.subspan(taken);
    if (buffer_.size() == kBufferSize) TIDEMARK_TRY(flush());
  }
  return {};
}

Status ImageFile::append_zeroes(std::uint64_t count) {
  TIDEMARK_TRY(flush());
  if (count > size_ - position_)
    return fail(Code::protocol, shown_, "the server told of more zeroes than the disk has",
                "use a tidemarkd of the same version");
  position_ += count;
  for (; count > 0; count -= std::min<std::uint64_t>(count, kZeroes.size()))
    hash_.update(std::span(kZeroes).first(std::min<std::uint64_t>(count, kZeroes.size())));
  return {};
}

// Writes the runs of pages that are not zero, each with one call.
Status ImageFile::flush() {
  const std::span<const std::byte> all(buffer_);
  std::size_t at = 0;
  while (at < all.size()) {
    // Pages count from the start of the file, wherever the buffer begins.
    const auto page_at = [&](std::size_t from) {
      return all.subspan(from, std::min(all.size() - from, kPage - (position_ + from) % kPage));
    };
    std::size_t end = at;
    while (end < all.size() && !is_zero(page_at(end))) end += page_at(end).size();
    TIDEMARK_TRY(write_all(fd_, all.subspan(at, end - at), position_ + at, shown_));
    at = end;
    while (at < all.size() && is_zero(page_at(at))) at += page_at(at).size();
  }
  position_ += buffer_.size();
  buffer_.clear();
  return {};
}

Result<Sha256> ImageFile::finish() {
  TIDEMARK_TRY(flush());
  if (position_ != size_)
    return fail(Code::protocol, shown_,
                "the server sent " + std::to_string(position_) + " of " + std::to_string(size_) + " bytes",
                "try again");
  if (::fsync(fd_) != 0) return write_failed(errno, shown_);
  if (::close(std::exchange(fd_, -1)) != 0) return write_failed(errno, shown_);
  return hash_.finish();
}

ExportTarget::ExportTarget(std::string path, std::string temporary, Kind kind, bool force)
    : path_(std::move(path)), temporary_(std::move(temporary)), kind_(kind), force_(force) {}
ExportTarget::ExportTarget(ExportTarget&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      kind_(other.kind_),
      force_(other.force_),
      kept_(std::exchange(other.kept_, true)) {}
ExportTarget::~ExportTarget() {
  std::error_code ignored;  // nothing better can be done than to leave it
  if (!kept_) std::filesystem::remove_all(temporary_, ignored);
}

Result<ExportTarget> ExportTarget::create(const std::string& given, Kind kind, bool force) {
  std::string path = given;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
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
  const std::string parent = parent_of(path);
  if (::access(parent.c_str(), F_OK) != 0) return fail(Code::not_found, parent, "no such directory", "make it first");

  std::array<std::byte, 6> random;
  secure_random(random);
  std::string name = "." + std::filesystem::path(path).filename().string();
  name.resize(std::min<std::size_t>(name.size(), 200));
  std::string temporary = parent + "/" + name + ".partial-" + to_hex(random);
  if (kind == Kind::directory && ::mkdir(temporary.c_str(), 0700) != 0) return fail_errno(errno, temporary, "make");
  return ExportTarget(std::move(path), std::move(temporary), kind, force);
}

std::string ExportTarget::file_path(const std::string& name) const {
  return kind_ == Kind::file ? temporary_ : temporary_ + "/" + name;
}

std::string ExportTarget::final_path(const std::string& name) const {
  return kind_ == Kind::file ? path_ : path_ + "/" + name;
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

Status ExportTarget::keep() {
  if (kind_ == Kind::directory) TIDEMARK_TRY(sync_directory(temporary_));
  TIDEMARK_TRY(replace());
  kept_ = true;
  return sync_directory(parent_of(path_));
}

Status write_small_file(const std::string& path, const std::string& shown, std::string_view content) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return fail_errno(errno, shown, "create");
  Status done = write_all(fd, std::as_bytes(std::span(content)), 0, shown);
  if (done && ::fsync(fd) != 0) done = write_failed(errno, shown);
  if (::close(fd) != 0 && done) done = write_failed(errno, shown);
  return done;
}

}  // namespace tidemark::cli
