// One epoch from its plan to its Durable. Reading stands in engine_read.cc.
#include "agent/engine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>

#include "base/limits.h"

namespace tidemark::agent {
namespace {

double seconds_since(const Clock& clock, std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(clock.monotonic() - start).count();
}

std::uint64_t chunks_of(std::uint64_t size) { return (size + limits::kDigestChunkSize - 1) / limits::kDigestChunkSize; }

template <typename Disks>
auto find_identity(const Disks& disks, const std::string& identity) {
  return std::find_if(disks.begin(), disks.end(),
                      [&](const pb::DiskInfo& disk) { return disk.identity() == identity; });
}

}  // namespace

Engine::Engine(Options options, SourceSet& sources, MemoryKeeper& keeper, Tracker& tracker, StatusBoard& board,
               Pace& pace, const Clock& clock, std::stop_token stop)
    : options_(std::move(options)),
      sources_(sources),
      keeper_(keeper),
      tracker_(tracker),
      board_(board),
      pace_(pace),
      compression_(options_.zstd_level),
      clock_(clock),
      stop_(std::move(stop)),
      generation_(sources.generation()),
      skipped_(options_.state_dir / "unread") {
  if (tracker_.exact()) readers_ = std::make_unique<ReadPool>();
  if (auto loaded = skipped_.load(); !loaded && loaded.error().code != Code::not_found)
    spdlog::warn("it is not known which free space was not read error=\"{}\"", loaded.error().message());
}

std::unexpected<Error> Engine::source_failed(Error error) {
  // What became of the disk says more than the read that failed.
  if (auto checked = sources_.check(); !checked) error = checked.error();
  fault_ = error.code == Code::invalid_argument ? Fault::changed : Fault::source;
  return std::unexpected(std::move(error));
}

std::optional<std::chrono::milliseconds> Engine::compare_estimate() const {
  if (compare_rate_ <= 0) return std::nullopt;
  return std::chrono::milliseconds(
      static_cast<std::int64_t>(static_cast<double>(sources_.total_bytes()) / compare_rate_ * 1000));
}

std::optional<EpochReport> Engine::settle_doubt() {
  if (!in_doubt_) return std::nullopt;
  auto report = std::exchange(in_doubt_, std::nullopt);
  const Memory memory = keeper_.get();
  if (memory.durable && memory.durable->number == report->epoch) {
    tracker_.durable(report->epoch);
    return report;
  }
  tracker_.failed();
  return std::nullopt;
}

Result<EpochReport> Engine::sync(Link& link, const Wish& wish) {
  fault_ = Fault::link;
  post_failures_.clear();
  if (auto report = settle_doubt()) return *report;
  Pass pass;
  pass.report.wish = wish;
  const auto start = clock_.monotonic();
  Result<EpochReport> report = std::unexpected(Error{});
  if (auto prepared = prepare(link, pass); prepared) {
    report = transfer(link, pass);
  } else {
    report = std::unexpected(std::move(prepared).error());
  }
  board_.end_progress();
  if (!report) {
    if (stop_.stop_requested()) fault_ = Fault::stopped;
    give_up(link, pass, report.error());
    if (!in_doubt_) tracker_.failed();
    return report;
  }
  report->seconds = seconds_since(clock_, start);
  link.sent_again(pass.wanted);
  remember_skips(pass);
  if (pass.kind == pb::INITIAL) initial_.reset();
  return report;
}

// What is known of both sides: which disks, which kind of epoch, from where on.
Status Engine::prepare(Link& link, Pass& pass) {
  if (auto opened = sources_.refresh(); !opened) {
    fault_ = Fault::source;
    return opened;
  }
  if (tracker_.exact() && generation_ != sources_.generation()) {
    fault_ = Fault::changed;
    return fail(Code::invalid_argument, "disks", "others than the tracking of writes began with", "it begins anew");
  }
  const SessionView before = link.view();
  if (before.resumable) {
    // An initial sync goes on only over the very disks that it began with.
    std::size_t known = 0;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      const auto disk = find_identity(before.disks, sources_[i].identity());
      if (disk != before.disks.end() && disk->size() == sources_[i].size()) ++known;
    }
    bool fits = known == sources_.size() && before.resumable->kind() == pb::INITIAL;
    for (const pb::DiskPosition& position : before.resumable->positions()) {
      fits = fits && std::any_of(before.disks.begin(), before.disks.end(), [&](const pb::DiskInfo& disk) {
               if (disk.disk() != position.disk()) return false;
               for (std::size_t i = 0; i < sources_.size(); ++i) {
                 if (sources_[i].identity() == disk.identity()) return true;
               }
               return false;
             });
    }
    if (!fits) TIDEMARK_TRY(link.abort_epoch("the machine's disks are other ones than when it was begun"));
  }
  TIDEMARK_TRY(open_disks(link, pass));
  choose_kind(link.view(), pass);
  plan_comparison(before, pass);
  pass.suspects = TIDEMARK_TRY(tracker_.begin_round({pass.base, pass.number, pass.kind != pb::DELTA, pass.resumed}));
  if (tracker_.exact() && pass.suspects.everything) spdlog::info("everything is read why=\"{}\"", pass.suspects.why);
  force_wanted(link, pass);
  return {};
}

