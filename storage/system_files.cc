#include "storage/system_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <string_view>

#include "base/limits.h"
#include "base/no_blocking.h"

namespace tidemark::storage {
namespace {

std::string place(std::string_view doing, std::size_t size, std::uint64_t offset) {
  return std::string(doing) + " " + std::to_string(size) + " bytes at " + std::to_string(offset);
}

int open_retrying(const std::string& path, int flags) {
  int fd;
  do fd = ::open(path.c_str(), flags | O_CLOEXEC, 0600);
  while (fd < 0 && errno == EINTR);
  return fd;
}

class SystemLock final : public FileLock {
 public:
  explicit SystemLock(int fd) : fd_(fd) {}
  ~SystemLock() override { ::close(fd_); }
  SystemLock(const SystemLock&) = delete;
  SystemLock& operator=(const SystemLock&) = delete;

 private:
  int fd_;
};

class SystemFiles final : public FileSystem {
 public:
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    about_to_block("open a file");
    int flags = mode == OpenMode::read ? O_RDONLY : O_RDWR;
    if (mode == OpenMode::create) flags |= O_CREAT | O_EXCL;
    int fd = open_retrying(path, flags | (direct ? O_DIRECT : 0));
    if (fd < 0 && errno == EINVAL && direct) {
      // With O_CREAT the kernel has made the file already when it finds that it cannot do direct I/O on it.
      fd = open_retrying(path, flags & ~(O_CREAT | O_EXCL));
      if (fd < 0 && errno == ENOENT) fd = open_retrying(path, flags);
      if (fd >= 0 && !said_buffered_.exchange(true))
        spdlog::warn("storage: the file system has no direct I/O, using its cache path={}", path);
    }
    if (fd < 0) return fail_errno(errno, path, mode == OpenMode::create ? "create" : "open");
    return std::make_unique<SystemFile>(path, fd);
  }

  Status rename(const std::string& from, const std::string& to) override {
    about_to_block("rename a file");
    if (std::rename(from.c_str(), to.c_str()) != 0) return fail_errno(errno, from, "rename to " + to);
    return {};
  }
  Status remove(const std::string& path) override {
    about_to_block("remove a file");
    if (std::remove(path.c_str()) != 0) return fail_errno(errno, path, "remove");
    return {};
  }
  Status make_directory(const std::string& path) override {
    about_to_block("make a directory");
    if (::mkdir(path.c_str(), 0700) == 0) return {};
    const int error = errno;
    struct stat info;
    if (error == EEXIST && ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return {};
    return fail_errno(error, path, "make the directory");
  }

  Result<std::vector<std::string>> list(const std::string& directory) override {
    about_to_block("list a directory");
    DIR* const stream = ::opendir(directory.c_str());
    if (stream == nullptr) return fail_errno(errno, directory, "list");
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(stream)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") names.emplace_back(name);
      errno = 0;
    }
    const int error = errno;
    ::closedir(stream);
    if (error != 0) return fail_errno(error, directory, "list");
    std::ranges::sort(names);
    return names;
  }

  Status sync_directory(const std::string& path) override {
    about_to_block("sync a directory");
    const int fd = open_retrying(path, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return fail_errno(errno, path, "open");
    const int failed = ::fsync(fd);
    const int error = errno;
    ::close(fd);
    if (failed != 0) return fail_errno(error, path, "sync the directory");
    return {};
  }

  Result<bool> exists(const std::string& path) override {
    about_to_block("look for a file");
    struct stat info;
    if (::stat(path.c_str(), &info) == 0) return true;
    if (errno == ENOENT) return false;
    return fail_errno(errno, path, "look up");
  }

  Result<SpaceInfo> space(const std::string& path) override {
    about_to_block("ask for the space of a file system");
    struct statvfs info;
    if (::statvfs(path.c_str(), &info) != 0) return fail_errno(errno, path, "ask for free space");
    struct stat place;
    if (::stat(path.c_str(), &place) != 0) return fail_errno(errno, path, "ask for its file system");
    return SpaceInfo{info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize, place.st_dev};
  }

  // flock belongs to the open file, not to the process: a second lock within this process is refused as well.
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override {
    about_to_block("lock a file");
    const int fd = open_retrying(path, O_RDWR | O_CREAT);
    if (fd < 0) return fail_errno(errno, path, "open");
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return std::make_unique<SystemLock>(fd);
    const int error = errno;
    ::close(fd);
    if (error == EWOULDBLOCK)
      return fail(Code::busy, path, "is locked by another process", "stop the other server, or give another directory");
    return fail_errno(error, path, "lock");
  }

 private:
  std::atomic<bool> said_buffered_{false};
};

}  // namespace

SystemFile::~SystemFile() { ::close(fd_); }

Result<std::size_t> SystemFile::read_at(std::uint64_t offset, std::span<std::byte> to) {
  about_to_block("read a file");
  std::size_t done = 0;
  while (done < to.size()) {
    const ssize_t n = ::pread(fd_, to.data() + done, to.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, path_, place("read", to.size() - done, offset + done));
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
    // Direct I/O ends at the end of the file; reading on from an odd offset would be refused.
    if (static_cast<std::size_t>(n) % limits::kIoAlignment != 0 && done < to.size()) {
      const std::uint64_t end = TIDEMARK_TRY(size());
      if (offset + done >= end) break;
    }
  }
  return done;
}

Status SystemFile::write_at(std::uint64_t offset, std::span<const std::byte> from) {
  about_to_block("write a file");
  std::size_t done = 0;
  while (done < from.size()) {
    const ssize_t n = ::pwrite(fd_, from.data() + done, from.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, path_, place("write", from.size() - done, offset + done));
    if (n == 0) return fail_errno(ENOSPC, path_, place("write", from.size() - done, offset + done));
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Status SystemFile::sync() {
  about_to_block("sync a file");
  if (::fdatasync(fd_) != 0) return fail_errno(errno, path_, "sync");
  return {};
}

Result<std::uint64_t> SystemFile::size() {
  struct stat info;
  if (::fstat(fd_, &info) != 0) return fail_errno(errno, path_, "ask for the size");
  return static_cast<std::uint64_t>(info.st_size);
}

Status SystemFile::allocate(std::uint64_t size) {
  about_to_block("allocate a file");
  // Not posix_fallocate: where the file system cannot, it would write into the file behind our back.
  int failed;
  do failed = ::fallocate(fd_, 0, 0, static_cast<off_t>(size));
  while (failed != 0 && errno == EINTR);
  if (failed == 0) return {};
  if (errno != EOPNOTSUPP) return fail_errno(errno, path_, "reserve " + std::to_string(size) + " bytes");
  if (TIDEMARK_TRY(this->size()) >= size) return {};
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) return fail_errno(errno, path_, "extend");
  return {};
}

FileSystem& system_files() {
  static SystemFiles files;
  return files;
}

}  // namespace tidemark::storage
