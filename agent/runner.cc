#include "agent/runner.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <condition_variable>
#include <mutex>
#include <vector>

#include "agent/agenda.h"
#include "agent/audit.h"
#include "agent/backoff.h"
#include "agent/digest_feed.h"
#include "agent/freeze.h"
#include "agent/machine_facts.h"
#include "agent/renewal.h"
#include "agent/text_file.h"

namespace tidemark::agent {
namespace {

using std::chrono::milliseconds;
using SteadyTime = std::chrono::steady_clock::time_point;
constexpr std::size_t kRedirectsMax = 5;
constexpr int kPointTries = 3;    // once: epochs after the first, until one is a point
constexpr int kChangedTries = 3;  // in a row, at once, when a disk changed its size
constexpr auto kRenewPatience = std::chrono::seconds(5);
constexpr auto kSourceRetry = std::chrono::seconds(10);
constexpr auto kDisksInterval = std::chrono::seconds(10);  // how often it is looked for new ones

class Runner {
 public:
  Runner(const Config& config, const StateDir& dir, const RunOptions& options, const Clock& clock, std::stop_token stop)
      : config_(config),
        dir_(dir),
        options_(options),
        clock_(clock),
        stop_(std::move(stop)),
        backoff_(seed()),
        rates_(config.rate_limit_mib_s, config.rate_schedule),
        agenda_(config, dir, options.once, clock) {}

  Result<RunOutcome> run();
  // What ends it ends it also for who waits for a point.
  void refuse_request(const Error& error) { agenda_.refuse(error); }

