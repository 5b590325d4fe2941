// Points that a client outside wants to read for a while, in many requests: an export. Each hold is a lease that its
// client renews; one that is not renewed ends by itself, so a client that died holds nothing for long. Thread-safe.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"

namespace tidemark::storage {
class Partition;
class Reader;
}  // namespace tidemark::storage

namespace tidemark::server {

class ReadHolds {
 public:
  static constexpr std::chrono::seconds kLease{60};
  static constexpr std::size_t kHoldsMax = 256;

  // What keeps a point from being dropped. The partition is let go after the readers.
  struct Held {
    std::shared_ptr<storage::Partition> partition;
    std::vector<std::shared_ptr<storage::Reader>> readers;
  };

  explicit ReadHolds(std::chrono::milliseconds lease = kLease);
  ~ReadHolds() { stop(); }

  // Its id. Code::busy: there are as many as there may be.
  Result<std::string> take(Held held);
  // From now on for another lease. Code::not_found: it ended.
  Status renew(const std::string& id);
  void release(const std::string& id);  // one that ended is nothing to complain of
  std::size_t count() const;
  void stop();  // lets go of all; nothing is taken afterwards

 private:
  using Time = std::chrono::steady_clock::time_point;
  struct Lease {
    Held held;
    Time until;
  };
  void run();

  const std::chrono::milliseconds lease_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<std::string, Lease> leases_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tidemark::server
