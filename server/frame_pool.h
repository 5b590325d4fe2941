// Memory for frames that are being received, one pool a shard, bounded in bytes. A buffer is of one of a few sizes and
// is kept for the next frame when it comes back, so that the hot path allocates nothing.
//
// When the pool is used up a session waits its turn: it stops reading and queues up; serve() lets the waiting ones try
// again in the order in which they came. Belongs to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "base/limits.h"
#include "wire/frame_assembler.h"

namespace tidemark::server {

class FramePool final : public wire::PayloadPool {
 public:
  static constexpr std::array<std::size_t, 5> kSizes = {4_KiB, 16_KiB, 64_KiB, 256_KiB, limits::kFramePayloadMax};

  class Waiter {
   public:
    // Room came free: take() may succeed now; when it does not, wait() again.
    virtual void on_frame_room() = 0;

   protected:
    ~Waiter() = default;
  };

  // `budget` bytes; at least two buffers of the largest size.
  explicit FramePool(std::size_t budget);
  ~FramePool();  // everything must have been released
  FramePool(const FramePool&) = delete;
  FramePool& operator=(const FramePool&) = delete;

  // Also empty while others wait: whoever came first is served first. Then wait().
  std::span<std::byte> acquire(std::size_t size) override;
  void release(std::span<std::byte> buffer) override;
  void wait(Waiter& waiter);    // once until called
  void forget(Waiter& waiter);  // does not wait any more
  void serve();                 // once per turn
  std::size_t in_use() const { return in_use_; }
  std::size_t kept() const { return kept_; }
  std::size_t waiting() const { return waiters_.size(); }
  std::size_t budget() const { return budget_; }

 private:
  void trim_to(std::size_t kept_max);

  const std::size_t budget_;
  std::size_t in_use_ = 0;  // bytes handed out
  std::size_t kept_ = 0;    // bytes in free lists; in_use_ + kept_ <= budget_
  std::array<std::vector<std::unique_ptr<std::byte[]>>, kSizes.size()> free_;
  std::deque<Waiter*> waiters_;
  bool serving_ = false;
  bool freed_ = false;
};

}  // namespace tidemark::server
