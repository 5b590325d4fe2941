// Memory for direct I/O: aligned to limits::kIoAlignment, sized in bytes, owned, movable, not copyable.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <span>

#include "base/limits.h"
#include "base/units.h"

namespace tidemark {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // `size` is rounded up to the alignment. The content is not initialised.
  explicit AlignedBuffer(std::size_t size) : size_(round_up(size, limits::kIoAlignment)) {
    data_.reset(static_cast<std::byte*>(::operator new(size_, std::align_val_t(limits::kIoAlignment))));
  }
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  std::span<std::byte> span() { return {data(), size_}; }
  std::span<const std::byte> span() const { return {data(), size_}; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(limits::kIoAlignment)); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  std::size_t size_ = 0;
};

}  // namespace tidemark
