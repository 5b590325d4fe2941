// The newest time that this server believed in, over restarts: a file in the data directory, written every few minutes.
// Without it a restart would have to take the wall clock's word. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/status.h"

namespace tidemark::server {

class WorkerPool;

class SeenTime {
 public:
  static constexpr auto kWriteEvery = std::chrono::minutes(4);  // less than what a clock may step by

  explicit SeenTime(std::string path);
  std::optional<WallMicros> at_start() const { return at_start_; }
  // From the shards, every second; a worker writes it when it is time.
  void note(WallMicros now_us, std::chrono::steady_clock::time_point monotonic, WorkerPool& workers);
  Status write();  // now

 private:
  const std::string path_;
  std::optional<WallMicros> at_start_;
  std::atomic<WallMicros> noted_us_{0};
  std::atomic<std::chrono::steady_clock::rep> write_at_{0};
};

}  // namespace tidemark::server
