#include "server/frame_pool.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace tidemark::server {
namespace {

std::size_t class_of(std::size_t size) {
  std::size_t i = 0;
  while (FramePool::kSizes[i] < size) ++i;
  return i;
}

}  // namespace

FramePool::FramePool(std::size_t budget) : budget_(std::max(budget, 2 * kSizes.back())) {}

FramePool::~FramePool() { TIDEMARK_CHECK(in_use_ == 0); }

std::span<std::byte> FramePool::acquire(std::size_t size) {
  TIDEMARK_CHECK(size <= kSizes.back());
  if (!waiters_.empty() && !serving_) return {};
  const std::size_t size_class = class_of(size);
  const std::size_t bytes = kSizes[size_class];
  if (in_use_ + bytes > budget_) return {};
  std::unique_ptr<std::byte[]> buffer;
  auto& free = free_[size_class];
  if (!free.empty()) {
    buffer = std::move(free.back());
    free.pop_back();
    kept_ -= bytes;
  } else {
    trim_to(budget_ - in_use_ - bytes);
    buffer = std::make_unique_for_overwrite<std::byte[]>(bytes);
  }
  in_use_ += bytes;
  return {buffer.release(), bytes};
}

void FramePool::release(std::span<std::byte> buffer) {
  const std::size_t size_class = class_of(buffer.size());
  TIDEMARK_CHECK(buffer.size() == kSizes[size_class] && buffer.size() <= in_use_);
  in_use_ -= buffer.size();
  kept_ += buffer.size();
  free_[size_class].emplace_back(buffer.data());
  freed_ = true;
}

void FramePool::trim_to(std::size_t kept_max) {
  for (std::size_t i = free_.size(); i-- > 0 && kept_ > kept_max;) {
    while (!free_[i].empty() && kept_ > kept_max) {
      free_[i].pop_back();
      kept_ -= kSizes[i];
    }
  }
}

void FramePool::wait(Waiter& waiter) {
  if (std::find(waiters_.begin(), waiters_.end(), &waiter) == waiters_.end()) waiters_.push_back(&waiter);
}

void FramePool::forget(Waiter& waiter) { std::erase(waiters_, &waiter); }

void FramePool::serve() {
  if (!freed_ || waiters_.empty()) return;
  freed_ = false;
  serving_ = true;
  // One that cannot be served queues up at the end again, which ends the round: nobody behind it is passed over for
  // long.
  for (std::size_t n = waiters_.size(); n > 0 && !waiters_.empty(); --n) {
    Waiter* const first = waiters_.front();
    waiters_.pop_front();
    const std::size_t waiting_before = waiters_.size();
    first->on_frame_room();
    if (waiters_.size() > waiting_before) {  // still no room: it keeps its place
      waiters_.pop_back();
      waiters_.push_front(first);
      break;
    }
  }
  serving_ = false;
}

}  // namespace tidemark::server