 private:
  static std::uint64_t seed() {
    std::uint64_t value = 0;
    secure_random(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

  Status prepare();
  std::string release_held();
  HookSettings hooks() const;
  Status add_new_disks();
  Result<ChosenTracker> choose_tracker();
  Status make_engine();
  void show_tracking();
  Status serve(Link& link);  // until the link ends (no error), the work is done, or nothing helps
  Status after_failure(Link& link, const Error& error);
  void after_epoch(EpochReport report);
  void audit(Link& link, const EpochReport& report);
  void after_hooks(const EpochReport* report);
  void answer_request(Link& link, const EpochReport& report);
  Status note_want_of_points(const EpochReport& report);
  Status note_divergence(Link& link);
  Result<LinkOptions> link_options(const std::string& address);
  // False: stopped, or the link ended. `heed`: a request for a point ends the waiting as well.
  bool wait_until(SteadyTime when, const Link* link, bool heed = false);

  const Config& config_;
  const StateDir& dir_;
  const RunOptions& options_;
  const Clock& clock_;
  std::stop_token stop_;
  Backoff backoff_;
  RateSchedule rates_;

  MachineId machine_;
  std::string fingerprint_, boot_id_;
  Pace pace_;
  std::unique_ptr<MemoryKeeper> keeper_;
  std::unique_ptr<StatusBoard> board_;
  std::vector<std::string> paths_;  // of what is protected
  std::unique_ptr<SourceSet> sources_;
  std::unique_ptr<Tracker> tracker_;
  std::uint64_t tracked_generation_ = 0;   // of the disks that it was made for
  std::string untracked_why_;              // why it is not the kernel
  std::optional<SteadyTime> track_again_;  // when it is asked again
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Audit> audit_;  // with tracking

  std::unique_ptr<Renewal> renewal_;

  RunOutcome outcome_;
  bool done_ = false;
  std::optional<EpochNumber> final_point_;
  int tries_ = 0;  // once: after a fuzzy epoch
  int changed_in_a_row_ = 0;
  SteadyTime look_for_disks_{};
  Agenda agenda_;
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
  const std::string still_held = release_held();
  keeper_ = std::make_unique<MemoryKeeper>(dir_.memory(), TIDEMARK_TRY(load_memory(dir_.memory(), machine_)), boot_id_);
  StatusReport first;
  first.machine = machine_;
  first.name = config_.name;
  first.command = options_.once ? "sync" : "run";
  first.server = config_.server;
  first.state = State::initiating;
  if (const auto text = read_text_file(dir_.status())) {
    if (const auto before = parse_report(*text, dir_.status().string())) {
      first.application_point = before->application_point;
      first.application_point_us = before->application_point_us;
      first.hooks_failure = before->hooks_failure;
      first.hooks_failure_us = before->hooks_failure_us;
    }
  }
  if (!still_held.empty()) {
    first.hooks_failure = "its application may still stand still: " + still_held;
    first.hooks_failure_us = clock_.wall_us();
  }
  const WallMicros application_point_us = first.application_point_us;
  paths_ = config_.disks;
  const auto names = disk_names(paths_);
  for (std::size_t i = 0; i < paths_.size(); ++i) first.disks.push_back({paths_[i], names[i], -1, 0});
  board_ = std::make_unique<StatusBoard>(std::move(first), dir_.status(), options_.bar, clock_, keeper_.get(), &pace_);
  board_->set_rate_schedule(rates_);
  renewal_ = std::make_unique<Renewal>(dir_, machine_, config_.name, *board_, clock_);
  sources_ = std::make_unique<SourceSet>(paths_);
  agenda_.begin(application_point_us);
  return {};
}

HookSettings Runner::hooks() const {
  return {config_.hooks, dir_.path(), config_.hook_limit, config_.hold_limit, machine_.to_string(), config_.name};
}

// Applications that an agent which was killed left standing still. What went wrong.
std::string Runner::release_held() {
  const auto released = release_leftovers(hooks());
  if (released) return fmt::format("{}", fmt::join(released->value_or(std::vector<std::string>{}), "; "));
  spdlog::error("ALARM: the post-cut hooks of an agent that was killed were not run error=\"{}\"",
                released.error().message());
  return "not run after an agent was killed: " + released.error().message();
}

// Disks that came are protected from now on; one that goes stays on the list, or its loss would pass unnoticed.
Status Runner::add_new_disks() {
  if (!config_.all_disks || options_.once || clock_.monotonic() < look_for_disks_) return {};
  look_for_disks_ = clock_.monotonic() + kDisksInterval;
  const auto there = options_.whole_disks();
  if (!there || !sources_->refresh()) return {};  // none, or one that is away is for sync() to tell
  std::vector<std::string> added;
  for (const std::string& path : *there) {
    if (std::ranges::find(paths_, path) != paths_.end()) continue;
    if (std::ranges::find(config_.except_disks, path) != config_.except_disks.end()) continue;
    const auto source = open_source(path);
    if (!source) continue;  // not ready: it is looked for again
    bool known = false;     // by another path
    for (std::size_t i = 0; i < sources_->size(); ++i)
      known = known || (*sources_)[i].identity() == (*source)->identity();
    if (!known) added.push_back(path);
  }
  if (added.empty()) return {};
  std::vector<std::string> paths = paths_;
  paths.insert(paths.end(), added.begin(), added.end());
  if (paths.size() > limits::kDisksPerMachineMax) {
    spdlog::error("new disks are not protected: a machine may have {} disks={}", limits::kDisksPerMachineMax,
                  fmt::join(added, " "));
    return {};
  }
  TIDEMARK_TRY(save_disks(dir_.config(), {paths, true, config_.except_disks}));
  spdlog::info("new disks are protected from now on disks={}", fmt::join(added, " "));
  paths_ = std::move(paths);
  audit_.reset();
  engine_.reset();
  tracker_.reset();
  sources_ = std::make_unique<SourceSet>(paths_);
  return {};
}

Result<ChosenTracker> Runner::choose_tracker() {
  auto chosen = TIDEMARK_TRY(options_.choose(config_, machine_, boot_id_, *sources_, options_.once, clock_));
  track_again_.reset();
  if (chosen.again) track_again_ = clock_.monotonic() + options_.track_again;
  return chosen;
}

// Anew when the disks are other ones than before, or the kernel can track them by now.
Status Runner::make_engine() {
  TIDEMARK_TRY(add_new_disks());
  // A disk that cannot be had is for sync() to tell.
  const bool opened = sources_->refresh().has_value();
  bool same = engine_ && (!opened || sources_->generation() == tracked_generation_);
  ChosenTracker chosen;
  if (same && opened && track_again_ && clock_.monotonic() >= *track_again_) {
    chosen = TIDEMARK_TRY(choose_tracker());
    same = !chosen.tracker->exact();
  }
  if (same) return {};
  audit_.reset();
  engine_.reset();
  tracker_.reset();
  if (opened) {
    if (!chosen.tracker) chosen = TIDEMARK_TRY(choose_tracker());
    tracker_ = std::move(chosen.tracker);
    untracked_why_ = std::move(chosen.why);
    tracked_generation_ = sources_->generation();
  } else {
    tracker_ = std::make_unique<DigestComparison>();
    tracked_generation_ = 0;
    untracked_why_ = "a disk cannot be opened";
  }
  show_tracking();
  Engine::Options engine;
  engine.machine = machine_;
  engine.zstd_level = config_.zstd_level;
  engine.freeze_limit = config_.freeze_limit;
  engine.state_dir = dir_.path();
  engine.boot_id = boot_id_;
  engine.skip_unused = config_.skip_free_space;
  if (options_.unused) engine.unused = options_.unused;
  engine.hooks = hooks();
  engine_ = std::make_unique<Engine>(engine, *sources_, *keeper_, *tracker_, *board_, pace_, clock_, stop_);
  if (tracker_->exact() && !options_.once && config_.audit_period > milliseconds(0)) {
    audit_ = std::make_unique<Audit>(config_.audit_period, *sources_, *tracker_, *keeper_, engine_->skipped(), clock_,
                                     stop_);
  }
  return {};
}

void Runner::show_tracking() {
  board_->set_tracking(tracker_->exact() ? "ebpf" : "digests", tracker_->since_us(), untracked_why_);
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
  link.rate_limit_mib_s = [this, last = -1.0]() mutable {
    const double limit = rates_.limit_at(clock_.wall_us());
    if (limit != std::exchange(last, limit) && !config_.rate_schedule.empty())
      spdlog::info("rate_limit_mib_s={:g}{}", limit, limit == 0 ? " (none)" : "");
    return limit;
  };
  link.pace = &pace_;
  link.on_renewed = [this](const std::string& pem) { renewal_->received(pem); };
  link.on_throttle = [this](milliseconds pause, const std::string& reason) { board_->set_throttle(pause, reason); };
  return link;
}

bool Runner::wait_until(SteadyTime when, const Link* link, bool heed) {
  std::mutex mutex;
  std::condition_variable_any asleep;
  std::unique_lock lock(mutex);
  while (!stop_.stop_requested() && (link == nullptr || link->alive())) {
    const auto now = clock_.monotonic();
    if (now >= when || (heed && agenda_.asked())) return true;
    asleep.wait_for(lock, stop_, std::min<std::chrono::steady_clock::duration>(when - now, milliseconds(100)),
                    [] { return false; });
  }
  return false;
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

// No point for long, although the file systems were to stand still for it, or may not: somebody has to see to it.
Status Runner::note_want_of_points(const EpochReport& report) {
  const auto without = agenda_.without_a_point(report, tracker_->exact());
  if (!without || !keeper_->get().alarm.empty()) return {};  // one that stands was told
  const std::string what = fmt::format("no recovery point for {} s: {}", without->count(), report.reason);
  spdlog::error("ALARM: {} remedy=\"{}\"", what, report.remedy);
  return keeper_->change([&](Memory& memory) {
    memory.alarm = what;
    memory.alarm_us = clock_.wall_us();
  });
}

// `report`: none when the epoch failed.
void Runner::after_hooks(const EpochReport* report) {
  std::vector<std::string> failures;
  if (report != nullptr && report->hooks_ran) {
    if (report->consistency == Consistency::application) {
      board_->set_application_point(report->epoch, report->cut_us);
    } else {
      failures.push_back(report->hooks_failure.empty() ? report->reason : report->hooks_failure);
      spdlog::warn("no application point epoch={} why=\"{}\"", report->epoch.value(), failures.back());
    }
  }
  if (!engine_->post_failures().empty())
    failures.push_back(
        fmt::format("its application may still stand still: {}", fmt::join(engine_->post_failures(), "; ")));
  if (!failures.empty()) board_->set_hooks_failure(fmt::format("{}", fmt::join(failures, "; ")));
}

void Runner::answer_request(Link& link, const EpochReport& report) {
  auto answer = agenda_.answer_to(report, engine_->post_failures());
  if (!answer) return;
  if (answer->final) {
    done_ = true;
    final_point_ = report.epoch;
    spdlog::info("the final point is durable, the protection ends epoch={}", report.epoch.value());
    board_->set_state(State::stopped, fmt::format("the final point was made, epoch {}", report.epoch.value()),
                      "start it again only where this machine is to be protected further");
    link.progress(board_->message());
  }
  agenda_.answer(*std::move(answer));
}

void Runner::after_epoch(EpochReport report) {
  if (const auto estimate = engine_->compare_estimate();
      !tracker_->exact() && report.freeze_would_help && config_.freeze && estimate) {
    report.remedy =
        *estimate > config_.freeze_limit
            ? fmt::format("a freeze for reading everything would take about {} s, longer than freeze_limit_s",
                          estimate->count() / 1000)
            : "it is tried again with a freeze";
  }
  backoff_.reset();
  show_tracking();
  changed_in_a_row_ = 0;
  agenda_.note(report, tracker_->exact());
  spdlog::info(
      "epoch={} kind={} consistency={} point={} unchanged={} changed_bytes={} skipped_bytes={} sent_bytes={} "
      "seconds={:.2f} frozen_seconds={:.2f} held_seconds={:.2f} rounds={} hits={} zstd_level={}{}",
      report.epoch.value(), pb::EpochKind_Name(report.kind), to_string(report.consistency), report.point,
      report.unchanged, report.changed_bytes, report.skipped_bytes, report.sent_bytes, report.seconds,
      report.frozen_seconds, report.held_seconds, report.rounds, report.hits, engine_->zstd_level(),
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
    agenda_.at_once();
  }
}

// Time that the epoch left over is the audit's. Without tracking every epoch is a comparison of everything.
void Runner::audit(Link& link, const EpochReport& report) {
  const auto until = agenda_.next_epoch() - agenda_.interval(true) / 10;
  if (!audit_ || !report.point || clock_.monotonic() >= until) return;
  const auto digests = [&](DiskId disk, std::uint64_t first, std::uint32_t count,
                           EpochNumber epoch) -> Result<std::vector<std::byte>> {
    DigestFeed feed(link, epoch, {{disk, first, count}});
    const auto bytes = TIDEMARK_TRY(feed.at(disk, first, count));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  const auto audited = audit_->step(digests, until);
  // What it could not remember it does again; a link that ended says so itself.
  if (!audited && link.alive() && !stop_.stop_requested()) spdlog::warn("audit: {}", audited.error().message());
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
        agenda_.at_once();
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
      refuse_request(error);
      agenda_.put_off(std::max<milliseconds>(agenda_.interval(tracker_->exact()), kSourceRetry));
      return {};
  }
  return {};
}

Status Runner::serve(Link& link) {
  TIDEMARK_TRY(note_divergence(link));
  renewal_->begin(link);
  while (!done_ && wait_until(agenda_.next(), &link, true)) {
    TIDEMARK_TRY(make_engine());
    auto report = engine_->sync(link, agenda_.take(tracker_->exact(), engine_->compare_estimate()));
    after_hooks(report ? &*report : nullptr);
    if (report) {
      TIDEMARK_TRY(note_want_of_points(*report));
      after_epoch(*report);
      link.progress(board_->message());
      answer_request(link, *report);
      if (!done_) audit(link, *report);
    } else {
      TIDEMARK_TRY(after_failure(link, report.error()));
    }
    renewal_->look(link);
  }
  const auto patience = clock_.monotonic() + kRenewPatience;
  while (done_ && renewal_->asked() && clock_.monotonic() < patience &&
         wait_until(clock_.monotonic() + milliseconds(20), &link)) {
  }
  if (link.alive()) {
    link.goodbye(stop_.stop_requested() ? "the agent was asked to stop"
                 : options_.once        ? "done"
                                        : "the final point was made, the protection ends");
  }
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
    bool was_connected = false;
    if (!std::exchange(first, false)) ++outcome_.reconnects;
    if (auto connected = link.connect()) {
      was_connected = true;
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
    // A link that is lost may be back at once; one that could not be had is told to who waits for a point.
    const bool tell = !was_connected && !options_.once;
    while (wait_until(when, nullptr, tell) && clock_.monotonic() < when)
      refuse_request({Code::unavailable, address, "not connected to the server: " + end.error.message(),
                      "mend that, and ask again: the agent goes on trying"});
  }
  if (stop_.stop_requested() && options_.once && !done_) {
    board_->set_state(State::stopped);
    return fail(Code::cancelled, "sync", "asked to stop before it was done", "run it again: it goes on where it can");
  }
  if (final_point_) return std::move(outcome_);
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
  Runner runner(config, dir, options, clock, std::move(stop));
  auto outcome = runner.run();
  runner.refuse_request(outcome ? Error{Code::cancelled, "agent", "it was asked to stop", "start it, and ask again"}
                                : outcome.error());
  return outcome;
}

}  // namespace tidemark::agent
