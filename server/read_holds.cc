#include "server/read_holds.h"

#include <pthread.h>

#include <algorithm>
#include <array>

#include "base/hex.h"
#include "base/random.h"
#include "storage/partition.h"

namespace tidemark::server {

ReadHolds::ReadHolds(std::chrono::milliseconds lease) : lease_(lease), thread_([this] { run(); }) {}

Result<std::string> ReadHolds::take(Held held) {
  std::array<std::byte, 16> random;
  secure_random(random);
  std::string id = to_hex(random);
  const std::lock_guard lock(mutex_);
  if (stopping_) return fail(Code::cancelled, {}, "the server stops");
  if (leases_.size() == kHoldsMax)
    return fail(Code::busy, "holds", std::to_string(kHoldsMax) + " points are being read by exports already",
                "try again when some of them are done");
  leases_.emplace(id, Lease{std::move(held), std::chrono::steady_clock::now() + lease_});
  wake_.notify_one();
  return id;
}

Status ReadHolds::renew(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = leases_.find(id);
  if (found == leases_.end())
    return fail(Code::not_found, "hold " + id, "it ended: it was not renewed in time, or the server was started again",
                "hold the point again, if it is still there");
  found->second.until = std::chrono::steady_clock::now() + lease_;
  return {};
}

void ReadHolds::release(const std::string& id) {
  decltype(leases_)::node_type ended;  // destroyed behind the lock
  const std::lock_guard lock(mutex_);
  ended = leases_.extract(id);
}

std::size_t ReadHolds::count() const {
  const std::lock_guard lock(mutex_);
  return leases_.size();
}

void ReadHolds::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  leases_.clear();
}

void ReadHolds::run() {
  ::pthread_setname_np(::pthread_self(), "tm-holds");
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const auto now = std::chrono::steady_clock::now();
    std::erase_if(leases_, [&](const auto& lease) { return lease.second.until <= now; });
    if (leases_.empty()) {
      wake_.wait(lock, [this] { return stopping_ || !leases_.empty(); });
      continue;
    }
    // A copy: while it waits, the lease may be released.
    const auto next =
        std::ranges::min_element(leases_, {}, [](const auto& lease) { return lease.second.until; })->second.until;
    wake_.wait_until(lock, next, [this] { return stopping_; });
  }
}

}  // namespace tidemark::server
