// Real loop devices and mounts for tests that run as root. Where they cannot be had, why_not() says so and the test is
// skipped.
#pragma once

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "agent/file_descriptor.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {

class LoopDevice {
 public:
  // Attaches `size` bytes of a new sparse file of `dir`. `direct`: past the page cache where the file system can, so
  // that requests are under way side by side, as on a disk; else they are done one after the other.
  LoopDevice(const TempDir& dir, const std::string& name, std::uint64_t size, bool direct = false)
      : file_(dir.write(name, "")) {
    std::filesystem::resize_file(file_, size);
    if (::geteuid() != 0) {
      why_not_ = "not root";
      return;
    }
    const FileDescriptor control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    const FileDescriptor backing(::open(file_.c_str(), O_RDWR | O_CLOEXEC));
    for (int attempt = 0; control && attempt < 50; ++attempt) {
      const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) break;
      path_ = "/dev/loop" + std::to_string(number);
      FileDescriptor device(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
      loop_config config{};
      config.fd = static_cast<__u32>(backing.get());
      if (direct) config.info.lo_flags = LO_FLAGS_DIRECT_IO;
      if (device && ::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) {
        device_ = std::move(device);
        return;
      }
      ::usleep(20'000);  // somebody else took it
    }
    why_not_ = "no loop device can be had here";
  }
  ~LoopDevice() {
    unmount();
    if (device_) ::ioctl(device_.get(), LOOP_CLR_FD, 0);
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;

  const std::string& path() const { return path_; }
  const std::filesystem::path& file() const { return file_; }
  int fd() const { return device_.get(); }
  std::string why_not() const { return why_not_; }

  // Makes an ext4 and mounts it at `place` (made). False: not possible here.
  bool mount_ext4(const std::filesystem::path& place) {
    const std::string make = "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 " + path_ + " >/dev/null 2>&1";
    if (std::system(make.c_str()) != 0) return false;
    return mount(place);
  }
  bool mount(const std::filesystem::path& place, const char* kind = "ext4") {
    std::filesystem::create_directories(place);
    if (::mount(path_.c_str(), place.c_str(), kind, 0, nullptr) != 0) return false;
    mounted_at_ = place;
    return true;
  }
  void unmount() {
    if (mounted_at_.empty()) return;
    for (int attempt = 0; ::umount(mounted_at_.c_str()) != 0 && attempt < 100; ++attempt) ::usleep(20'000);
    mounted_at_.clear();
  }
  bool set_size(std::uint64_t size) {
    std::filesystem::resize_file(file_, size);
    return ::ioctl(device_.get(), LOOP_SET_CAPACITY, 0) == 0;
  }

 private:
  std::filesystem::path file_;
  std::string path_;
  std::string why_not_;
  FileDescriptor device_;
  std::filesystem::path mounted_at_;
};

#define SKIP_WITHOUT_LOOP(loop) \
  if (!(loop).why_not().empty()) GTEST_SKIP() << (loop).why_not()

}  // namespace tidemark::agent
