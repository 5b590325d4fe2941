#include "server/watermark.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tidemark::server {
namespace {

double seconds_of(std::chrono::steady_clock::duration span) { return std::chrono::duration<double>(span).count(); }

// How much of the way to a new value is gone after `seconds`.
double weight(double seconds, std::chrono::seconds memory) {
  return 1 - std::exp(-seconds / static_cast<double>(memory.count()));
}

Watermark::Level next_level(Watermark::Level level, double used, const Watermark::Marks& marks) {
  using enum Watermark::Level;
  if (marks.high >= 1) return low;
  const bool was_full = level == full, was_high = level != low;
  if (marks.full < 1 && (used >= marks.full || (was_full && used >= marks.full - Watermark::kHysteresis))) return full;
  if (used >= marks.high || (was_high && used >= marks.high - Watermark::kHysteresis)) return high;
  return low;
}

}  // namespace

const char* to_string(Watermark::Level level) {
  switch (level) {
    case Watermark::Level::low: return "low";
    case Watermark::Level::high: return "high";
    case Watermark::Level::full: return "full";
  }
  return "low";
}

const char* to_string(Watermark::Hold hold) {
  switch (hold) {
    case Watermark::Hold::none: return "none";
    case Watermark::Hold::slowed: return "slowed";
    case Watermark::Hold::paused: return "paused";
  }
  return "none";
}

void Watermark::note(Time now, std::span<const Machine> machines) {
  for (const Machine& machine : machines) {
    const auto [at, fresh] = known_.try_emplace(machine.id);
    Known& known = at->second;
    // What was stored before it was first told of, or by a server's former life, is no growth.
    if (fresh || machine.stored < known.stored) {
      known.stored = machine.stored;
      known.noted = now;
      continue;
    }
    const double seconds = seconds_of(now - known.noted);
    if (seconds <= 0) continue;
    const double rate = static_cast<double>(machine.stored - known.stored) / seconds;
    known.fast += weight(seconds, kFast) * (rate - known.fast);
    known.slow += weight(seconds, kSlow) * (rate - known.slow);
    if (known.decision.hold == Hold::slowed) {
      if (known.growth() < static_cast<double>(known.decision.rate) / 2)
        known.wants += weight(seconds, kSlow) * (known.growth() - known.wants);
      known.wants = std::max(known.wants, known.growth());
    }
    known.stored = machine.stored;
    known.noted = now;
  }
}

double Watermark::wanted(const Known& known) {
  return known.decision.hold == Hold::none ? known.growth() : known.wants;
}

// The common rate up to which all may go; above all wishes when there is enough for them.
double Watermark::share(std::uint64_t total) const {
  const double brink = level_ == Level::full ? (1 + marks_.full) / 2 : marks_.full;
  double left = std::max(0.0, (brink - used_) * static_cast<double>(total) / static_cast<double>(kHorizon.count()));
  std::vector<double> wishes;
  wishes.reserve(known_.size());
  for (const auto& [id, known] : known_) wishes.push_back(wanted(known));
  std::sort(wishes.begin(), wishes.end());
  for (std::size_t i = 0; i < wishes.size(); ++i) {
    const double each = left / static_cast<double>(wishes.size() - i);
    if (wishes[i] > each) return std::max(each, kSmallRate);
    left -= wishes[i];
  }
  return HUGE_VAL;
}

void Watermark::decide(Time now, std::uint64_t total, std::uint64_t available) {
  std::erase_if(known_, [&](const auto& one) { return now - one.second.noted > kForget; });
  if (total == 0) return;
  used_ = 1 - static_cast<double>(std::min(available, total)) / static_cast<double>(total);
  level_ = next_level(level_, used_, marks_);
  const double rate = level_ == Level::low ? HUGE_VAL : share(total);
  slowed_ = paused_ = 0;
  for (auto& [id, known] : known_) {
    const double wants = wanted(known);
    // Paused ones stay so until there is less in use: else each would begin again as soon as it stands still.
    const bool stays = known.decision.hold == Hold::paused && level_ == Level::full;
    const bool held = known.decision.hold != Hold::none;
    Decision next{.hold = Hold::none, .rate = 0, .growth = static_cast<std::uint64_t>(wants)};
    if (stays || wants > (held ? 0.9 * rate : rate)) {
      next.hold = level_ == Level::full ? Hold::paused : Hold::slowed;
      if (next.hold == Hold::slowed) next.rate = static_cast<std::uint64_t>(rate);
      known.wants = wants;
    }
    slowed_ += next.hold == Hold::slowed ? 1 : 0;
    paused_ += next.hold == Hold::paused ? 1 : 0;
    known.decision = next;
  }
}

Watermark::Decision Watermark::decision(const MachineId& machine) const {
  const auto found = known_.find(machine);
  return found == known_.end() ? Decision{} : found->second.decision;
}

}  // namespace tidemark::server
