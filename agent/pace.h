// What holds the sending up: how long each stage of the way from disk to server was busy, or made the others wait.
//
//   source -> cpu (digests, compression) -> [queue] -> rate limit, network, the server's credit, its staging disk
//
// The stages work side by side, with bounded queues between them: the one that is busy nearly all of the time is the
// one that the others wait for. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

namespace tidemark::agent {

enum class Stage : std::uint8_t { source, cpu, rate_limit, network, server, staging };
inline constexpr std::size_t kStages = 6;
std::string_view to_string(Stage stage);   // "source", "cpu", "rate-limit", "network", "server", "staging"
std::string_view cause_of(Stage stage);    // a sentence: what is slow
std::string_view remedy_for(Stage stage);  // what may be done

class Pace {
 public:
  using Time = std::chrono::steady_clock::time_point;

  void add(Stage stage, std::chrono::nanoseconds busy) {
    busy_[static_cast<std::size_t>(stage)].fetch_add(busy.count(), std::memory_order_relaxed);
  }
  // The stage that was busy for at least half of the time since the last call; none: nothing held anything up. Called
  // by one thread.
  std::optional<Stage> take(Time now);

  // The stage is busy until this goes. One at a time for a stage.
  class Timer {
   public:
    Timer(Pace& pace, Stage stage, Time now = std::chrono::steady_clock::now());
    ~Timer() { end(std::chrono::steady_clock::now()); }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;
    void end(Time now);

   private:
    Pace& pace_;
    std::size_t stage_;
  };

 private:
  std::array<std::atomic<std::int64_t>, kStages> busy_{};   // nanoseconds
  std::array<std::atomic<std::int64_t>, kStages> since_{};  // of a running timer, what is not in busy_ yet; 0: none
  Time from_{};
};

// The compression that suits what holds the sending up: more of it where the way to the server is slower than the
// processor, less where the processor is what all wait for. Belongs to one thread.
class CompressionLevel {
 public:
  static constexpr int kLeast = 1, kMost = 9;
  static constexpr std::uint64_t kWindowBytes = 8 << 20;  // plain bytes between two changes

  explicit CompressionLevel(std::optional<int> fixed) : fixed_(fixed), level_(fixed.value_or(kLeast)) {}
  int level() const { return level_; }
  // `plain` bytes took `busy` to encode, and the way to the server made them wait for `blocked`.
  void account(std::uint64_t plain, std::chrono::nanoseconds busy, std::chrono::nanoseconds blocked);

 private:
  std::optional<int> fixed_;
  int level_;
  std::uint64_t plain_ = 0;
  std::chrono::nanoseconds busy_{0}, blocked_{0};
};

}  // namespace tidemark::agent
