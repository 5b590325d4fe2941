// Threads for what would block a shard: reads for digests, certificates, token files. The queue is bounded: a caller
// that is refused tells its peer to come later. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace tidemark::server {

class WorkerPool {
 public:
  WorkerPool(std::size_t threads, std::size_t queue_max);
  ~WorkerPool();  // stop()

  // False, with nothing done, when the queue is full or the pool has stopped.
  [[nodiscard]] bool post(std::function<void()> job);
  // Runs what is queued, then joins.
  void stop();
  std::size_t queued() const;

 private:
  void run();

  const std::size_t queue_max_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace tidemark::server