// What the server lost is part of this epoch, whatever trackers and digests say.
void Engine::force_wanted(Link& link, Pass& pass) {
  pass.wanted = link.wanted();
  pass.forced.assign(pass.disks.size(), {});
  std::uint64_t granules = 0;
  for (const pb::Resend::Range& range : pass.wanted) {
    for (std::size_t i = 0; i < pass.disks.size(); ++i) {
      const std::uint64_t end = (pass.disks[i].size + limits::kGranuleSize - 1) / limits::kGranuleSize;
      if (pass.disks[i].disk.value() != range.disk() || range.first_granule() >= end) continue;
      const GranuleRange forced{range.first_granule(), std::min(range.granules(), end - range.first_granule())};
      pass.forced[i].push_back(forced);
      tracker_.want(i, forced);
      granules += forced.count;
    }
  }
  if (granules != 0) spdlog::warn("the server lost data: it is sent again bytes={}", granules * limits::kGranuleSize);
}

Status Engine::open_disks(Link& link, Pass& pass) {
  std::vector<DiskStatus> shown;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const DiskId id = TIDEMARK_TRY(link.open_disk(sources_[i].identity(), sources_[i].size(), sources_.name(i)));
    pass.disks.push_back({id, sources_[i].identity(), sources_.name(i), sources_[i].size()});
    shown.push_back({sources_[i].path(), sources_.name(i), id.value(), sources_[i].size()});
  }
  board_.set_disks(std::move(shown));
  return {};
}

void Engine::choose_kind(const SessionView& view, Pass& pass) {
  const Memory memory = keeper_.get();
  pass.start.assign(pass.disks.size(), 0);
  pass.base = view.durable;
  pass.number = view.next_epoch;
  if (view.resumable) {
    pass.kind = pb::INITIAL;
    pass.number = EpochNumber(view.resumable->number());
    pass.resumed = true;
    for (const pb::DiskPosition& position : view.resumable->positions()) {
      for (std::size_t i = 0; i < pass.disks.size(); ++i) {
        if (pass.disks[i].disk.value() != position.disk()) continue;
        pass.start[i] =
            std::min(position.granule() * limits::kGranuleSize, round_up(pass.disks[i].size, limits::kGranuleSize));
      }
    }
  } else if (view.durable.value() == 0) {
    pass.kind = pb::INITIAL;
  } else {
    const bool known = memory.durable && memory.durable->number == view.durable;
    std::string why = memory.rescan;
    if (view.diverged) why = "the server's history is not the one that it acknowledged";
    if (why.empty() && !known) why = "it is not known how the newest durable epoch was made";
    if (why.empty() && memory.boot_id != options_.boot_id) why = "the machine was started anew since the last epoch";
    pass.kind = why.empty() ? pb::DELTA : pb::RESCAN;
    if (!why.empty()) spdlog::info("rescan base_epoch={} why=\"{}\"", view.durable.value(), why);
  }
  pass.must_commit = pass.kind == pb::INITIAL || view.diverged;
}

