// A few threads that read scattered pieces of a disk at once: one at a time would wait for the disk at each of them.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tidemark::agent {

class ReadPool {
 public:
  static constexpr std::size_t kThreads = 8;

  ReadPool();
  ~ReadPool();
  ReadPool(const ReadPool&) = delete;
  ReadPool& operator=(const ReadPool&) = delete;

  // Calls `work` once for each of 0 .. count-1, on several threads, and returns when all have returned. Belongs to one
  // thread.
  void run(std::size_t count, const std::function<void(std::size_t)>& work);

 private:
  void serve();
  void take_turns(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable changed_, done_;
  const std::function<void(std::size_t)>* work_ = nullptr;
  std::size_t next_ = 0, count_ = 0, running_ = 0;
  bool quit_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace tidemark::agent
