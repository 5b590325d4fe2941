// What the next epoch is for, and when it is due: the interval between epochs, points that somebody asks for or that
// are due with their applications, and whether file systems may stand still for it. Belongs to one thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "agent/config.h"
#include "agent/engine.h"
#include "agent/point_request.h"
#include "agent/state_dir.h"
#include "base/clock.h"

namespace tidemark::agent {

class Agenda {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `once`: nobody asks, nothing is due by the clock, and a freeze need not wait for its turn.
  Agenda(const Config& config, const StateDir& dir, bool once, const Clock& clock);
  // The agent is at work from now on. `application_point_us`: when the last application point was cut; 0: never.
  void begin(WallMicros application_point_us);

  Time next_epoch() const { return next_epoch_; }
  // Also of a point that is due with its applications: it comes before its turn, but only once.
  Time next() const { return application_due_ > begun_ ? std::min(next_epoch_, application_due_) : next_epoch_; }
  bool asked() { return !once_ && requests_.current() != nullptr; }
  void at_once() { next_epoch_ = clock_.monotonic(); }
  void put_off(std::chrono::milliseconds by) { next_epoch_ = clock_.monotonic() + by; }
  std::chrono::milliseconds interval(bool exact) const;

  // The next epoch begins now: what was asked for comes first, then what is due. `estimate`: of a comparison of
  // everything.
  Wish take(bool exact, std::optional<std::chrono::milliseconds> estimate);
  // It ended. `exact`: the tracking is.
  void note(const EpochReport& report, bool exact);
  // How long there was no point, once that is long and all was tried that may be: somebody has to see to it.
  std::optional<std::chrono::seconds> without_a_point(const EpochReport& report, bool exact) const;

  // What whoever asked for a point is to be told of this epoch. Nothing: nobody asked for it, it is tried once more, or
  // was refused just now.
  std::optional<PointAnswer> answer_to(const EpochReport& report, const std::vector<std::string>& post_failures);
  void answer(PointAnswer answer) { requests_.answer(std::move(answer)); }
  void refuse(const Error& error) {
    if (!once_) requests_.refuse(error);
  }

 private:
  bool may_freeze(bool exact, std::optional<std::chrono::milliseconds> estimate) const;

  const Config& config_;
  const bool once_;
  const Clock& clock_;
  PointRequests requests_;
  std::string tried_request_;
  int request_tries_ = 0;
  bool want_freeze_ = false;
  Time next_epoch_{};
  Time begun_{};  // the last epoch
  Time last_point_{};
  Time freeze_allowed_{};
  Time application_due_ = Time::max();
};

}  // namespace tidemark::agent
