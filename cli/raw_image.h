// What a disk is exported to: a file or a block device, written in any order by several threads. Ranges of zeroes
// become holes, or are zeroed by the device itself where it can. What is aligned to limits::kIoAlignment, in place,
// length and memory, goes past the kernel's cache where the file system can: an image is larger than memory, and not
// read soon.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"

namespace tidemark::cli {

class RawImage {
 public:
  // Makes the file or opens what an earlier run left of it, and gives it this size. `shown`: what errors call it.
  static Result<RawImage> open_file(const std::string& path, std::string shown, std::uint64_t size);
  // Code::busy: it, or a partition of it, is mounted or used otherwise. Code::no_space: it is smaller than `size`.
  // Code::already_exists: there is something on it, and not `overwrite`.
  static Result<RawImage> open_device(const std::string& path, std::uint64_t size, bool overwrite);
  RawImage(RawImage&& other) noexcept;
  RawImage& operator=(RawImage&&) = delete;
  ~RawImage();

  bool fresh() const { return fresh_; }  // it is all zeroes, and was made just now
  const std::string& shown() const { return shown_; }
  // Thread-safe, for ranges that do not overlap.
  Status write(std::uint64_t offset, std::span<const std::byte> bytes);
  Status write_zeroes(std::uint64_t offset, std::uint64_t length);
  // write(), but pages of zeroes become holes; on one that is fresh they are passed over.
  Status write_sparse(std::uint64_t offset, std::span<const std::byte> bytes);
  Status read(std::uint64_t offset, std::span<std::byte> to) const;
  Status sync();

 private:
  RawImage(std::string shown, int fd, bool device, bool fresh)
      : shown_(std::move(shown)), fd_(fd), device_(device), fresh_(fresh) {}
  void open_direct(const std::string& path);

  std::string shown_;
  int fd_;
  int direct_ = -1;  // the same, without the cache
  bool device_;
  bool fresh_;
};

bool is_block_device(const std::string& path);

}  // namespace tidemark::cli
