// A file system from which files are deleted all the while, and what a crash would leave of it when what is said to be
// unused reads as zeroes.
#pragma once

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "agent/block_device.h"
#include "agent/free_space.h"
#include "agent/text_file.h"
#include "tests/unit/agent/loop_device.h"

namespace tidemark::agent {

class CrashRig {
 public:
  static constexpr std::uint64_t kSize = 96 << 20;
  static constexpr std::size_t kFileSize = 128 << 10;
  static constexpr int kFiles = 400;

  // `make`: mkfs and its options; `options`: of the mount.
  CrashRig(const std::string& make, std::string kind, std::string options)
      : kind_(std::move(kind)), options_(std::move(options)) {
    if (!loop_.why_not().empty()) {
      why_not_ = loop_.why_not();
      return;
    }
    if (std::system((make + " " + loop_.path() + " >/dev/null 2>&1").c_str()) != 0) why_not_ = "cannot: " + make;
  }
  const std::string& why_not() const { return why_not_; }

  // Files are made and made durable, then deleted one after another; meanwhile it is asked what is unused. Then the
  // machine crashes: on its disk a file is gone or whole. What is not, or empty; `unused` counts what was said to be.
  std::string crash(std::uint64_t& unused) {
    std::filesystem::create_directories(place_);
    const std::string mount = "mount -o " + options_ + " " + loop_.path() + " " + place_.string();
    if (std::system(mount.c_str()) != 0) return "cannot: " + mount;
    const std::string content = content_of(seed_);
    for (int i = 0; i < kFiles; ++i) std::ofstream(file(place_, i), std::ios::binary) << content;
    ::sync();
    const std::uint64_t free_before = free_blocks();
    std::atomic<int> gone = 0;
    std::jthread deleter([&](const std::stop_token& stop) {
      for (int i = 0; i < kFiles && !stop.stop_requested(); ++i) {
        ::unlink(file(place_, i).c_str());
        ++gone;
        ::usleep(50);
      }
    });
    // Until some of the space is free in the file system's memory: XFS gives it back a while after the name is gone.
    for (int i = 0; i < 20'000 && (gone < 20 || free_blocks() <= free_before); ++i) ::usleep(100);
    struct stat status{};
    ::stat(loop_.path().c_str(), &status);
    const auto facts = describe_block_device({}, status.st_rdev, loop_.path());
    const auto ranges = unused_space({}, *facts, kSize);
    deleter.request_stop();
    deleter.join();
    // The disk as it is now, and nothing that the file system has in memory alone.
    std::string image = *read_text_file(loop_.file(), kSize);
    for (const DataRange& range : ranges) {
      unused += range.end - range.begin;
      std::fill_n(image.begin() + static_cast<std::ptrdiff_t>(range.begin), range.end - range.begin, '\0');
    }
    const auto copy = temp_.write("copy", image);
    if (std::system(("umount " + place_.string()).c_str()) != 0) return "cannot unmount";
    std::string wrong = judge(copy, content);
    for (int i = 0; i < kFiles; ++i) ::unlink(file(place_, i).c_str());
    ++seed_;
    return wrong;
  }

 private:
  static std::filesystem::path file(const std::filesystem::path& place, int number) {
    return place / ("f" + std::to_string(number));
  }
  std::uint64_t free_blocks() const {
    struct statvfs space{};
    ::statvfs(place_.c_str(), &space);
    return space.f_bfree;
  }
  static std::string content_of(int seed) { return std::string(kFileSize, static_cast<char>('a' + seed % 26)); }

  std::string judge(const std::filesystem::path& copy, const std::string& content) {
    const auto place = temp_ / "after";
    std::filesystem::create_directories(place);
    const std::string nouuid = kind_ == "xfs" ? ",nouuid" : "";
    if (std::system(("mount -o loop" + nouuid + " " + copy.string() + " " + place.string()).c_str()) != 0)
      return "it cannot be mounted after the crash";
    std::string wrong;
    for (int i = 0; i < kFiles && wrong.empty(); ++i) {
      const auto found = read_text_file(file(place, i), 1 << 20);
      if (found ? *found != content : found.error().code != Code::not_found)
        wrong = "file " + std::to_string(i) + " is there and not what it was";
    }
    if (std::system(("umount " + place.string()).c_str()) != 0) return "cannot unmount";
    const std::string check = kind_ == "xfs" ? "xfs_repair -n " : "e2fsck -fn ";
    if (wrong.empty() && std::system((check + copy.string() + " >/dev/null 2>&1").c_str()) != 0)
      wrong = "it is not sound after the crash";
    return wrong;
  }

  TempDir temp_;
  std::string kind_, options_, why_not_;
  LoopDevice loop_{temp_, "disk", kSize};
  std::filesystem::path place_ = temp_ / "mounted";
  int seed_ = 0;
};

}  // namespace tidemark::agent
