// A block device, whole disk or partition, as a source.
//
// Proof that nothing changed: the kernel's counters of writes and discards of the whole disk, with nothing in flight at
// either end. Whether it is in use is asked by an exclusive open, which the kernel refuses for whatever is mounted (in
// any namespace), swapped on or built upon. That claim is given back at once: holding it would keep an administrator
// from mounting the disk, and proves no more than the counters do.

#include "agent/device_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "agent/block_device.h"
#include "agent/file_descriptor.h"
#include "agent/free_space.h"
#include "agent/mounts.h"
#include "agent/reading.h"

namespace tidemark::agent {
namespace {

constexpr auto kInFlightPatience = std::chrono::milliseconds(200);

// Loop devices only: a write to the backing file does not pass the loop device's counters.
struct Backing {
  std::int64_t size = -1, seconds = 0, nanoseconds = 0;
  bool operator==(const Backing&) const = default;
};
Backing backing_state(const std::string& path) {
  struct stat status{};
  if (path.empty() || ::stat(path.c_str(), &status) != 0) return {};
  return {static_cast<std::int64_t>(status.st_size), status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

// Waits a moment for requests in flight to end, so that a disk at rest is seen at rest.
Result<WriteCounters> settled_counters(const OsPaths& os, const std::string& disk) {
  const auto deadline = std::chrono::steady_clock::now() + kInFlightPatience;
  while (true) {
    WriteCounters counters = TIDEMARK_TRY(read_write_counters(os, disk));
    if (counters.writes_in_flight == 0 || std::chrono::steady_clock::now() >= deadline) return counters;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

class DeviceWitness final : public Witness {
 public:
  DeviceWitness(const OsPaths& os, std::string path, const BlockDeviceFacts& facts, int fd)
      : os_(os), path_(std::move(path)), facts_(facts), fd_(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), claimable_(claim()) {
    flush();
    backing_ = backing_state(facts_.backing_file);
    if (auto counters = settled_counters(os_, facts_.disk_name)) {
      counters_ = *counters;
      counted_ = true;
    } else {
      detail_ = counters.error().message();
    }
  }

  DiskEvidence testify(bool frozen) override {
    DiskEvidence evidence;
    evidence.disk = path_;
    evidence.frozen = frozen;
    evidence.claimable = claimable_ && claim();
    // Buffered writes to the bare device must reach the counters; on a mounted one a flush would be a write of our own.
    if (evidence.claimable) (void)::fsync(fd_.get());
    const auto mounts = read_mounts(os_);
    evidence.mounted = mounts && !mounts_of(*mounts, facts_.tree).empty();
    evidence.detail = detail_;
    if (!counted_) return evidence;
    const auto now = settled_counters(os_, facts_.disk_name);
    if (!now) {
      evidence.detail = now.error().message();
      return evidence;
    }
    evidence.counted = true;
    evidence.unchanged = now->same_as(counters_) && now->writes_in_flight == 0 && counters_.writes_in_flight == 0;
    if (backing_state(facts_.backing_file) != backing_) {
      evidence.unchanged = false;
      evidence.detail = "its backing file " + facts_.backing_file + " was written to";
    }
    for (const Swap& swap : read_swaps(os_)) {
      if (!evidence.unchanged && facts_.tree.contains(swap.device)) evidence.detail = "there is swap space on it";
    }
    return evidence;
  }

 private:
  bool claim() const { return static_cast<bool>(FileDescriptor(::open(path_.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC))); }

  // What the file systems and the device's own cache still hold goes out now, so that it does not count as a change.
  void flush() const {
    if (const auto mounts = read_mounts(os_)) {
      for (const Mount& mount : mounts_of(*mounts, facts_.tree)) {
        const FileDescriptor folder(::open(mount.mountpoint.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK));
        if (folder) (void)::syncfs(folder.get());  // an error means changes to come: the counters will tell
      }
    }
    (void)::fsync(fd_.get());
  }

  OsPaths os_;
  std::string path_;
  BlockDeviceFacts facts_;
  FileDescriptor fd_;
  bool claimable_;
  bool counted_ = false;
  WriteCounters counters_;
  Backing backing_;
  std::string detail_;
};

class DeviceSource final : public BlockSource {
 public:
  DeviceSource(std::string path, const OsPaths& os, FileDescriptor fd, BlockDeviceFacts facts, std::uint64_t size)
      : path_(std::move(path)),
        os_(os),
        fd_(std::move(fd)),
        facts_(std::move(facts)),
        size_(size),
        read_(reads_of(fd_.get())) {}

  const std::string& path() const override { return path_; }
  const std::string& identity() const override { return facts_.identity; }
  Kind kind() const override { return facts_.partition == 0 ? Kind::disk : Kind::partition; }
  std::uint64_t size() const override { return size_; }

  Status read_at(std::uint64_t offset, std::span<std::byte> into) override {
    return read_fully(read_, path_, size_, offset, into);
  }

  Result<DataRange> next_data(std::uint64_t offset) override {
    return DataRange{std::min(offset, size_), size_};  // a device does not tell what it never wrote
  }

  Status check() override {
    struct stat status{};
    if (::stat(path_.c_str(), &status) != 0) return source_error(errno, path_, "find the protected disk");
    if (!S_ISBLK(status.st_mode) || status.st_rdev != facts_.device) {
      return fail(Code::invalid_argument, path_, "another device was put in its place", "it is opened anew");
    }
    std::uint64_t size = 0;
    if (::ioctl(fd_.get(), BLKGETSIZE64, &size) != 0) return fail_errno(errno, path_, "ask for the size of the disk");
    if (size == 0)
      return fail(Code::not_found, path_, "the disk is gone",
                  "attach it again, or take it off the list with `unprotect`");
    if (size != size_) {
      return fail(Code::invalid_argument, path_, fmt::format("its size changed from {} to {} bytes", size_, size),
                  "it is opened anew with its new size");
    }
    const auto facts = describe_block_device(os_, facts_.device, path_);
    if (!facts || facts->identity != facts_.identity) {
      return fail(Code::invalid_argument, path_, "another disk was put in its place", "it is opened anew");
    }
    return {};
  }

  Result<std::unique_ptr<Witness>> watch() override {
    // Partitions and holders come and go.
    facts_ = TIDEMARK_TRY(describe_block_device(os_, facts_.device, path_));
    return std::make_unique<DeviceWitness>(os_, path_, facts_, fd_.get());
  }

  std::vector<DataRange> unused() override {
    const auto facts = describe_block_device(os_, facts_.device, path_);
    return facts ? unused_space(os_, *facts, size_) : std::vector<DataRange>{};
  }

  Result<std::vector<std::string>> writable_mounts() override {
    const auto facts = TIDEMARK_TRY(describe_block_device(os_, facts_.device, path_));
    std::vector<std::string> places;
    for (const Mount& mount : mounts_of(TIDEMARK_TRY(read_mounts(os_)), facts.tree)) {
      if (!mount.read_only) places.push_back(mount.mountpoint);
    }
    return places;
  }

 private:
  std::string path_;
  OsPaths os_;
  FileDescriptor fd_;
  BlockDeviceFacts facts_;
  std::uint64_t size_;
  PositionedRead read_;
};

}  // namespace

Result<std::unique_ptr<BlockSource>> open_device_source(const std::string& path, const OsPaths& os) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (!fd) return fail_errno(errno, path, "open");
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, path, "look at");
  std::uint64_t size = 0;
  if (::ioctl(fd.get(), BLKGETSIZE64, &size) != 0) return fail_errno(errno, path, "ask for the size");
  BlockDeviceFacts facts = TIDEMARK_TRY(describe_block_device(os, status.st_rdev, path));
  return std::make_unique<DeviceSource>(path, os, std::move(fd), std::move(facts), size);
}

}  // namespace tidemark::agent
