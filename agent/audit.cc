#include "agent/audit.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "base/crypto.h"
#include "base/limits.h"
#include "base/units.h"

namespace tidemark::agent {
namespace {
constexpr auto kRememberEvery = std::chrono::seconds(10);
}  // namespace

Audit::Audit(std::chrono::milliseconds period, SourceSet& sources, Tracker& tracker, MemoryKeeper& keeper,
             const SkippedChunks& skipped, const Clock& clock, std::stop_token stop)
    : period_(period),
      sources_(sources),
      tracker_(tracker),
      keeper_(keeper),
      skipped_(skipped),
      clock_(clock),
      stop_(std::move(stop)),
      buffer_(kChunksPerLook * kChunk),
      paid_(clock.monotonic()) {}

std::uint64_t Audit::chunks(std::size_t disk) const { return (sources_[disk].size() + kChunk - 1) / kChunk; }

GranuleRange Audit::granules(std::size_t disk, std::uint64_t chunk) const {
  const std::uint64_t all = (sources_[disk].size() + limits::kGranuleSize - 1) / limits::kGranuleSize;
  const std::uint64_t first = chunk * kGranulesPerChunk;
  return {first, std::min(kGranulesPerChunk, all - first)};
}

void Audit::advance(std::uint64_t chunks_done) {
  chunk_ += chunks_done;
  if (chunk_ < chunks(disk_)) return;
  ++disk_;
  chunk_ = 0;
}

// What there is to compare with, if it is a point of these very disks.
bool Audit::know_epoch(const Memory& memory) {
  if (!memory.durable || memory.durable->consistency == Consistency::fuzzy) return false;
  epoch_ = memory.durable->number;
  disks_.clear();
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    for (const KnownDisk& disk : memory.durable->disks) {
      if (disk.identity == sources_[i].identity() && disk.size == sources_[i].size()) disks_.push_back(disk);
    }
  }
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (!skipped_.count(sources_[i].identity())) return false;  // it is known after the next pass over everything
  }
  return disks_.size() == sources_.size();
}

// Goes on with the pass of the run before, or begins one. What was busy then lies at or behind the remembered place.
void Audit::find_place(const Memory& memory) {
  placed_ = true;
  record_ = memory.audit;
  disk_ = 0;
  chunk_ = 0;
  for (std::size_t i = 0; i < sources_.size() && record_.pass_began_us != 0; ++i) {
    if (sources_[i].identity() != record_.disk) continue;
    disk_ = i;
    advance(std::min(record_.chunk, chunks(i)));
    return;
  }
  record_.pass_began_us = 0;
}

Status Audit::remember() {
  remembered_ = clock_.monotonic();
  auto place = std::pair(disk_, chunk_);
  for (const Busy& busy : busy_) place = std::min(place, std::pair(busy.disk, busy.chunk));
  // All was met: what is left is to see the last epoch that carried some of it.
  record_.disk = sources_[std::min(place.first, sources_.size() - 1)].identity();
  record_.chunk = place.first < sources_.size() ? place.second : chunks(sources_.size() - 1);
  return keeper_.change([&](Memory& memory) {
    const WallMicros proven_us = std::max(memory.audit.proven_us, record_.proven_us);
    memory.audit = record_;
    memory.audit.proven_us = proven_us;
  });
}

Status Audit::end_pass() {
  if (record_.pass_incomplete) {
    spdlog::warn("audit: the pass is over, but parts of the disks could not be read: it proves nothing");
  } else {
    record_.proven_us = record_.pass_began_us;
    spdlog::info("audit: every block was compared or sent since then: the replica is complete as_of={}",
                 format_rfc3339(record_.pass_began_us));
  }
  record_.pass_began_us = 0;
  record_.pass_incomplete = false;
  disk_ = 0;
  chunk_ = 0;
  return remember();
}

Result<std::vector<Audit::Verdict>> Audit::compare(const Digests& digests, std::size_t disk, std::uint64_t first,
                                                   std::uint32_t count) {
  const std::vector<std::byte> expected = TIDEMARK_TRY(digests(disks_[disk].disk, first, count, epoch_));
  const GranuleRange last = granules(disk, first + count - 1);
  const auto plain = buffer_.span().first((last.first + last.count - first * kGranulesPerChunk) * limits::kGranuleSize);
  // Read first, then asked: whoever writes between the two is not missed.
  if (const auto read = sources_[disk].read_at(first * kChunk, plain); !read) {
    spdlog::warn("audit: {}", read.error().message());
    return std::vector<Verdict>(count, Verdict::unreadable);
  }
  std::vector<Verdict> verdicts(count, Verdict::unknown);
  for (std::uint32_t i = 0; i < count && (i + 1) * sizeof(Sha256) <= expected.size(); ++i) {
    const GranuleRange range = granules(disk, first + i);
    if (skipped_.covers(sources_[disk].identity(), first + i, first + i + 1)) {
      verdicts[i] = Verdict::same;  // as far as anybody can refer to it
      continue;
    }
    const Sha256 digest = sha256(plain.subspan(i * kChunk, range.count * limits::kGranuleSize));
    const bool same = std::memcmp(expected.data() + i * sizeof(Sha256), digest.data(), sizeof(Sha256)) == 0;
    verdicts[i] = same ? Verdict::same : tracker_.hits(disk, range) != 0 ? Verdict::busy : Verdict::differs;
  }
  // What may have escaped the tracker since the epoch would look like a wrong replica.
  if (!tracker_.sound()) std::replace(verdicts.begin(), verdicts.end(), Verdict::differs, Verdict::busy);
  return verdicts;
}

