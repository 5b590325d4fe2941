// Who is slowed, and who is paused, as a file system fills up. Pure: no I/O, no clock of its own. One for each file
// system; its machines are all that store something there.
//
// Below the high mark nobody is. Above it all machines together may store so much that the mark `full` is not reached
// within kHorizon: what is left is shared out by max-min fairness, so a machine that stores less than its share is not
// touched, and the fastest growers are cut first, to one common rate. That rate sinks as the space does. Above `full`
// whoever wants more than the share of what is left to half-way to the brim is paused instead of slowed: again the
// fastest first. A machine that stores less than kSmallRate is never held; what it may not take any more is refused by
// the store (free_space_min).
//
// Hysteresis: each mark is left only kHysteresis below it. What a machine that is held would store is not known: it is
// taken to want what it stored before, until it has used less than half of its rate for a while.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <unordered_map>

#include "base/ids.h"

namespace tidemark::server {

class Watermark {
 public:
  using Time = std::chrono::steady_clock::time_point;
  enum class Level : std::uint8_t { low, high, full };
  enum class Hold : std::uint8_t { none, slowed, paused };
  struct Machine {
    MachineId id;
    std::uint64_t stored = 0;  // bytes that came from it and were stored, ever growing
  };
  struct Decision {
    Hold hold = Hold::none;
    std::uint64_t rate = 0;    // bytes per second, when slowed
    std::uint64_t growth = 0;  // bytes per second, of late; of a machine that is held: before it was
  };
  struct Marks {
    double high = 0.85, full = 0.95;  // shares of the file system; high <= full <= 1; 1: never
  };

  static constexpr std::chrono::seconds kHorizon{1800};
  static constexpr std::chrono::seconds kFast{10};    // how soon a change of growth is noticed
  static constexpr std::chrono::seconds kSlow{120};   // how long it is remembered
  static constexpr std::chrono::seconds kForget{60};  // a machine that nobody tells of any more
  static constexpr double kHysteresis = 0.02;
  static constexpr double kSmallRate = 16 * 1024;  // bytes per second

  explicit Watermark(Marks marks) : marks_(marks) {}

  // What these machines have stored by now. In any order, as often as one likes.
  void note(Time now, std::span<const Machine> machines);
  // Decides anew. `total` and `available`: bytes of the file system.
  void decide(Time now, std::uint64_t total, std::uint64_t available);

  Decision decision(const MachineId& machine) const;
  Level level() const { return level_; }
  double used() const { return used_; }  // share
  std::size_t slowed() const { return slowed_; }
  std::size_t paused() const { return paused_; }

 private:
  struct Known {
    std::uint64_t stored = 0;
    Time noted{};
    double fast = 0, slow = 0;  // bytes per second
    double wants = 0;           // while it is held
    Decision decision;
    double growth() const { return fast > slow ? fast : slow; }
  };
  double share(std::uint64_t total) const;
  static double wanted(const Known& known);

  const Marks marks_;
  std::unordered_map<MachineId, Known> known_;
  Level level_ = Level::low;
  double used_ = 0;
  std::size_t slowed_ = 0, paused_ = 0;
};

const char* to_string(Watermark::Level level);
const char* to_string(Watermark::Hold hold);

}  // namespace tidemark::server
