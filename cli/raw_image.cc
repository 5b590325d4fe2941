#include "cli/raw_image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/limits.h"
#include "base/units.h"
#include "cli/format.h"

namespace tidemark::cli {
namespace {

constexpr std::size_t kPage = limits::kGranuleSize;
constexpr std::array<std::byte, 64 << 10> kZeroes{};

bool is_zero(std::span<const std::byte> bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

// Where everything that tells what a disk holds has its place: partition tables, file systems, RAID, LVM, ZFS.
Result<bool> holds_something(int fd, std::uint64_t size, const std::string& shown) {
  std::vector<std::byte> buffer(1_MiB);
  for (const std::uint64_t at : {std::uint64_t{0}, size - std::min<std::uint64_t>(size, 1_MiB)}) {
    const auto n = std::min<std::uint64_t>(size, buffer.size());
    const ssize_t got = ::pread(fd, buffer.data(), n, static_cast<off_t>(at));
    if (got < 0) return fail_errno(errno, shown, "read");
    if (!is_zero(std::span(buffer).first(static_cast<std::size_t>(got)))) return true;
  }
  return false;
}

}  // namespace

bool is_block_device(const std::string& path) {
  struct stat found{};
  return ::stat(path.c_str(), &found) == 0 && S_ISBLK(found.st_mode);
}

RawImage::RawImage(RawImage&& other) noexcept
    : shown_(std::move(other.shown_)),
      fd_(std::exchange(other.fd_, -1)),
      direct_(std::exchange(other.direct_, -1)),
      device_(other.device_),
      fresh_(other.fresh_) {}
RawImage::~RawImage() {
  if (fd_ >= 0) ::close(fd_);
  if (direct_ >= 0) ::close(direct_);
}

// tmpfs has no direct I/O, for one; then all goes the other way.
void RawImage::open_direct(const std::string& path) {
  direct_ = ::open(path.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
}

Result<RawImage> RawImage::open_file(const std::string& path, std::string shown, std::uint64_t size) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return fail_errno(errno, std::move(shown), "open");
  RawImage image(std::move(shown), fd, false, false);
  struct stat found{};
  if (::fstat(fd, &found) != 0) return fail_errno(errno, image.shown_, "look at");
  if (!S_ISREG(found.st_mode)) return fail(Code::already_exists, image.shown_, "is not a regular file");
  image.fresh_ = found.st_size == 0;
  if (::ftruncate(fd, static_cast<off_t>(size)) != 0) {
    if (errno == EFBIG)
      return fail(Code::no_space, image.shown_, "its file system cannot hold a file of " + human_size(size),
                  "export to another file system");
    return fail_errno(errno, image.shown_, "set the size");
  }
  image.open_direct(path);
  return image;
}

Result<RawImage> RawImage::open_device(const std::string& path, std::uint64_t size, bool overwrite) {
  const int fd = ::open(path.c_str(), O_RDWR | O_EXCL | O_CLOEXEC);
  if (fd < 0 && errno == EBUSY)
    return fail(Code::busy, path, "is in use: it or a partition of it is mounted, or belongs to a volume",
                "unmount it, or name another device");
  if (fd < 0) return fail_errno(errno, path, "open");
  RawImage image(path, fd, true, false);
  std::uint64_t capacity = 0;
  if (::ioctl(fd, BLKGETSIZE64, &capacity) != 0) return fail_errno(errno, path, "ask for the size of");
  if (capacity < size)
    return fail(Code::no_space, path,
                "has " + human_size(capacity) + " (" + std::to_string(capacity) + " bytes), the disk " +
                    human_size(size) + " (" + std::to_string(size) + " bytes)",
                "name a device that is at least as large");
  if (!overwrite && TIDEMARK_TRY(holds_something(fd, capacity, path)))
    return fail(Code::already_exists, path, "there is something on it", "look what it is; --force overwrites it");
  image.open_direct(path);
  return image;
}

Status RawImage::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  bool aligned = direct_ >= 0;
  while (!bytes.empty()) {
    // What is left behind the last whole page goes through the cache.
    const std::size_t whole = round_down(bytes.size(), limits::kIoAlignment);
    const bool direct = aligned && whole != 0 && offset % limits::kIoAlignment == 0 &&
                        reinterpret_cast<std::uintptr_t>(bytes.data()) % limits::kIoAlignment == 0;
    const ssize_t written =
        ::pwrite(direct ? direct_ : fd_, bytes.data(), direct ? whole : bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EINVAL && direct) {  // a disk with larger sectors
      aligned = false;
      continue;
    }
    if (written <= 0) return fail_errno(written == 0 ? EIO : errno, shown_, "write");
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

Status RawImage::write_zeroes(std::uint64_t offset, std::uint64_t length) {
  const int mode = (device_ ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE) | FALLOC_FL_KEEP_SIZE;
  // A device takes whole sectors only; what it or the file system cannot do is written.
  if (length > 0 && ::fallocate(fd_, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0) return {};
  while (length > 0) {
    const std::uint64_t n = std::min<std::uint64_t>(length, kZeroes.size());
    TIDEMARK_TRY(write(offset, std::span(kZeroes).first(n)));
    offset += n;
    length -= n;
  }
  return {};
}

Status RawImage::write_sparse(std::uint64_t offset, std::span<const std::byte> bytes) {
  std::size_t at = 0;
  const auto page_at = [&](std::size_t from) {
    return bytes.subspan(from, std::min(bytes.size() - from, kPage - (offset + from) % kPage));
  };
  while (at < bytes.size()) {
    std::size_t end = at;
    while (end < bytes.size() && !is_zero(page_at(end))) end += page_at(end).size();
    TIDEMARK_TRY(write(offset + at, bytes.subspan(at, end - at)));
    at = end;
    while (end < bytes.size() && is_zero(page_at(end))) end += page_at(end).size();
    if (!fresh_ && end > at) TIDEMARK_TRY(write_zeroes(offset + at, end - at));
    at = end;
  }
  return {};
}

Status RawImage::read(std::uint64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t got = ::pread(fd_, to.data(), to.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, shown_, "read");
    if (got == 0) return fail(Code::io, shown_, "ends before byte " + std::to_string(offset + to.size()));
    to = to.subspan(static_cast<std::size_t>(got));
    offset += static_cast<std::uint64_t>(got);
  }
  return {};
}

Status RawImage::sync() { return ::fsync(fd_) == 0 ? Status{} : fail_errno(errno, shown_, "write"); }

}  // namespace tidemark::cli
