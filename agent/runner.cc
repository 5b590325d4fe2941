#include "agent/runner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "agent/backoff.h"
#include "agent/freeze.h"
#include "agent/machine_facts.h"
#include "agent/text_file.h"
#include "net/certificates.h"

namespace tidemark::agent {
namespace {

using std::chrono::milliseconds;
using SteadyTime = std::chrono::steady_clock::time_point;
constexpr std::size_t kRedirectsMax = 5;
constexpr int kPointTries = 3;    // once: epochs after the first, until one is a point
constexpr int kChangedTries = 3;  // in a row, at once, when a disk changed its size
constexpr int kFreezeShare = 20;  // file systems stand still for at most a twentieth of the time
constexpr auto kPointPatience = std::chrono::seconds(30);  // without a point, before a freeze is thought of
constexpr auto kRenewPatience = std::chrono::seconds(5);
constexpr auto kSourceRetry = std::chrono::seconds(10);

class Runner {
 public:
  Runner(const Config& config, const StateDir& dir, const RunOptions& options, const Clock& clock, std::stop_token stop)
      : config_(config), dir_(dir), options_(options), clock_(clock), stop_(std::move(stop)), backoff_(seed()) {}

  Result<RunOutcome> run();

 private:
  static std::uint64_t seed() {
    std::uint64_t value = 0;
    secure_random(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  Status prepare();
  Status serve(Link& link);  // until the link ends (no error), the work is done, or nothing helps
  Status after_failure(Link& link, const Error& error);
  void after_epoch(EpochReport report);
  bool freeze_now() const;
  Status note_divergence(Link& link);
  void renew_if_due(Link& link);
  Result<LinkOptions> link_options(const std::string& address);
  bool wait_until(SteadyTime when, const Link* link);  // false: stopped, or the link ended

  const Config& config_;
  const StateDir& dir_;
  const RunOptions& options_;
  const Clock& clock_;
  std::stop_token stop_;
  Backoff backoff_;

  MachineId machine_;
  std::string fingerprint_, boot_id_;
  std::unique_ptr<MemoryKeeper> keeper_;
  std::unique_ptr<StatusBoard> board_;
  std::unique_ptr<SourceSet> sources_;
  DigestComparison tracker_;
  std::unique_ptr<Engine> engine_;

  std::atomic<bool> renewing_{false};  // asked, not answered

  RunOutcome outcome_;
  bool done_ = false;
  int tries_ = 0;  // once: after a fuzzy epoch
  int changed_in_a_row_ = 0;
  bool want_freeze_ = false;
  SteadyTime next_epoch_{};
  SteadyTime last_point_{};
  SteadyTime freeze_allowed_{};
};

Status Runner::prepare() {
  if (config_.server.empty()) {
    return fail(Code::invalid_argument, dir_.config().string(), "no server is named",
                "enrol this machine: tidemark-agent enroll --token T");
  }
  machine_ = TIDEMARK_TRY(dir_.machine());
  const OsPaths os;
  fingerprint_ = TIDEMARK_TRY(machine_fingerprint(os, "/etc/machine-id", config_.fingerprint_override));
  boot_id_ = TIDEMARK_TRY(boot_id(os));
  for (const std::string& place : TIDEMARK_TRY(thaw_leftovers(dir_.path()))) {
    spdlog::warn("thawed what a killed agent had left frozen mountpoint={}", place);
  }
  keeper_ = std::make_unique<MemoryKeeper>(dir_.memory(), TIDEMARK_TRY(load_memory(dir_.memory(), machine_)), boot_id_);
  StatusReport first;
  first.machine = machine_;
  first.name = config_.name;
  first.server = config_.server;
  first.state = State::initiating;
  const auto names = disk_names(config_.disks);
  for (std::size_t i = 0; i < config_.disks.size(); ++i) first.disks.push_back({config_.disks[i], names[i], -1, 0});
  board_ = std::make_unique<StatusBoard>(std::move(first), dir_.status(), options_.bar, clock_, keeper_.get());
  sources_ = std::make_unique<SourceSet>(config_.disks);
  Engine::Options engine;
  engine.machine = machine_;
  engine.zstd_level = config_.zstd_level;
  engine.freeze_limit = config_.freeze_limit;
  engine.state_dir = dir_.path();
  engine.boot_id = boot_id_;
  engine_ = std::make_unique<Engine>(engine, *sources_, *keeper_, tracker_, *board_, clock_, stop_);
  last_point_ = clock_.monotonic();
  return {};
}

Result<LinkOptions> Runner::link_options(const std::string& address) {
  LinkOptions link;
  link.address = address;
  link.machine = machine_;
  link.credentials = TIDEMARK_TRY(dir_.credentials());
  link.hello.set_agent_version(TIDEMARK_VERSION);
  link.hello.set_machine_name(config_.name);
  link.hello.set_fingerprint(fingerprint_);
  link.hello.set_boot_id(boot_id_);
  link.rate_limit_mib_s = config_.rate_limit_mib_s;
  link.on_renewed = [this](const std::string& pem) {
    renewing_ = false;
    const auto info = net::describe_certificate(pem);
    if (!info || info->machine != machine_) {
      spdlog::warn("renewed certificate refused why=\"{}\"", info ? "it names another machine" : info.error().what);
      return;
    }
    if (auto saved = write_file_atomically(dir_.certificate(), pem, 0600); !saved) {
      spdlog::error("renewed certificate not saved error=\"{}\"", saved.error().message());
      return;
    }
    board_->set_certificate_expiry(info->not_after_us);
    spdlog::info("certificate renewed expires={}", format_rfc3339(info->not_after_us));
  };
  link.on_throttle = [this](milliseconds pause, const std::string& reason) { board_->set_throttle(pause, reason); };
  return link;
}

bool Runner::wait_until(SteadyTime when, const Link* link) {
  std::mutex mutex;
  std::condition_variable_any asleep;
  std::unique_lock lock(mutex);
  while (!stop_.stop_requested() && (link == nullptr || link->alive())) {
    const auto now = clock_.monotonic();
    if (now >= when) return true;
    asleep.wait_for(lock, stop_, std::min<std::chrono::steady_clock::duration>(when - now, milliseconds(100)),
                    [] { return false; });
  }
  return false;
}

void Runner::renew_if_due(Link& link) {
  const auto pem = read_text_file(dir_.certificate());
  const auto info = pem ? net::describe_certificate(*pem) : Result<net::CertificateInfo>(std::unexpected(pem.error()));
  if (!info) {
    spdlog::warn("certificate not readable error=\"{}\"", info.error().message());
    return;
  }
  board_->set_certificate_expiry(info->not_after_us);
  const std::int64_t lifetime = info->not_after_us - info->not_before_us;
  if (!link.welcome().certificate_expires_soon() && info->not_after_us - clock_.wall_us() > lifetime / 3) return;
  const auto key = read_text_file(dir_.key());
  const auto request =
      key ? net::make_request_for_key(*key, config_.name) : Result<std::string>(std::unexpected(key.error()));
  const Status asked = request ? link.renew(*request) : Status(std::unexpected(request.error()));
  renewing_ = asked.has_value();
  if (!asked) spdlog::warn("certificate not renewed error=\"{}\"", asked.error().message());
}

Status Runner::note_divergence(Link& link) {
  const auto diverged = link.diverged();
  if (!diverged) return {};
  spdlog::error(
      "ALARM: the server's history diverged from what it acknowledged; everything is compared anew why=\"{}\"",
      diverged->message());
  return keeper_->change([&](Memory& memory) {
    memory.alarm = diverged->message();
    memory.alarm_us = clock_.wall_us();
    memory.rescan = "the server's history diverged";
  });
}

// May the next epoch be read with the file systems standing still?
bool Runner::freeze_now() const {
  if (!config_.freeze || !want_freeze_) return false;
  const auto estimate = engine_->compare_estimate();
  if (!estimate || *estimate > config_.freeze_limit) return false;
  const auto now = clock_.monotonic();
  return options_.once || (now >= freeze_allowed_ && now - last_point_ >= kPointPatience);
}

void Runner::after_epoch(EpochReport report) {
  if (const auto estimate = engine_->compare_estimate(); report.freeze_would_help && config_.freeze && estimate) {
    report.remedy =
        *estimate > config_.freeze_limit
            ? fmt::format("a freeze for reading everything would take about {} s, longer than freeze_limit_s",
                          estimate->count() / 1000)
            : "it is tried again with a freeze";
  }
  const auto now = clock_.monotonic();
  backoff_.reset();
  changed_in_a_row_ = 0;
  want_freeze_ = report.freeze_would_help;
  if (report.point) last_point_ = now;
  if (report.frozen_seconds > 0) {
    freeze_allowed_ = now + std::chrono::duration_cast<SteadyTime::duration>(
                                std::chrono::duration<double>(report.frozen_seconds * kFreezeShare));
  }
  // A comparison of everything is not started more often than it takes.
  const auto took = std::chrono::duration_cast<milliseconds>(std::chrono::duration<double>(report.seconds));
  next_epoch_ = now + std::max(took, config_.interval > took ? config_.interval - took : milliseconds(0));
  spdlog::info(
      "epoch={} kind={} consistency={} point={} unchanged={} changed_bytes={} sent_bytes={} seconds={:.2f} "
      "frozen_seconds={:.2f}{}",
      report.epoch.value(), pb::EpochKind_Name(report.kind), to_string(report.consistency), report.point,
      report.unchanged, report.changed_bytes, report.sent_bytes, report.seconds, report.frozen_seconds,
      report.reason.empty() ? "" : " reason=\"" + report.reason + "\"");
  if (report.point) {
    board_->set_state(State::continuous);
  } else {
    const bool first = keeper_->get().newest_point.value() == 0;
    board_->set_state(first ? State::creating_first_point : State::backlog, report.reason, report.remedy);
  }
  if (!options_.once) return;
  outcome_.epochs.push_back(report);
  if (report.point || !options_.want_point || tries_ == kPointTries) {
    done_ = true;
  } else {
    ++tries_;
    next_epoch_ = now;
  }
}

Status Runner::after_failure(Link& link, const Error& error) {
  switch (engine_->fault()) {
    case Engine::Fault::stopped: return {};
    case Engine::Fault::link:
      // A wish that the session refused, or a lost connection: either way a new session begins from what is known.
      if (link.alive()) {
        spdlog::warn("session ended error=\"{}\"", error.message());
        link.goodbye(error.what);
      }
      return {};
    case Engine::Fault::changed:
      if (++changed_in_a_row_ <= kChangedTries) {
        spdlog::info("disk changed, the epoch begins anew why=\"{}\"", error.message());
        next_epoch_ = clock_.monotonic();
        return {};
      }
      [[fallthrough]];
    case Engine::Fault::source:
      if (options_.once) {
        link.goodbye("a disk failed");
        return std::unexpected(error);
      }
      spdlog::error("no epoch: a disk failed error=\"{}\"", error.message());
      board_->set_state(State::stalled, (error.object.empty() ? "" : error.object + ": ") + error.what, error.remedy);
      link.progress(board_->message());
      changed_in_a_row_ = 0;
      next_epoch_ = clock_.monotonic() + std::max<milliseconds>(config_.interval, kSourceRetry);
      return {};
  }
  return {};
}

Status Runner::serve(Link& link) {
  TIDEMARK_TRY(note_divergence(link));
  renew_if_due(link);
  auto renew_next = clock_.monotonic() + std::chrono::hours(1);
  while (!done_ && wait_until(next_epoch_, &link)) {
    auto report = engine_->sync(link, freeze_now());
    if (report) {
      after_epoch(*report);
      link.progress(board_->message());
    } else {
      TIDEMARK_TRY(after_failure(link, report.error()));
    }
    if (clock_.monotonic() >= renew_next) {
      renew_if_due(link);
      renew_next = clock_.monotonic() + std::chrono::hours(1);
    }
  }
  const auto patience = clock_.monotonic() + kRenewPatience;
  while (done_ && renewing_ && clock_.monotonic() < patience &&
         wait_until(clock_.monotonic() + milliseconds(20), &link)) {
  }
  if (link.alive()) link.goodbye(stop_.stop_requested() ? "the agent was asked to stop" : "done");
  return {};
}

Result<RunOutcome> Runner::run() {
  TIDEMARK_TRY(prepare());
  if (auto opened = sources_->refresh(); !opened && (options_.once || config_.disks.empty()))
    return std::unexpected(opened.error());
  std::string address = config_.server;
  std::vector<std::string> redirects;  // since the last Welcome that was none
  SteadyTime last_answer = clock_.monotonic();
  bool refused = false;  // for want of space, in session after session
  SteadyTime refused_since = last_answer;
  bool first = true;
  while (!stop_.stop_requested() && !done_) {
    Link link(TIDEMARK_TRY(link_options(address)), *keeper_, clock_, stop_);
    if (!std::exchange(first, false)) ++outcome_.reconnects;
    if (auto connected = link.connect()) {
      redirects.clear();
      last_answer = clock_.monotonic();
      board_->set_connected(true, address);
      spdlog::info("connected server={} durable_epoch={}", address, link.welcome().durable_epoch());
      if (auto served = serve(link); !served) {
        if (link.alive()) link.goodbye("the agent failed");
        board_->set_state(State::stopped, served.error().what, served.error().remedy);
        return std::unexpected(served.error());
      }
      last_answer = clock_.monotonic();
      // Welcomed, and refused what it came for, again and again: no more of an answer than none.
      if (link.alive() || link.end().error.code != Code::no_space) {
        refused = false;
      } else {
        if (!refused) refused_since = last_answer;
        refused = true;
        last_answer = refused_since;
      }
      board_->set_connected(false, address);
      if (done_ || stop_.stop_requested()) break;
    } else if (stop_.stop_requested()) {
      break;
    }
    LinkEnd end = link.end();
    if (!end.redirect.empty()) {
      redirects.push_back(address);
      if (redirects.size() <= kRedirectsMax) {
        spdlog::info("redirected from={} to={}", address, end.redirect);
        address = end.redirect;
        continue;
      }
      end.error = {Code::unavailable, config_.server,
                   fmt::format("the servers send this machine from one to the next without end: {}, {}",
                               fmt::join(redirects, ", "), end.redirect),
                   "their operator must settle which of them holds this machine; it is tried again by itself"};
    }
    redirects.clear();
    address = config_.server;  // a server that was redirected to and fails: ask the first one again
    const Retry retry = retry_after(end);
    board_->set_state(retry.again ? State::disconnected : State::stopped, end.error.message(), end.error.remedy);
    if (!retry.again) return std::unexpected(end.error);
    if (options_.once && clock_.monotonic() - last_answer >= options_.retry_for) return std::unexpected(end.error);
    const auto wait = backoff_.next(retry.at_least);
    spdlog::warn("not connected server={} error=\"{}\" retry_ms={}", address, end.error.message(), wait.count());
    auto when = clock_.monotonic() + wait;
    if (options_.once) when = std::min(when, last_answer + options_.retry_for);
    wait_until(when, nullptr);
  }
  if (stop_.stop_requested() && options_.once && !done_) {
    board_->set_state(State::stopped);
    return fail(Code::cancelled, "sync", "asked to stop before it was done", "run it again: it goes on where it can");
  }
  if (!options_.once || outcome_.epochs.empty() || outcome_.epochs.back().point) board_->set_state(State::stopped);
  return std::move(outcome_);
}

}  // namespace

Retry retry_after(const LinkEnd& end) {
  if (end.retry_after_ms > 0) return {true, milliseconds(end.retry_after_ms)};
  if (end.goodbye || !end.redirect.empty()) return {true, milliseconds(0)};
  if (end.from_server) return {};
  switch (end.error.code) {
    case Code::invalid_argument:
    case Code::permission_denied:
    case Code::unauthenticated:
    case Code::unsupported:
    case Code::quarantined:
    case Code::no_space:  // of our own state directory: what cannot be remembered must not go on
    case Code::corrupt: return {};
    default: return {true, milliseconds(0)};
  }
}

Result<RunOutcome> run_agent(const Config& config, const StateDir& dir, const RunOptions& options, const Clock& clock,
                             std::stop_token stop) {
  return Runner(config, dir, options, clock, std::move(stop)).run();
}

}  // namespace tidemark::agent
