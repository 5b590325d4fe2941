// How long to wait before the next try: doubling from 0.5 s to a minute, with full jitter, so that a fleet whose server
// restarted does not come back in one moment.
#pragma once

#include <algorithm>
#include <chrono>

#include "base/random.h"

namespace tidemark::agent {

class Backoff {
 public:
  static constexpr auto kFirst = std::chrono::milliseconds(500);
  static constexpr auto kLast = std::chrono::milliseconds(60'000);

  explicit Backoff(std::uint64_t seed) : random_(seed) {}
  // At least `least` (what the server asked for), and then something between half the step and the whole step.
  std::chrono::milliseconds next(std::chrono::milliseconds least = std::chrono::milliseconds(0)) {
    const auto half = static_cast<std::uint64_t>(step_.count() / 2);
    const auto wait = std::chrono::milliseconds(static_cast<std::int64_t>(half + random_.below(half + 1)));
    step_ = std::min(step_ * 2, std::chrono::milliseconds(kLast));
    return least + wait;
  }
  void reset() { step_ = kFirst; }

 private:
  Random random_;
  std::chrono::milliseconds step_ = kFirst;
};

}  // namespace tidemark::agent
