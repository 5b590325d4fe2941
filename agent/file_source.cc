#include "agent/file_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "agent/block_device.h"
#include "agent/file_descriptor.h"
#include "agent/lease.h"
#include "agent/mounts.h"
#include "agent/reading.h"
#include "agent/text_file.h"

namespace tidemark::agent {
namespace fs = std::filesystem;
namespace {

// Clocks of file systems are as coarse as a tick, some as two seconds: a younger mtime could hide a second write.
constexpr std::int64_t kTimesSettleNanos = 3'000'000'000;

std::int64_t nanos(const timespec& time) { return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec; }

struct Times {
  std::int64_t size = 0, modified = 0, changed = 0;
  bool operator==(const Times&) const = default;
};
Times times_of(const struct stat& status) {
  return {static_cast<std::int64_t>(status.st_size), nanos(status.st_mtim), nanos(status.st_ctim)};
}

class FileWitness final : public Witness {
 public:
  // Keeps a descriptor of its own: it may outlive the source.
  FileWitness(int fd, const OsPaths& os, std::string path)
      : fd_(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), os_(os), path_(std::move(path)) {
    struct stat status{};
    stated_ = ::fstat(fd_.get(), &status) == 0;
    times_ = times_of(status);
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    settled_ = std::max(times_.modified, times_.changed) + kTimesSettleNanos < nanos(now);
    auto lease = ReadLease::take(fd_.get(), path_);
    if (lease) {
      lease_ = std::move(*lease);
    } else {
      refused_ = lease.error().code == Code::busy;
      detail_ = lease.error().what;
    }
  }

  DiskEvidence testify(bool frozen) override {
    DiskEvidence evidence;
    evidence.disk = path_;
    evidence.is_file = true;
    evidence.frozen = frozen;
    struct stat status{};
    const bool same = stated_ && ::fstat(fd_.get(), &status) == 0 && times_of(status) == times_;
    evidence.times_unchanged = same && settled_;
    if (lease_) {
      evidence.lease_held = lease_->held() && same;
      evidence.lease_refused = !lease_->held();
      return evidence;
    }
    evidence.lease_refused = refused_;
    bool complete = true;
    const auto writers = writers_of(os_, path_, status.st_dev, status.st_ino, complete);
    evidence.writer_seen = !writers.empty() || !complete;
    if (!writers.empty()) {
      evidence.detail = "by " + writers.front();
    } else if (!refused_) {
      evidence.detail = detail_;
      if (same && !settled_) evidence.detail += ", and it was changed so short before that its times prove nothing";
    }
    return evidence;
  }

 private:
  FileDescriptor fd_;
  OsPaths os_;
  std::string path_;
  bool stated_ = false;
  bool settled_ = false;
  bool refused_ = false;
  std::string detail_;
  Times times_;
  std::unique_ptr<ReadLease> lease_;
};

class FileSource final : public BlockSource {
 public:
  FileSource(std::string path, const OsPaths& os, FileDescriptor fd, FileDescriptor direct, const struct stat& status)
      : path_(std::move(path)),
        identity_("file:" + path_),
        os_(os),
        fd_(std::move(fd)),
        direct_(std::move(direct)),
        size_(static_cast<std::uint64_t>(status.st_size)),
        device_(status.st_dev),
        inode_(status.st_ino) {}

  const std::string& path() const override { return path_; }
  const std::string& identity() const override { return identity_; }
  Kind kind() const override { return Kind::file; }
  std::uint64_t size() const override { return size_; }

  Status read_at(std::uint64_t offset, std::span<std::byte> into) override {
    const PositionedRead read = [this](std::span<std::byte> to, std::uint64_t at) -> std::int64_t {
      if (direct_) {
        const ssize_t n = ::pread(direct_.get(), to.data(), to.size(), static_cast<off_t>(at));
        if (n >= 0 || errno != EINVAL) return n;
      }
      // The file system refuses direct I/O: through the page cache, of which nothing is kept.
      const ssize_t n = ::pread(fd_.get(), to.data(), to.size(), static_cast<off_t>(at));
      if (n > 0) ::posix_fadvise(fd_.get(), static_cast<off_t>(at), n, POSIX_FADV_DONTNEED);
      return n;
    };
    return read_fully(read, path_, size_, offset, into);
  }