// How much of each disk the server can be asked about, as of the base.
void Engine::plan_comparison(const SessionView& before, Pass& pass) {
  pass.comparable.assign(pass.disks.size(), 0);
  if (pass.kind == pb::INITIAL) return;
  const Memory memory = keeper_.get();
  const bool known = memory.durable && memory.durable->number == pass.base;
  for (std::size_t i = 0; i < pass.disks.size(); ++i) {
    const KnownDisk& disk = pass.disks[i];
    std::optional<std::uint64_t> old_size;
    if (known) {
      for (const KnownDisk& old : memory.durable->disks) {
        if (old.disk == disk.disk) old_size = old.size;
      }
    } else if (const auto old = find_identity(before.disks, disk.identity); old != before.disks.end()) {
      old_size = old->size();
    }
    if (old_size == disk.size) {
      pass.comparable[i] = chunks_of(disk.size);
    } else {
      // Where the sizes differ, the chunk at the shorter end is sent unasked, and a new disk is sent whole.
      pass.comparable[i] = std::min(old_size.value_or(0), disk.size) / limits::kDigestChunkSize;
      pass.must_commit = true;
    }
  }
  if (known && memory.durable->disks.size() != pass.disks.size()) pass.must_commit = true;
}

Status Engine::watch(Pass& pass) {
  if (pass.resumed && initial_ && initial_->number == pass.number && initial_->generation == sources_.generation()) {
    pass.witnesses = std::move(initial_->witnesses);
    initial_.reset();
    return {};
  }
  initial_.reset();
  pass.unproven = pass.resumed;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    auto witness = sources_[i].watch();
    if (!witness) return source_failed(witness.error());
    pass.witnesses.push_back(std::move(*witness));
  }
  return {};
}

Status Engine::begin(Link& link, Pass& pass) {
  if (pass.begun) return {};
  pb::EpochBegin begin;
  begin.set_number(pass.number.value());
  begin.set_kind(pass.kind);
  for (const KnownDisk& disk : pass.disks) {
    pb::DiskSize* size = begin.add_disks();
    size->set_disk(disk.disk.value());
    size->set_size(disk.size);
  }
  pass.begun = true;  // from here on there may be something to abort
  return link.begin_epoch(begin);
}

Decision Engine::judge(Pass& pass) {
  std::vector<DiskEvidence> evidence;
  pass.report.cut_us = clock_.wall_us();
  for (const auto& witness : pass.witnesses) evidence.push_back(witness->testify(pass.freeze != nullptr));
  if (pass.freeze) {
    const auto intact = pass.freeze->thaw();
    if (!intact) spdlog::error("thaw failed error=\"{}\"", intact.error().message());
    if (!intact.value_or(false)) {
      for (DiskEvidence& one : evidence) one.frozen = false;
      pass.freeze_failure = "the freeze was undone before everything was read";
    }
  }
  Decision decision = decide(evidence);
  if (pass.unproven) {
    decision = {Consistency::fuzzy,
                "the initial sync was continued by another run of the agent: its parts are of different moments",
                "the next epoch becomes a point", false};
  }
  if (decision.consistency == Consistency::fuzzy && !pass.freeze_failure.empty())
    decision.reason += "; " + pass.freeze_failure;
  return decision;
}

Result<EpochReport> Engine::transfer(Link& link, Pass& pass) {
  pass.report.kind = pass.kind;
  pass.report.resumed = pass.resumed;
  const bool first_point = keeper_.get().newest_point.value() == 0;
  board_.set_state(pass.kind == pb::INITIAL  ? State::initial_sync
                   : pass.kind == pb::RESCAN ? State::rescan
                   : first_point             ? State::creating_first_point
                                             : State::continuous);
  std::optional<DigestFeed> feed;
  if (pass.kind != pb::INITIAL && pass.suspects.everything) {
    std::vector<ChunkSpan> spans;
    for (std::size_t i = 0; i < pass.disks.size(); ++i) spans.push_back({pass.disks[i].disk, 0, pass.comparable[i]});
    feed.emplace(link, pass.base, spans);
  }
  const std::uint64_t sent_before = link.bytes_sent();
  EpochSender sender(link, options_.machine, pace_, compression_, [&]() -> Result<EpochNumber> {
    if (auto begun = begin(link, pass); !begun) return std::unexpected(begun.error());
    return pass.number;
  });
  auto report = read_and_commit(link, pass, feed ? &*feed : nullptr, sender);
  if (sent_.number != pass.number) sent_ = {pass.number, 0};
  sent_.bytes += link.bytes_sent() - sent_before;
  if (report) report->sent_bytes = sent_.bytes;
  return report;
}

