// Admission: how many may come in. A connection is counted from accept to its end, by tickets that give back on
// destruction; a source address has a token bucket. Over a limit before the handshake is done the connection is simply
// closed; after it, the peer gets Error busy with a time to come back.
//
// SourceRates belongs to the acceptor's thread; AdmissionCounts is thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

namespace tidemark::server {

// A bounded count. take() fails at the limit.
class AdmissionCount {
 public:
  explicit AdmissionCount(std::uint32_t limit) : limit_(limit) {}

  class Ticket {
   public:
    Ticket() = default;
    explicit Ticket(AdmissionCount& count) : count_(&count) {}
    Ticket(Ticket&& other) noexcept : count_(std::exchange(other.count_, nullptr)) {}
    Ticket& operator=(Ticket&& other) noexcept {
      if (this != &other) {
        release();
        count_ = std::exchange(other.count_, nullptr);
      }
      return *this;
    }
    ~Ticket() { release(); }
    void release() {
      if (count_ != nullptr) count_->taken_.fetch_sub(1, std::memory_order_relaxed);
      count_ = nullptr;
    }

   private:
    AdmissionCount* count_ = nullptr;
  };

  std::optional<Ticket> take() {
    std::uint32_t taken = taken_.load(std::memory_order_relaxed);
    do {
      if (taken >= limit_) return std::nullopt;
    } while (!taken_.compare_exchange_weak(taken, taken + 1, std::memory_order_relaxed));
    return Ticket(*this);
  }
  std::uint32_t taken() const { return taken_.load(std::memory_order_relaxed); }
  std::uint32_t limit() const { return limit_; }
  bool full() const { return taken() >= limit_; }

 private:
  const std::uint32_t limit_;
  std::atomic<std::uint32_t> taken_{0};
};

// Connections by source address: `per_second` on average, bursts of kBurstSeconds times that. At most kSourcesMax
// addresses are remembered; those that are back at a full bucket are forgotten first, and when that does not make room,
// all newcomers share one bucket.
class SourceRates {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::size_t kSourcesMax = 16'384;
  static constexpr double kBurstSeconds = 4;

  explicit SourceRates(std::uint32_t per_second) : per_second_(per_second) {}
  bool allow(const std::string& address, Time now);
  std::size_t remembered() const { return buckets_.size(); }

 private:
  struct Bucket {
    double tokens;
    Time at;
  };
  bool take(Bucket& bucket, Time now) const;
  void forget_full(Time now);

  const double per_second_;
  std::unordered_map<std::string, Bucket> buckets_;
  std::optional<Bucket> overflow_;
};

}  // namespace tidemark::server
