// The exact cut: rounds of reading what was marked, until a round in which nothing was written to what it read.
//
// T is the moment of Tracker::cut(). What is due is read after T; a granule that is not marked again by then holds no
// write that was submitted after T: such a write is marked before it reaches the disk. What completed before T is on
// the disk. So the granules read, on the base, are the machine at T, with any part of what was in flight.
// A granule that was marked may hold a later write, and one such write may depend on another that was missed: then the
// next moment is taken, and *everything* marked between the two is read, not only what was hit. What was read before
// and not marked since stays true at the new moment. Each round has less to read than the one before, for it took less
// time.
//
// What is read goes out at once; a granule that is read again travels again, and the later one holds. An epoch whose
// rounds find no end is committed as fuzzy: what it has not is still marked.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "agent/engine.h"
#include "base/limits.h"
#include "base/planted.h"

namespace tidemark::agent {
namespace {
// Nothing is made to stand still before this few granules are due, or after this many rounds.
constexpr std::uint64_t kStandStillBelow = 4096;
constexpr int kRoundsBeforeStandStill = 10;
}  // namespace

// Reads all that is due, and sends it. How many granules were written to meanwhile.
Result<std::uint64_t> Engine::read_due(Link& link, Pass& pass, EpochSender& sender) {
  std::atomic<std::uint64_t> hits = 0;
  while (true) {
    if (stop_.stop_requested()) return fail(Code::cancelled, "agent", "asked to stop");
    if (pass.freeze) (void)pass.freeze->intact();
    std::size_t disk = 0;
    auto ranges = tracker_.next(disk, EpochSender::kPieceSize / limits::kGranuleSize);
    if (ranges.empty()) return hits.load();
    if (planted(Planted::hits_alone_read_again) && pass.report.rounds > 1) {
      std::erase_if(ranges, [&](const GranuleRange& range) { return !pass.hit.contains({disk, range.first}); });
      if (ranges.empty()) continue;
    }
    Piece piece;
    piece.disk = pass.disks[disk].disk;
    piece.buffer = TIDEMARK_TRY(sender.buffer());
    std::vector<std::size_t> in_buffer;
    for (const GranuleRange& range : ranges) {
      in_buffer.push_back(piece.size);
      piece.parts.push_back({range.first * limits::kGranuleSize, range.count * limits::kGranuleSize});
      piece.size += piece.parts.back().size;
    }
    BlockSource& source = sources_[disk];
    std::mutex mutex;
    Status failed;
    std::optional<Pace::Timer> timer(std::in_place, pace_, Stage::source);
    readers_->run(ranges.size(), [&](std::size_t i) {
      const Piece::Part& part = piece.parts[i];
      auto read = source.read_at(part.offset, piece.buffer->span().subspan(in_buffer[i], part.size));
      if (!read) {
        const std::lock_guard lock(mutex);
        if (failed) failed = std::move(read);
        return;
      }
      if (planted(Planted::hits_unseen)) return;
      const std::uint64_t here = tracker_.hits(disk, ranges[i]);
      hits += here;
      if (planted(Planted::hits_alone_read_again) && here != 0) {
        const std::lock_guard lock(mutex);
        for (std::uint64_t at = 0; at < ranges[i].count; ++at) pass.hit.insert({disk, ranges[i].first + at});
      }
    });
    timer.reset();
    if (!failed) return source_failed(failed.error());
    pass.report.compared_bytes += piece.size;
    for (const GranuleRange& range : ranges) note_read(pass, disk, range);
    TIDEMARK_TRY(sender.push(std::move(piece)));
    tell_progress(link, done_bytes_);
  }
}

Result<Decision> Engine::read_cuts(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender) {
  pass.unproven = pass.resumed && !pass.suspects.covered;
  if (pass.suspects.everything) TIDEMARK_TRY(read_disks(link, pass, feed, sender));
  const Wish& wish = pass.report.wish;
  auto from = clock_.monotonic();
  auto frozen_from = from;
  std::uint64_t before = 0;
  bool froze = false;
  while (true) {
    const bool short_rounds =
        pass.report.rounds > 0 && (before < kStandStillBelow || pass.report.rounds >= kRoundsBeforeStandStill);
    if (wish.application && !pass.report.hooks_ran && short_rounds) {
      TIDEMARK_TRY(hold_applications(pass));
      from = clock_.monotonic();  // however long the hooks took
    }
    if (wish.freeze && !froze && short_rounds) {
      froze = true;
      frozen_from = clock_.monotonic();
      TIDEMARK_TRY(freeze_all(pass));
    }
    TIDEMARK_TRY(tracker_.cut());
    ++pass.report.rounds;
    const std::uint64_t read_before = pass.report.compared_bytes;
    const std::uint64_t hits = TIDEMARK_TRY(read_due(link, pass, sender));
    before = (pass.report.compared_bytes - read_before) / limits::kGranuleSize;
    pass.report.hits += hits;
    pass.report.cut_us = tracker_.cut_us();
    const bool exact = hits == 0 && tracker_.sound();
    const std::string why_lost = exact ? std::string() : tracker_.why_lost();
    const bool patient = clock_.monotonic() - from < options_.cut_patience && why_lost.empty();
    // A point that was asked for is cut while everything stands still that is to, even where it would not need it.
    const bool too_early = (wish.application && !pass.report.hooks_ran) || (wish.own_epoch && wish.freeze && !froze);
    if (patient && (!exact || too_early)) continue;
    if (auto checked = sources_.check(); !checked) return source_failed(checked.error());
    bool frozen = false;
    if (pass.freeze) {
      const auto intact = pass.freeze->thaw();
      frozen = intact.value_or(false);
      pass.report.frozen_seconds = std::chrono::duration<double>(clock_.monotonic() - frozen_from).count();
      pass.freeze.reset();
    }
    const bool held = let_go(pass);
    if (pass.unproven) {
      return Decision{
          Consistency::fuzzy,
          "the initial sync was continued after its tracking had been lost: its parts are of different moments",
          "the next epoch becomes a point", false};
    }
    if (exact) {
      return Decision{held     ? Consistency::application
                      : frozen ? Consistency::filesystem
                               : Consistency::crash,
                      {},
                      {},
                      false};
    }
    if (!why_lost.empty()) return Decision{Consistency::fuzzy, why_lost, "the next epoch compares everything", false};
    std::string reason =
        fmt::format("no exact cut in {} rounds: {} of {} blocks were written to while the last one was read",
                    pass.report.rounds, hits, before);
    if (!pass.freeze_failure.empty()) reason += "; " + pass.freeze_failure;
    return Decision{Consistency::fuzzy, std::move(reason),
                    "writes outrun the reading or the sending: see what holds them up; a freeze makes it a point",
                    true};
  }
}

}  // namespace tidemark::agent
