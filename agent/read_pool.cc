#include "agent/read_pool.h"

namespace tidemark::agent {

ReadPool::ReadPool() {
  for (std::size_t i = 0; i < kThreads; ++i) threads_.emplace_back([this] { serve(); });
}

ReadPool::~ReadPool() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReadPool::take_turns(std::unique_lock<std::mutex>& lock) {
  while (next_ < count_) {
    const std::size_t mine = next_++;
    const auto* work = work_;
    ++running_;
    lock.unlock();
    (*work)(mine);
    lock.lock();
    --running_;
  }
  if (running_ == 0) done_.notify_all();
}

void ReadPool::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return quit_ || next_ < count_; });
    if (quit_) return;
    take_turns(lock);
  }
}

void ReadPool::run(std::size_t count, const std::function<void(std::size_t)>& work) {
  std::unique_lock lock(mutex_);
  work_ = &work;
  next_ = 0;
  count_ = count;
  if (count > 1) changed_.notify_all();
  take_turns(lock);
  done_.wait(lock, [&] { return next_ >= count_ && running_ == 0; });
}

}  // namespace tidemark::agent