  Result<DataRange> next_data(std::uint64_t offset) override {
    if (offset >= size_) return DataRange{size_, size_};
    const off_t data = ::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return DataRange{size_, size_};  // a hole up to the end
    if (data < 0) return DataRange{offset, size_};                   // no knowledge of holes: all of it may be data
    const off_t hole = ::lseek(fd_.get(), data, SEEK_HOLE);
    const auto begin = std::min(static_cast<std::uint64_t>(data), size_);
    return DataRange{begin, hole < 0 ? size_ : std::min(static_cast<std::uint64_t>(hole), size_)};
  }

  Status check() override {
    struct stat status{};
    if (::stat(path_.c_str(), &status) != 0) return source_error(errno, path_, "find the protected file");
    if (status.st_dev != device_ || status.st_ino != inode_) {
      return fail(Code::invalid_argument, path_, "another file was put in its place", "it is opened anew");
    }
    if (static_cast<std::uint64_t>(status.st_size) != size_) {
      return fail(Code::invalid_argument, path_,
                  fmt::format("its size changed from {} to {} bytes", size_, status.st_size),
                  "it is opened anew with its new size");
    }
    return {};
  }

  Result<std::unique_ptr<Witness>> watch() override { return std::make_unique<FileWitness>(fd_.get(), os_, path_); }
  Result<std::vector<std::string>> writable_mounts() override { return std::vector<std::string>{}; }

 private:
  std::string path_;
  std::string identity_;
  OsPaths os_;
  FileDescriptor fd_;
  FileDescriptor direct_;  // O_DIRECT; none where the file system refuses it
  std::uint64_t size_;
  std::uint64_t device_;
  std::uint64_t inode_;
};

// "0100002" of the flags line of fdinfo: the access mode stands in the last digit.
bool opened_for_writing(const std::string& fdinfo) {
  const auto at = fdinfo.find("flags:");
  if (at == std::string::npos) return false;
  return (std::strtoul(fdinfo.c_str() + at + 6, nullptr, 8) & O_ACCMODE) != O_RDONLY;
}

}  // namespace

std::vector<std::string> writers_of(const OsPaths& os, const std::string& real_path, std::uint64_t device,
                                    std::uint64_t inode, bool& complete) {
  std::vector<std::string> writers = loops_backed_by(os, real_path);
  std::error_code error;
  for (fs::directory_iterator process(os.proc, error), end; !error && process != end; process.increment(error)) {
    const std::string pid = process->path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    bool writes = false;
    std::error_code denied;
    fs::directory_iterator handle(process->path() / "fd", denied);
    if (denied && denied != std::errc::no_such_file_or_directory && denied != std::errc::no_such_process)
      complete = false;
    for (; !denied && handle != fs::directory_iterator(); handle.increment(denied)) {
      struct stat status{};
      if (::stat(handle->path().c_str(), &status) != 0 || status.st_dev != device || status.st_ino != inode) continue;
      const auto info = read_text_file(process->path() / "fdinfo" / handle->path().filename());
      if (info && opened_for_writing(*info)) writes = true;
    }
    // A shared, writable mapping outlives its descriptor.
    const auto maps = writes ? Result<std::string>("") : read_text_file(process->path() / "maps", 64 << 20);
    if (maps && !maps->empty()) {
      for (std::size_t at = maps->find(" " + real_path + "\n"); at != std::string::npos && !writes;
           at = maps->find(" " + real_path + "\n", at + 1)) {
        const std::size_t line = maps->rfind('\n', at) + 1;
        const std::size_t flags = maps->find(' ', line) + 1;
        writes = maps->compare(flags + 1, 1, "w") == 0 && maps->compare(flags + 3, 1, "s") == 0;
      }
    }
    if (writes) writers.push_back(fmt::format("{} ({})", read_line(process->path() / "comm").value_or("process"), pid));
  }
  if (error) complete = false;
  return writers;
}

Result<std::unique_ptr<BlockSource>> open_file_source(const std::string& path, const OsPaths& os) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, path, "open");
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, path, "look at");
  FileDescriptor direct(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
  struct stat direct_status{};
  if (direct && (::fstat(direct.get(), &direct_status) != 0 || direct_status.st_ino != status.st_ino ||
                 direct_status.st_dev != status.st_dev)) {
    return fail(Code::busy, path, "was replaced while it was opened", "try again");
  }
  return std::make_unique<FileSource>(path, os, std::move(fd), std::move(direct), status);
}

}  // namespace tidemark::agent
