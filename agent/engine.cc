// One epoch from its plan to its Durable. Reading stands in engine_read.cc.
#include "agent/engine.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

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
               const Clock& clock, std::stop_token stop)
    : options_(std::move(options)),
      sources_(sources),
      keeper_(keeper),
      tracker_(tracker),
      board_(board),
      clock_(clock),
      stop_(std::move(stop)) {}

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
    tracker_.durable();
    return report;
  }
  tracker_.failed();
  return std::nullopt;
}

Result<EpochReport> Engine::sync(Link& link, bool freeze) {
  fault_ = Fault::link;
  if (auto report = settle_doubt()) return *report;
  Pass pass;
  const auto start = clock_.monotonic();
  Result<EpochReport> report = std::unexpected(Error{});
  if (auto prepared = prepare(link, pass); prepared) {
    report = transfer(link, pass, freeze);
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
  if (pass.kind == pb::INITIAL) initial_.reset();
  return report;
}

// What is known of both sides: which disks, which kind of epoch, from where on.
Status Engine::prepare(Link& link, Pass& pass) {
  if (auto opened = sources_.refresh(); !opened) {
    fault_ = Fault::source;
    return opened;
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
  std::vector<std::uint64_t> sizes;
  for (const KnownDisk& disk : pass.disks) sizes.push_back(disk.size);
  pass.suspects = TIDEMARK_TRY(tracker_.begin_round(sizes));
  if (pass.kind != pb::DELTA) pass.suspects = {true, "the server's copy has no known base", {}};
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
      granules += forced.count;
    }
  }
  if (granules != 0) spdlog::warn("the server lost data: it is sent again bytes={}", granules * limits::kGranuleSize);
  if (pass.suspects.everything) return;
  for (std::size_t i = 0; i < pass.forced.size(); ++i) {
    auto& suspects = pass.suspects.by_disk[i];
    suspects.insert(suspects.end(), pass.forced[i].begin(), pass.forced[i].end());
    std::sort(suspects.begin(), suspects.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<GranuleRange> merged;
    for (const GranuleRange& range : suspects) {
      if (!merged.empty() && range.first <= merged.back().first + merged.back().count) {
        merged.back().count = std::max(merged.back().count, range.first + range.count - merged.back().first);
      } else {
        merged.push_back(range);
      }
    }
    suspects = std::move(merged);
  }
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

Result<EpochReport> Engine::transfer(Link& link, Pass& pass, bool freeze) {
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
  EpochSender sender(link, options_.machine, options_.zstd_level, [&]() -> Result<EpochNumber> {
    if (auto begun = begin(link, pass); !begun) return std::unexpected(begun.error());
    return pass.number;
  });
  auto report = read_and_commit(link, pass, freeze, feed ? &*feed : nullptr, sender);
  if (sent_.number != pass.number) sent_ = {pass.number, 0};
  sent_.bytes += link.bytes_sent() - sent_before;
  if (report) report->sent_bytes = sent_.bytes;
  return report;
}

Result<EpochReport> Engine::read_and_commit(Link& link, Pass& pass, bool freeze, DigestFeed* feed,
                                            EpochSender& sender) {
  auto frozen_from = clock_.monotonic();
  if (freeze && pass.kind != pb::INITIAL) {
    if (feed) TIDEMARK_TRY(feed->prefetch());
    std::vector<std::string> places;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
      auto mounts = sources_[i].writable_mounts();
      if (!mounts) return source_failed(mounts.error());
      for (std::string& place : *mounts) {
        if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(std::move(place));
      }
    }
    frozen_from = clock_.monotonic();
    auto frozen = places.empty() ? Result<std::unique_ptr<Freeze>>(nullptr)
                                 : Freeze::start(places, options_.freeze_limit, options_.state_dir);
    if (frozen) {
      pass.freeze = std::move(*frozen);
    } else {
      pass.freeze_failure = "no freeze: " + frozen.error().message();
    }
  }
  TIDEMARK_TRY(watch(pass));
  const auto read_from = clock_.monotonic();
  TIDEMARK_TRY(read_disks(link, pass, feed, sender));
  if (auto checked = sources_.check(); !checked) return source_failed(checked.error());
  const auto hits = TIDEMARK_TRY(tracker_.end_round());
  Decision decision = judge(pass);
  if (pass.freeze) pass.report.frozen_seconds = seconds_since(clock_, frozen_from);
  if (hits && decision.consistency == Consistency::fuzzy && !pass.unproven &&
      std::all_of(hits->begin(), hits->end(), [](const auto& disk) { return disk.empty(); })) {
    decision = {Consistency::crash, {}, {}, false};  // the tracker saw every write, and none touched what was read
  }
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
  report.consistency = decision.consistency;
  report.reason = decision.reason;
  report.remedy = decision.remedy;
  report.freeze_would_help = decision.freeze_would_help;
  report.point = point;
  if (!pass.begun && !pass.must_commit) {
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
      }));
      tracker_.durable();
      return report;
    }
    // Nothing differs, but nothing is proven either: no new epoch would say more than the one there is.
    if (!point) return report;
  }
  TIDEMARK_TRY(begin(link, pass));
  TIDEMARK_TRY(link.commit_epoch(pass.number, report.cut_us, decision.consistency, pass.disks));
  tracker_.sent();
  pass.begun = false;  // nothing to abort any more
  report.epoch = pass.number;
  report.committed = true;
  in_doubt_ = report;
  TIDEMARK_TRY(link.wait_durable(pass.number));
  in_doubt_.reset();
  tracker_.durable();
  return report;
}

// After an error: the file systems run again, and the server forgets what was begun, unless it can be gone on with.
void Engine::give_up(Link& link, Pass& pass, const Error& why) {
  if (pass.freeze) {
    if (auto thawed = pass.freeze->thaw(); !thawed) spdlog::error("thaw failed error=\"{}\"", thawed.error().message());
  }
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