// Of all protected disks, each once.
Result<std::vector<std::string>> Engine::writable_mounts() {
  std::vector<std::string> places;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    auto mounts = sources_[i].writable_mounts();
    if (!mounts) return source_failed(mounts.error());
    for (std::string& place : *mounts) {
      if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(std::move(place));
    }
  }
  return places;
}

// The file systems on the protected disks stand still from here on, or freeze_failure tells why not.
Status Engine::freeze_all(Pass& pass) {
  const std::vector<std::string> places = TIDEMARK_TRY(writable_mounts());
  auto frozen = places.empty() ? Result<std::unique_ptr<Freeze>>(nullptr)
                               : Freeze::start(places, options_.freeze_limit, options_.state_dir);
  if (frozen) {
    pass.freeze = std::move(*frozen);
  } else {
    pass.freeze_failure = "no freeze: " + frozen.error().message();
  }
  return {};
}

// The applications stand still from here on, or hooks_failure tells why not. What they wrote is on the disks.
Status Engine::hold_applications(Pass& pass) {
  pass.report.hooks_ran = true;
  pass.hold = std::make_unique<Quiesce>(options_.hooks, pass.number, stop_);
  if (!pass.hold->failure().empty()) {
    pass.report.hooks_failure = pass.hold->failure();
    let_go(pass);
    return {};
  }
  for (const std::string& place : TIDEMARK_TRY(writable_mounts())) {
    const FileDescriptor folder(::open(place.c_str(), O_RDONLY | O_CLOEXEC));
    if (folder && ::syncfs(folder.get()) == 0) continue;
    pass.report.hooks_failure = place + ": what the applications wrote could not be flushed";
    let_go(pass);
    return {};
  }
  return {};
}

// The applications go on. True: they stood still until now.
bool Engine::let_go(Pass& pass) {
  const std::unique_ptr<Quiesce> hold = std::move(pass.hold);
  if (!hold) return false;
  const bool held = hold->release();
  if (!held && pass.report.hooks_failure.empty())
    pass.report.hooks_failure = fmt::format("the applications were to stand still for longer than {:g} s",
                                            std::chrono::duration<double>(options_.hooks.hold_limit).count());
  post_failures_ = hold->post_failures();
  pass.report.held_seconds = hold->held_seconds();
  return held;
}

// Without tracking: everything is read, and what became of the disks meanwhile decides.
Result<Decision> Engine::read_compared(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender) {
  const Wish& wish = pass.report.wish;
  const bool stand_still = pass.kind != pb::INITIAL;  // not for as long as that takes
  if (feed && stand_still && (wish.freeze || wish.application)) TIDEMARK_TRY(feed->prefetch());
  if (wish.application && stand_still) TIDEMARK_TRY(hold_applications(pass));
  const auto frozen_from = clock_.monotonic();
  if (wish.freeze && stand_still) TIDEMARK_TRY(freeze_all(pass));
  TIDEMARK_TRY(watch(pass));
  TIDEMARK_TRY(read_disks(link, pass, feed, sender));
  if (auto checked = sources_.check(); !checked) return source_failed(checked.error());
  Decision decision = judge(pass);
  if (pass.freeze) pass.report.frozen_seconds = seconds_since(clock_, frozen_from);
  if (let_go(pass) && decision.consistency != Consistency::fuzzy) decision.consistency = Consistency::application;
  return decision;
}

