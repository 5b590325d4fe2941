#include "agent/status_board.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>

#include "agent/text_file.h"
#include "wire/messages.h"

namespace tidemark::agent {
namespace {
constexpr auto kPublishInterval = std::chrono::milliseconds(250);
constexpr auto kPaceInterval = std::chrono::seconds(1);
constexpr auto kThrottleGrace = std::chrono::seconds(2);  // between one word of the server and the next
constexpr WallMicros kLateUs = 30'000'000;                // older than this, a point's age wants a cause
constexpr double kRateMemory = 0.3;                       // weight of the newest second in the rate
}  // namespace

StatusBoard::StatusBoard(StatusReport first, std::filesystem::path path, bool bar, const Clock& clock,
                         const MemoryKeeper* keeper, Pace* pace)
    : report_(std::move(first)), path_(std::move(path)), bar_(bar), clock_(clock), keeper_(keeper), pace_(pace) {
  report_.pid = ::getpid();
  report_.state_since_us = clock_.wall_us();
  ticker_ = std::jthread([this](std::stop_token stop) { tick(std::move(stop)); });
}

StatusBoard::~StatusBoard() {
  ticker_.request_stop();
  ticker_.join();
  end_progress();
  publish();
}

void StatusBoard::set_state(State state, std::string cause, std::string remedy) {
  const std::lock_guard lock(mutex_);
  if (report_.state != state) {
    report_.state = state;
    report_.state_since_us = clock_.wall_us();
  }
  report_.cause = std::move(cause);
  report_.remedy = std::move(remedy);
}

void StatusBoard::set_connected(bool connected, const std::string& server) {
  const std::lock_guard lock(mutex_);
  report_.connected = connected;
  report_.server = server;
  throttle_.clear();
}

void StatusBoard::set_throttle(std::chrono::milliseconds pause, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  const bool before = !throttle_.empty();
  throttle_ = pause.count() == 0 ? std::string() : reason.empty() ? std::string("it gives no reason") : reason;
  throttled_until_ = clock_.monotonic() + pause + kThrottleGrace;
  if (!before && !throttle_.empty()) spdlog::info("the server asks to wait why=\"{}\"", throttle_);
  if (before && throttle_.empty()) spdlog::info("the server asks to wait no more");
}

StatusReport StatusBoard::shown() const {
  StatusReport report = report_;
  if (report.cause.empty() && !throttle_.empty() && clock_.monotonic() < throttled_until_) {
    report.cause = "the server asks to wait: " + throttle_;
    report.remedy = "it goes on by itself; if it lasts, the server's operator must look at its staging disk";
  }
  if (keeper_ != nullptr) report.take(keeper_->get());
  if (limit_) report.limited_by = to_string(*limit_);
  const WallMicros held_us = std::max(report.newest_point_us, report.unchanged_as_of_us);
  const bool late = held_us != 0 && clock_.wall_us() - held_us > kLateUs && report.state != State::rescan;
  if (report.cause.empty() && limit_ && late) {
    report.cause = cause_of(*limit_);
    report.remedy = remedy_for(*limit_);
  }
  if (report.cause.empty() && !report.hooks_failure.empty()) {
    report.cause = "the last application point: " + report.hooks_failure;
    report.remedy = "mend the hook and try it: tidemark-agent point --application";
  }
  return report;
}

void StatusBoard::set_disks(std::vector<DiskStatus> disks) {
  const std::lock_guard lock(mutex_);
  report_.disks = std::move(disks);
}

void StatusBoard::set_tracking(std::string tracking, WallMicros since_us, std::string reason) {
  const std::lock_guard lock(mutex_);
  report_.tracking = std::move(tracking);
  report_.tracking_since_us = since_us;
  report_.tracking_reason = std::move(reason);
}

void StatusBoard::set_application_point(EpochNumber epoch, WallMicros time_us) {
  const std::lock_guard lock(mutex_);
  report_.application_point = epoch;
  report_.application_point_us = time_us;
  report_.hooks_failure.clear();
  report_.hooks_failure_us = 0;
}

void StatusBoard::set_hooks_failure(const std::string& failure) {
  const std::lock_guard lock(mutex_);
  report_.hooks_failure = failure;
  report_.hooks_failure_us = clock_.wall_us();
}

void StatusBoard::set_rate_schedule(RateSchedule schedule) {
  const std::lock_guard lock(mutex_);
  rates_ = std::move(schedule);
}

void StatusBoard::set_certificate_expiry(WallMicros expires_us) {
  const std::lock_guard lock(mutex_);
  report_.certificate_expires_us = expires_us;
}

void StatusBoard::start_progress(std::uint64_t done, std::uint64_t total) {
  const std::lock_guard lock(mutex_);
  in_progress_ = true;
  report_.done_bytes = rate_from_bytes_ = done;
  report_.total_bytes = total;
  report_.rate_bytes_per_second = 0;
  rate_from_ = clock_.monotonic();
}

void StatusBoard::set_progress(std::uint64_t done) {
  const std::lock_guard lock(mutex_);
  report_.done_bytes = done;
  const auto now = clock_.monotonic();
  const double seconds = std::chrono::duration<double>(now - rate_from_).count();
  if (seconds < 1 && report_.rate_bytes_per_second != 0) return;
  if (seconds < 0.2) return;
  const double rate = static_cast<double>(done - rate_from_bytes_) / seconds;
  const auto before = static_cast<double>(report_.rate_bytes_per_second);
  report_.rate_bytes_per_second =
      static_cast<std::uint64_t>(before == 0 ? rate : kRateMemory * rate + (1 - kRateMemory) * before);
  rate_from_ = now;
  rate_from_bytes_ = done;
}

void StatusBoard::end_progress() {
  const std::lock_guard lock(mutex_);
  if (in_progress_ && bar_) std::fputs("\r\033[K", stderr);
  in_progress_ = false;
  report_.rate_bytes_per_second = 0;
}

StatusReport StatusBoard::report() const {
  StatusReport report;
  {
    const std::lock_guard lock(mutex_);
    report = shown();
    report.rate_cap = rates_.at(clock_.wall_us());
  }
  if (report.state == State::initial_sync)
    report.backlog_bytes = report.total_bytes - std::min(report.done_bytes, report.total_bytes);
  report.updated_us = clock_.wall_us();
  return report;
}

pb::Progress StatusBoard::message() const {
  const std::lock_guard lock(mutex_);
  const StatusReport report = shown();
  pb::Progress message;
  message.set_state(std::string(to_string(report.state)));
  message.set_done_bytes(report.done_bytes);
  message.set_total_bytes(report.total_bytes);
  message.set_rate_bytes_per_s(report.rate_bytes_per_second);
  message.set_backlog_bytes(report.backlog_bytes);
  message.set_cause(wire::clean_text(report.cause));
  message.set_remedy(wire::clean_text(report.remedy));
  message.set_proven_us(report.proven_us);
  message.set_differences(report.differences);
  message.set_difference(wire::clean_text(report.difference));
  message.set_difference_us(report.difference_us);
  return message;
}

void StatusBoard::publish() {
  const StatusReport now = report();
  if (bar_) {
    const std::lock_guard lock(mutex_);
    if (in_progress_)
      std::fputs(("\r\033[K" + std::string(to_string(now.state)) + " " + progress_line(now, 30)).c_str(), stderr);
  }
  if (path_.empty()) return;
  // Not synced: after a power cut nobody needs it.
  if (auto written = write_file_atomically(path_, report_json(now, now.updated_us, std::nullopt), 0600, false);
      !written) {
    spdlog::warn("status file not written error=\"{}\"", written.error().message());
    path_.clear();
  }
}

void StatusBoard::tick(std::stop_token stop) {
  std::mutex mutex;
  std::condition_variable_any asleep;
  std::unique_lock lock(mutex);
  auto pace_due = std::chrono::steady_clock::now();
  while (!asleep.wait_for(lock, stop, kPublishInterval, [&] { return stop.stop_requested(); })) {
    if (const auto now = std::chrono::steady_clock::now(); pace_ != nullptr && now >= pace_due) {
      pace_due = now + kPaceInterval;
      const std::lock_guard board_lock(mutex_);
      limit_ = pace_->take(now);
    }
    publish();
  }
}

}  // namespace tidemark::agent
