// The reading of an epoch: from disks to pieces for the sender. What is left out stands in engine_skip.cc.
#include <algorithm>

#include "agent/engine.h"
#include "base/crypto.h"
#include "base/limits.h"

namespace tidemark::agent {
namespace {
constexpr std::uint64_t kChunk = limits::kDigestChunkSize;
constexpr auto kTellInterval = std::chrono::seconds(1);
static_assert(EpochSender::kPieceSize == DigestFeed::kChunksPerPiece * kChunk);
static_assert(EpochSender::kPieceSize == limits::kRegionSize, "no block of a piece crosses a region");
}  // namespace

Status Engine::read_disks(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender) {
  plan_skips(pass);
  EpochReport& report = pass.report;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < pass.disks.size(); ++i) {
    total += round_up(pass.disks[i].size, limits::kGranuleSize);
    report.resumed_bytes += pass.start[i];
    report.skipped_bytes += pass.skip[i].chunks() * kChunk;
  }
  // What is left out counts as done from the start: so what is to come, and when it ends, is of what is read.
  done_bytes_ = report.resumed_bytes + report.skipped_bytes;
  report.compared_bytes = total - done_bytes_;
  board_.start_progress(done_bytes_, total);
  for (std::size_t i = 0; i < pass.disks.size(); ++i) {
    TIDEMARK_TRY(
        read_range(link, pass, i, pass.start[i], round_up(pass.disks[i].size, limits::kGranuleSize), feed, sender));
  }
  return {};
}

bool Engine::is_forced(const Pass& pass, std::size_t disk, std::uint64_t begin, std::uint64_t end) {
  return std::any_of(pass.forced[disk].begin(), pass.forced[disk].end(), [&](const GranuleRange& range) {
    return range.first * limits::kGranuleSize < end && begin < (range.first + range.count) * limits::kGranuleSize;
  });
}

Status Engine::read_range(Link& link, Pass& pass, std::size_t index, std::uint64_t begin, std::uint64_t end,
                          DigestFeed* feed, EpochSender& sender) {
  BlockSource& source = sources_[index];
  std::uint64_t data_begin = begin, data_end = begin;  // the stretch of data at or after `at`
  for (std::uint64_t at = begin; at < end;) {
    if (stop_.stop_requested()) return fail(Code::cancelled, "agent", "asked to stop");
    if (pass.freeze) (void)pass.freeze->intact();  // notices a dead watchdog, and then thaws; judge() hears of it
    const auto skip = pass.skip[index].next(at / kChunk);
    const std::uint64_t skip_begin = skip ? std::max(at, skip->first * kChunk) : end;
    const bool skipped = skip_begin == at;
    if (!skipped && at >= data_end) {
      const auto data = source.next_data(at);
      if (!data) return source_failed(data.error());
      // In whole chunks: a chunk is compared as one.
      data_begin = data->begin >= source.size() ? end : std::max(at, round_down(data->begin, kChunk));
      data_end = std::clamp(round_up(data->end, kChunk), data_begin, end);
      if (data_begin < end && data_end <= at) data_end = std::min(end, round_down(at, kChunk) + kChunk);
    }
    const bool hole = skipped || at < data_begin;
    std::uint64_t stop = skipped ? (skip->first + skip->count) * kChunk : hole ? std::min(data_begin, end) : data_end;
    if (!skipped) stop = std::min(stop, skip_begin);
    // A hole without digests travels as it is; everything else in pieces of one region.
    if (!hole || feed != nullptr)
      stop = std::min(stop, round_down(at, EpochSender::kPieceSize) + EpochSender::kPieceSize);
    Piece piece;
    piece.disk = pass.disks[index].disk;
    piece.offset = at;
    piece.size = stop - at;
    if (feed != nullptr) {
      piece.compare = true;
      const auto count = static_cast<std::uint32_t>((piece.size + kChunk - 1) / kChunk);
      std::optional<Pace::Timer> timer(std::in_place, pace_, Stage::server);
      const auto digests = TIDEMARK_TRY(feed->at(piece.disk, at / kChunk, count));
      timer.reset();
      piece.digests.assign(digests.begin(), digests.end());
      for (std::size_t chunk = 0; (chunk + 1) * sizeof(Sha256) <= piece.digests.size(); ++chunk) {
        const std::uint64_t chunk_begin = at + chunk * kChunk;
        if (!is_forced(pass, index, chunk_begin, std::min(chunk_begin + kChunk, stop))) continue;
        // No data has this digest.
        std::fill_n(piece.digests.begin() + static_cast<std::ptrdiff_t>(chunk * sizeof(Sha256)), sizeof(Sha256),
                    std::byte{0});
      }
    }
    if (!hole) {
      piece.buffer = TIDEMARK_TRY(sender.buffer());
      const Pace::Timer timer(pace_, Stage::source);
      if (auto read = source.read_at(at, piece.buffer->span().first(piece.size)); !read)
        return source_failed(read.error());
    }
    TIDEMARK_TRY(sender.push(std::move(piece)));
    if (!skipped) done_bytes_ += stop - at;
    at = stop;
    tell_progress(link, done_bytes_);
  }
  return {};
}

void Engine::tell_progress(Link& link, std::uint64_t done) {
  board_.set_progress(done);
  const auto now = clock_.monotonic();
  if (now - told_ < kTellInterval) return;
  told_ = now;
  link.progress(board_.message());
}

}  // namespace tidemark::agent