Result<EpochReport> Engine::read_and_commit(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender) {
  const auto read_from = clock_.monotonic();
  const Decision decision =
      TIDEMARK_TRY(tracker_.exact() ? read_cuts(link, pass, feed, sender) : read_compared(link, pass, feed, sender));
  TIDEMARK_TRY(sender.finish());
  if (pass.kind != pb::INITIAL && pass.suspects.everything) {
    compare_rate_ = static_cast<double>(sources_.total_bytes()) / std::max(1e-3, seconds_since(clock_, read_from));
  }
  pass.report.changed_bytes = sender.changed_bytes();
  pass.report.zero_bytes = sender.zero_bytes();
  return conclude(link, pass, decision);
}

// Everything was read and handed to the link: an epoch is committed, or there is none to make.
Result<EpochReport> Engine::conclude(Link& link, Pass& pass, const Decision& decision) {
  EpochReport& report = pass.report;
  const bool point = decision.consistency != Consistency::fuzzy;
  // All of every disk was compared or sent: more than an audit proves.
  const bool proves_all = point && pass.suspects.everything;
  report.consistency = decision.consistency;
  report.reason = decision.reason;
  report.remedy = decision.remedy;
  report.freeze_would_help = decision.freeze_would_help;
  report.point = point;
  // Whoever asked for a point wants one of that moment, and of that name.
  const bool own_epoch = point && (report.wish.own_epoch || decision.consistency == Consistency::application);
  if (!pass.begun && !pass.must_commit && !own_epoch) {
    const Memory memory = keeper_.get();
    const bool base_is_point =
        memory.durable && memory.durable->number == pass.base && memory.durable->consistency != Consistency::fuzzy;
    report.epoch = pass.base;
    if (point && base_is_point) {
      TIDEMARK_TRY(link.unchanged(report.cut_us));
      report.consistency = memory.durable->consistency;
      report.unchanged = true;
      TIDEMARK_TRY(keeper_.change([&](Memory& m) {
        m.unchanged_as_of_us = report.cut_us;
        m.rescan.clear();
        m.boot_id = options_.boot_id;
        m.alarm.clear();
        m.alarm_us = 0;
        if (proves_all) m.audit.proven_us = std::max(m.audit.proven_us, report.cut_us);
      }));
      tracker_.durable(pass.base);
      return report;
    }
    // Nothing differs, but nothing is proven either: no new epoch would say more than the one there is.
    if (!point) return report;
  }
  TIDEMARK_TRY(begin(link, pass));
  tracker_.sent(pass.number);
  TIDEMARK_TRY(link.commit_epoch(pass.number, report.cut_us, decision.consistency, pass.disks));
  pass.begun = false;  // nothing to abort any more
  report.epoch = pass.number;
  report.committed = true;
  in_doubt_ = report;
  {
    const Pace::Timer timer(pace_, Stage::server);
    TIDEMARK_TRY(link.wait_durable(pass.number));
  }
  in_doubt_.reset();
  tracker_.durable(pass.number);
  if (proves_all) {
    TIDEMARK_TRY(keeper_.change([&](Memory& m) { m.audit.proven_us = std::max(m.audit.proven_us, report.cut_us); }));
  }
  return report;
}

// After an error: the file systems run again, and the server forgets what was begun, unless it can be gone on with.
void Engine::give_up(Link& link, Pass& pass, const Error& why) {
  if (pass.freeze) {
    if (auto thawed = pass.freeze->thaw(); !thawed) spdlog::error("thaw failed error=\"{}\"", thawed.error().message());
  }
  let_go(pass);
  const bool resumable = pass.kind == pb::INITIAL && (fault_ == Fault::link || fault_ == Fault::stopped);
  if (resumable && !pass.witnesses.empty()) {
    // The witnesses go on watching until the initial sync does.
    initial_ = Initial{pass.number, sources_.generation(), std::move(pass.witnesses)};
  }
  if (!pass.begun || resumable || !link.alive()) return;
  if (auto aborted = link.abort_epoch(why.message()); !aborted) {
    spdlog::warn("epoch not aborted epoch={} error=\"{}\"", pass.number.value(), aborted.error().message());
  }
}

}  // namespace tidemark::agent
