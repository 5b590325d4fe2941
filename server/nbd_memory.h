// Buffers of NBD requests: counted for the whole server and for each connection, given back by their end.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/aligned_buffer.h"

namespace tidemark::server {

// Thread-safe.
class NbdMemory {
 public:
  explicit NbdMemory(std::uint64_t max) : max_(max) {}
  bool take(std::uint64_t bytes) {
    std::uint64_t used = used_.load(std::memory_order_relaxed);
    do {
      if (used + bytes > max_) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    return true;
  }
  void give_back(std::uint64_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
  std::uint64_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  const std::uint64_t max_;
  std::atomic<std::uint64_t> used_{0};
};

class NbdBuffer {
 public:
  // Null: there is no memory for it now, here or of this connection.
  static std::shared_ptr<NbdBuffer> make(NbdMemory& all, const std::shared_ptr<NbdMemory>& own, std::size_t size) {
    if (!own->take(size)) return nullptr;
    if (!all.take(size)) {
      own->give_back(size);
      return nullptr;
    }
    return std::shared_ptr<NbdBuffer>(new NbdBuffer(all, own, size));
  }
  ~NbdBuffer() {
    all_.give_back(size_);
    own_->give_back(size_);
  }
  NbdBuffer(const NbdBuffer&) = delete;
  NbdBuffer& operator=(const NbdBuffer&) = delete;

  std::span<std::byte> span() { return bytes_.span().first(size_); }

 private:
  NbdBuffer(NbdMemory& all, std::shared_ptr<NbdMemory> own, std::size_t size)
      : all_(all), own_(std::move(own)), size_(size), bytes_(size) {}

  NbdMemory& all_;
  const std::shared_ptr<NbdMemory> own_;
  const std::size_t size_;
  AlignedBuffer bytes_;
};

}  // namespace tidemark::server