Status Audit::judge(std::size_t disk, std::uint64_t chunk, Verdict verdict, int tries) {
  switch (verdict) {
    case Verdict::same: return {};
    case Verdict::busy:
      if (tries + 1 < kTries) {
        busy_.push_back({disk, chunk, tries + 1});
      } else {
        tracker_.want(disk, granules(disk, chunk));
      }
      return {};
    case Verdict::unknown:  // the server has lost it, and asks for it by itself
      tracker_.want(disk, granules(disk, chunk));
      return {};
    case Verdict::unreadable: record_.pass_incomplete = true; return {};
    case Verdict::differs: break;
  }
  tracker_.want(disk, granules(disk, chunk));
  ++record_.differences;
  record_.difference_us = clock_.wall_us();
  record_.difference =
      fmt::format("{}: {} bytes at {} differed from the replica although no write was seen; {}", sources_[disk].path(),
                  granules(disk, chunk).count * limits::kGranuleSize, chunk * kChunk,
                  record_.proven_us == 0
                      ? "recovery points up to then may be wrong there"
                      : "recovery points from " + format_rfc3339(record_.proven_us) + " up to then may be wrong there");
  spdlog::error("ALARM: audit: {}; it is sent again", record_.difference);
  return remember();
}

// At what was busy. One leaves the list when it was judged: whatever fails, none is forgotten, or the pass would prove
// what it has not seen.
Status Audit::look_again(const Digests& digests, std::chrono::steady_clock::time_point until) {
  for (std::size_t left = busy_.size(); left > 0; --left) {
    if (stop_.stop_requested() || clock_.monotonic() >= until) return {};
    const Busy busy = busy_.front();
    const auto verdicts = TIDEMARK_TRY(compare(digests, busy.disk, busy.chunk, 1));
    owed_bytes_ -= static_cast<double>(kChunk);
    TIDEMARK_TRY(judge(busy.disk, busy.chunk, verdicts.front(), busy.tries));  // to the end of the list, if it is again
    busy_.pop_front();
  }
  return {};
}

Status Audit::step(const Digests& digests, std::chrono::steady_clock::time_point until) {
  const auto now = clock_.monotonic();
  const double rate = static_cast<double>(sources_.total_bytes()) / std::chrono::duration<double>(period_).count();
  owed_bytes_ += rate * std::chrono::duration<double>(now - paid_).count();
  owed_bytes_ = std::min(owed_bytes_, static_cast<double>(std::max(kBytesOwedMax, kChunksPerLook * kChunk)));
  paid_ = now;

  const Memory memory = keeper_.get();
  if (!know_epoch(memory)) return {};
  if (!placed_) find_place(memory);
  record_.proven_us = std::max(record_.proven_us, memory.audit.proven_us);

  const auto due = [&] { return owed_bytes_ >= static_cast<double>(kChunk) && clock_.monotonic() < until; };
  // The last of it was proven by the epoch before this step, if by nothing else; what is looked at again now may have
  // to be sent first.
  if (disk_ == sources_.size() && busy_.empty()) TIDEMARK_TRY(end_pass());
  TIDEMARK_TRY(look_again(digests, until));
  if (record_.pass_began_us == 0 && due()) {
    record_.pass_began_us = clock_.wall_us();
    TIDEMARK_TRY(remember());
  }
  while (disk_ < sources_.size() && due() && !stop_.stop_requested()) {
    // A look lies within one stretch of kChunksPerLook, which the digests are asked for by.
    const std::uint64_t left = std::min(chunks(disk_) - chunk_, kChunksPerLook - chunk_ % kChunksPerLook);
    if (owed_bytes_ < static_cast<double>(left * kChunk)) break;
    const auto verdicts = TIDEMARK_TRY(compare(digests, disk_, chunk_, static_cast<std::uint32_t>(left)));
    owed_bytes_ -= static_cast<double>(left * kChunk);
    for (std::uint64_t i = 0; i < left; ++i) TIDEMARK_TRY(judge(disk_, chunk_ + i, verdicts[i], 0));
    advance(left);
  }
  if (clock_.monotonic() - remembered_ >= kRememberEvery) return remember();
  return {};
}

}  // namespace tidemark::agent
