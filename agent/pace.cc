#include "agent/pace.h"

#include <algorithm>
#include <utility>

namespace tidemark::agent {

namespace {

struct StageWords {
  std::string_view name, cause, remedy;
};
constexpr std::array<StageWords, kStages> kStageWords{{
    {"source", "the protected disks are read slowly",
     "see what else loads the disks (iostat), and the unit's IOSchedulingPriority"},
    {"cpu", "this machine's processor is busy with digests and compression",
     "see what else loads the processor, and the unit's Nice; zstd_level = 0 costs least"},
    {"rate-limit", "the configured bandwidth is used up", "raise rate_limit_mib_s"},
    {"network", "the network to the server is slow",
     "see what else uses the line; more bandwidth, or zstd_level = \"auto\""},
    {"server", "the server takes no more at once", "see the load of the server, and its metrics (docs/operating.md)"},
    {"staging", "the server asks to wait", "see the server's staging disk"},
}};
const StageWords& words(Stage stage) { return kStageWords.at(static_cast<std::size_t>(stage)); }

}  // namespace

std::string_view to_string(Stage stage) { return words(stage).name; }
std::string_view cause_of(Stage stage) { return words(stage).cause; }
std::string_view remedy_for(Stage stage) { return words(stage).remedy; }

Pace::Timer::Timer(Pace& pace, Stage stage, Time now) : pace_(pace), stage_(static_cast<std::size_t>(stage)) {
  pace_.since_[stage_] = now.time_since_epoch().count();
}

void Pace::Timer::end(Time now) {
  if (const std::int64_t since = pace_.since_[stage_].exchange(0); since != 0)
    pace_.busy_[stage_] += now.time_since_epoch().count() - since;
}

std::optional<Stage> Pace::take(Time now) {
  const std::int64_t passed = std::chrono::nanoseconds(now - std::exchange(from_, now)).count();
  std::array<std::int64_t, kStages> busy{};
  const std::int64_t until = now.time_since_epoch().count();
  for (std::size_t i = 0; i < kStages; ++i) {
    busy[i] = busy_[i].exchange(0, std::memory_order_relaxed);
    // What still runs has been busy until now.
    std::int64_t since = since_[i].load();
    if (since != 0 && since_[i].compare_exchange_strong(since, until)) busy[i] += until - since;
  }
  const auto most = std::max_element(busy.begin(), busy.end());
  if (*most < passed / 2) return std::nullopt;
  return static_cast<Stage>(most - busy.begin());
}

void CompressionLevel::account(std::uint64_t plain, std::chrono::nanoseconds busy, std::chrono::nanoseconds blocked) {
  plain_ += plain;
  busy_ += busy;
  blocked_ += blocked;
  if (fixed_ || plain_ < kWindowBytes) return;
  // One that waits as long as it works can spend the waiting on working; one that hardly waits is waited for.
  if (blocked_ > busy_) {
    level_ = std::min(level_ + 1, kMost);
  } else if (blocked_ < busy_ / 8) {
    level_ = std::max(level_ - 1, kLeast);
  }
  plain_ = 0;
  busy_ = blocked_ = std::chrono::nanoseconds(0);
}

}  // namespace tidemark::agent
