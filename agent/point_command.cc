// `tidemark-agent point`: asks the running agent, and waits.
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "agent/commands.h"
#include "agent/config.h"
#include "agent/point_request.h"
#include "agent/status_board.h"
#include "agent/text_file.h"
#include "base/hex.h"
#include "base/random.h"

namespace tidemark::agent {
namespace {

constexpr auto kAskInterval = std::chrono::milliseconds(50);
constexpr auto kTellPatience = std::chrono::seconds(2);  // before who waits is told what for
constexpr auto kTellAgain = std::chrono::seconds(10);
constexpr auto kEndPatience = std::chrono::seconds(30);  // for the agent's end after a final point

using AskTime = std::chrono::steady_clock::time_point;

std::string random_id() {
  std::array<std::byte, 16> bytes{};
  secure_random(bytes);
  return to_hex(bytes);
}

// What the agent of this process number says of itself; nothing: it has not written it yet.
std::optional<StatusReport> status_of(const StateDir& dir, pid_t agent) {
  const auto text = read_text_file(dir.status());
  if (!text) return std::nullopt;
  auto report = parse_report(*text, dir.status().string());
  if (!report || report->pid != agent) return std::nullopt;
  return std::move(*report);
}

std::string doing(const std::optional<StatusReport>& status) {
  if (!status) return "the agent is just starting";
  std::string text = fmt::format("the agent's state is {}", to_string(status->state));
  if (status->total_bytes > status->done_bytes) text += ", " + progress_line(*status, 20);
  if (!status->connected) text += ", not connected";
  if (!status->cause.empty()) text += ": " + status->cause;
  return text;
}

class PointWait {
 public:
  PointWait(const StateDir& dir, const PointCommand& command, std::stop_token stop)
      : dir_(dir), command_(command), stop_(std::move(stop)), begun_(std::chrono::steady_clock::now()) {}

  Result<PointAnswer> wait() {
    if (!StateLock::held(dir_)) {
      return fail(Code::unavailable, dir_.path().string(), "no agent runs here", "start it: tidemark-agent run");
    }
    PointAsker asker = TIDEMARK_TRY(PointAsker::start(dir_));
    auto answer = ask(asker);
    asker.take_back();
    return answer;
  }

 private:
  std::chrono::milliseconds left() const {
    const auto gone = std::chrono::steady_clock::now() - begun_;
    const auto all = std::chrono::duration<double>(command_.timeout_s);
    return std::chrono::duration_cast<std::chrono::milliseconds>(all - gone);
  }

  Result<PointAnswer> ask(PointAsker& asker) {
    PointRequest request;
    request.id = random_id();
    request.application = command_.application;
    request.final = command_.final;
    pid_t asked = 0;
    while (true) {
      const bool running = StateLock::held(dir_) && (asked == 0 || StateLock::holder(dir_) == asked);
      if (auto answer = TIDEMARK_TRY(asker.answer(request.id))) return give(std::move(*answer), asked);
      const pid_t agent = StateLock::holder(dir_);
      const auto status = status_of(dir_, agent);
      if (!running) {
        return fail(Code::unavailable, "agent",
                    "it ended before the point was durable" +
                        (status && !status->cause.empty() ? ": " + status->cause : std::string()),
                    "see its log, and start it again");
      }
      if (status && status->command != "run") {
        return fail(Code::busy, dir_.path().string(), "a `sync` is at work here, which makes its own point",
                    "wait for it, or start `run`");
      }
      if (asked == 0 && status) {
        asked = request.agent = agent;
        request.timeout = left();
        TIDEMARK_TRY(asker.ask(request));
      }
      if (stop_.stop_requested()) return fail(Code::cancelled, "point", "asked to stop", "the request is taken back");
      if (left() <= std::chrono::milliseconds(0)) {
        asker.take_back();
        if (auto answer = TIDEMARK_TRY(asker.answer(request.id))) return give(std::move(*answer), asked);
        return fail(Code::timed_out, "point", fmt::format("none within {:g} s: {}", command_.timeout_s, doing(status)),
                    "ask again with a longer --timeout");
      }
      tell(status);
      std::this_thread::sleep_for(kAskInterval);
    }
  }

  Result<PointAnswer> give(PointAnswer answer, pid_t agent) {
    if (answer.error) return std::unexpected(std::move(*answer.error));
    if (!answer.final) return answer;
    const AskTime until = std::chrono::steady_clock::now() + kEndPatience;
    while (StateLock::held(dir_) && StateLock::holder(dir_) == agent && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(kAskInterval);
    return answer;
  }

  void tell(const std::optional<StatusReport>& status) {
    const auto now = std::chrono::steady_clock::now();
    const State state = status ? status->state : State::initiating;
    if (now < tell_at_ && (now < begun_ + kTellPatience || state == told_)) return;
    if (tell_at_ != AskTime{}) fmt::print(stderr, "waiting: {}\n", doing(status));
    tell_at_ = now + (tell_at_ == AskTime{} ? kTellPatience : kTellAgain);
    told_ = state;
  }

  const StateDir& dir_;
  const PointCommand& command_;
  std::stop_token stop_;
  AskTime begun_;
  AskTime tell_at_{};
  State told_ = State::stopped;
};

}  // namespace

Result<bool> do_point(const StateDir& dir, const PointCommand& command, bool json, std::stop_token stop) {
  if (!dir.enrolled()) {
    return fail(Code::not_found, dir.path().string(), "this machine is not enrolled",
                "enrol it: tidemark-agent enroll --token T");
  }
  const PointAnswer answer = TIDEMARK_TRY(PointWait(dir, command, std::move(stop)).wait());
  const bool as_asked = !command.application || answer.consistency == to_string(Consistency::application);
  if (json) {
    const nlohmann::ordered_json object = {
        {"epoch", answer.epoch.value()},         {"time", format_rfc3339(answer.time_us)},
        {"consistency", answer.consistency},     {"final", answer.final},
        {"hooks_failure", answer.hooks_failure}, {"post_hooks_failure", answer.post_hooks_failure},
        {"duration_seconds", answer.seconds},    {"frozen_seconds", answer.frozen_seconds},
        {"held_seconds", answer.held_seconds}};
    fmt::print("{}\n", object.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    fmt::print("epoch {} of {}: {} consistent point, durable\n", answer.epoch.value(), format_rfc3339(answer.time_us),
               answer.consistency);
    if (answer.final) fmt::print("it is the final one: the agent protects no more\n");
  }
  if (command.final && !answer.final)
    fmt::print(stderr,
               "tidemark-agent: it is not the final one, for it is not what was asked for: the agent goes on\n");
  if (!as_asked) {
    fmt::print(stderr, "tidemark-agent: it is no application point: {}\n", answer.hooks_failure);
  }
  if (!answer.post_hooks_failure.empty()) {
    fmt::print(stderr, "tidemark-agent: an application may still stand still: {}\n", answer.post_hooks_failure);
  }
  return as_asked;
}

}  // namespace tidemark::agent
