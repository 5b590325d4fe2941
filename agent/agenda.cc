#include "agent/agenda.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "agent/consistency.h"

namespace tidemark::agent {
namespace {

using std::chrono::milliseconds;
constexpr int kRequestTries = 3;  // epochs, until one is what was asked for
constexpr int kFreezeShare = 20;  // file systems stand still for at most a twentieth of the time
constexpr auto kPointPatience = std::chrono::seconds(30);  // without a point, before a freeze is thought of
constexpr milliseconds kTrackedInterval{1'000};
constexpr milliseconds kComparedInterval{10'000};

Agenda::Time::duration from_seconds(double seconds) {
  return std::chrono::duration_cast<Agenda::Time::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

Agenda::Agenda(const Config& config, const StateDir& dir, bool once, const Clock& clock)
    : config_(config), once_(once), clock_(clock), requests_(dir, clock) {}

void Agenda::begin(WallMicros application_point_us) {
  last_point_ = clock_.monotonic();
  if (once_) return;
  requests_.drop_stale();
  const auto every = config_.application_points_every;
  if (every <= milliseconds(0)) return;
  const auto since = std::chrono::microseconds(clock_.wall_us() - application_point_us);
  application_due_ = clock_.monotonic();
  if (since.count() >= 0 && since < every) application_due_ += every - since;
}

milliseconds Agenda::interval(bool exact) const {
  if (config_.interval > milliseconds(0)) return config_.interval;
  return exact ? kTrackedInterval : kComparedInterval;
}

// Would a freeze not last too long?
bool Agenda::may_freeze(bool exact, std::optional<milliseconds> estimate) const {
  return config_.freeze && (exact || (estimate && *estimate <= config_.freeze_limit));
}

Wish Agenda::take(bool exact, std::optional<milliseconds> estimate) {
  const auto now = clock_.monotonic();
  const bool may = may_freeze(exact, estimate);
  Wish wish;
  // With the file systems standing still where it would be no point otherwise, and not all the time.
  wish.freeze = may && want_freeze_ && (once_ || (now >= freeze_allowed_ && now - last_point_ >= kPointPatience));
  const PointRequest* request = once_ ? nullptr : requests_.current();
  if (request != nullptr) {
    wish.request = request->id;
    wish.own_epoch = true;
    wish.application = request->application;
    wish.freeze = may && (want_freeze_ || request->application || request->final);
    if (request->id != std::exchange(tried_request_, request->id)) request_tries_ = 0;
  } else if (now >= application_due_) {
    wish.application = true;
    wish.freeze = wish.freeze || (may && now >= freeze_allowed_);
  }
  begun_ = now;
  return wish;
}

void Agenda::note(const EpochReport& report, bool exact) {
  const auto now = clock_.monotonic();
  if (report.hooks_ran && config_.application_points_every > milliseconds(0))
    application_due_ = now + config_.application_points_every;
  want_freeze_ = report.freeze_would_help;
  if (report.point) last_point_ = now;
  if (report.frozen_seconds > 0) freeze_allowed_ = now + from_seconds(report.frozen_seconds * kFreezeShare);
  // A comparison of everything is not started more often than it takes; what was marked is read at once.
  const auto took = from_seconds(report.seconds);
  const auto rest = std::max(Time::duration(0), interval(exact) - took);
  next_epoch_ = now + (exact ? rest : std::max(took, rest));
}

std::optional<std::chrono::seconds> Agenda::without_a_point(const EpochReport& report, bool exact) const {
  const auto without = clock_.monotonic() - last_point_;
  const bool all_was_tried = report.wish.freeze || (exact && !config_.freeze);
  if (once_ || report.point || !all_was_tried || without < kPointPatience) return {};
  return std::chrono::duration_cast<std::chrono::seconds>(without);
}

std::optional<PointAnswer> Agenda::answer_to(const EpochReport& report, const std::vector<std::string>& post_failures) {
  const PointRequest* request = once_ ? nullptr : requests_.current();
  if (request == nullptr || report.wish.request != request->id) return {};
  const bool as_asked = report.point && (!request->application || report.hooks_ran);
  if (!as_asked && ++request_tries_ < kRequestTries) {
    at_once();
    return {};
  }
  if (!report.point) {
    refuse({Code::unavailable, "point", "no recovery point could be made: " + report.reason,
            report.remedy.empty() ? "try again" : report.remedy});
    return {};
  }
  PointAnswer answer;
  answer.epoch = report.epoch;
  answer.time_us = report.cut_us;
  answer.consistency = to_string(report.consistency);
  answer.hooks_failure = report.hooks_failure;
  if (request->application && !report.hooks_ran) answer.hooks_failure = "their turn did not come, for writes outran it";
  answer.post_hooks_failure = fmt::format("{}", fmt::join(post_failures, "; "));
  answer.seconds = report.seconds;
  answer.frozen_seconds = report.frozen_seconds;
  answer.held_seconds = report.held_seconds;
  // Who asked for the applications' last word, and did not get it, may decide anew.
  answer.final = request->final && (!request->application || report.consistency == Consistency::application);
  return answer;
}

}  // namespace tidemark::agent
