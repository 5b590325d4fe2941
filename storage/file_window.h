// A file that is read front to back through one buffer. One thread at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/aligned_buffer.h"
#include "base/status.h"
#include "storage/file.h"

namespace tidemark::storage {

class FileWindow {
 public:
  explicit FileWindow(std::size_t bytes) : buffer_(bytes) {}

  // Until the next open(), or the window's end, the file must be there.
  Status open(File& file) {
    file_ = &file;
    size_ = TIDEMARK_TRY(file.size());
    start_ = filled_ = 0;
    return {};
  }
  std::uint64_t size() const { return size_; }  // as of open()

  // At least `want` bytes from `offset` on, or what there is up to the end of the file; `want` is at most the buffer's
  // size. Valid until the next call.
  Result<std::span<const std::byte>> at(std::uint64_t offset, std::size_t want) {
    if (offset >= size_) return std::span<const std::byte>();
    want = static_cast<std::size_t>(std::min<std::uint64_t>(want, size_ - offset));
    if (offset < start_ || offset + want > start_ + filled_) {
      start_ = offset;
      filled_ = TIDEMARK_TRY(file_->read_at(offset, buffer_.span()));
    }
    return std::span<const std::byte>(buffer_.data() + (offset - start_), filled_ - (offset - start_));
  }

 private:
  AlignedBuffer buffer_;
  File* file_ = nullptr;
  std::uint64_t size_ = 0;
  std::uint64_t start_ = 0;
  std::size_t filled_ = 0;
};

}  // namespace tidemark::storage
