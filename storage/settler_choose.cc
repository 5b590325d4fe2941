// Which segments of the log are settled, and when.
//
// What a point shows for a day at most need not be moved at all, if its segment waits for a day; so a segment that is
// still mostly live waits until all but the lasting points have thinned out. One that is nearly all live even then, as
// those of an initial sync are, stays as it is: moving it would write everything once more and win nothing. It is
// looked at again when the index refers to less of it.
//
// Where the file system is nearly full, nothing waits for a day. With less than SettlerOptions::short_below left
// nothing waits at all, and when there is nothing better to settle, what was left as it is is moved too, for the little
// that it gives; but for segments of which moving would give nothing. Fewer are moved at a time then, and none before
// what was emptied is given back.
//
// A segment that stays is a part of the log as any other: the index counts what refers to it, a rebuild of the index
// walks through it, and the chain leads from it over the neighbours that were given back (storage/released.h).
#include <algorithm>
#include <cstring>

#include "base/aligned_buffer.h"
#include "storage/log_format.h"
#include "storage/segment_keeper.h"
#include "storage/settler_impl.h"

namespace tidemark::storage {

namespace {

constexpr std::uint64_t kNearlyFull = 10;  // available: a tenth of the file system, or less

// What the copy of a segment of the log takes beside its blocks, and a little to gain: head, foot and table of the cold
// segment.
constexpr std::uint64_t least_gain(std::uint64_t size) { return size / 64 + 4 * limits::kIoAlignment; }

}  // namespace

// What stands in a segment is as old as the commits that follow it in the next one.
Result<std::optional<WallMicros>> Settler::age_of(SegmentId segment, SegmentId successor) {
  auto filled = filled_.find(segment);
  if (filled == filled_.end()) {
    const auto opened = files_.open(segment_path(directory_ + "/log", successor), OpenMode::read, false);
    if (!opened && opened.error().code == Code::not_found) return std::nullopt;  // just given back: its own successor
    if (!opened) return std::unexpected(opened.error());
    const auto& file = *opened;
    AlignedBuffer block(limits::kIoAlignment);
    if (TIDEMARK_TRY(file->read_at(limits::kIoAlignment, block.span())) < sizeof(CommitHeader)) return std::nullopt;
    CommitHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    // Believed for its time only, and only if it is of this segment: nothing is lost if it is not.
    if (header.magic != kCommitMagic || header.segment != successor.value()) return std::nullopt;
    filled = filled_.emplace(segment, header.arrival_us).first;
  }
  filled->second = std::min(filled->second, clock_.wall_us());  // by a clock that was set back since: as of now
  return clock_.wall_us() - filled->second;
}

// It was looked at, and too little of it went since to look again.
bool Settler::stays(SegmentId segment, std::uint64_t references) const {
  const auto kept = index().kept_with(segment);
  return kept && options_.log_garbage_max >= 0 &&
         static_cast<double>(references) >= static_cast<double>(*kept) * (1 - options_.log_garbage_max);
}

// Likewise, with little space.
bool Settler::gives_nothing(SegmentId segment, std::uint64_t references) const {
  const auto found = full_.find(segment);
  return found != full_.end() && references >= found->second;
}

bool Settler::waits_for_age(SegmentId segment, std::uint64_t references, WallMicros age_us) const {
  if (age_us >= options_.settle_after_us * static_cast<WallMicros>(options_.mature_after)) return false;
  const auto most = most_.find(segment);
  const double share = most == most_.end() ? 1 : static_cast<double>(references) / static_cast<double>(most->second);
  return share > 1 - options_.wait_garbage_max && !nearly_full();
}

bool Settler::nearly_full() const {
  const auto space = files_.space(directory_);
  return space && space->available < space->total / kNearlyFull;
}

bool Settler::short_of_space() const {
  const auto space = files_.space(directory_);
  return space && space->available < options_.short_below;
}

// With little space, what was emptied is given back before anything else is copied.
bool Settler::waits_for_space() const {
  return short_of_space() && std::ranges::any_of(index().unreferenced_segments(), [&](SegmentId segment) {
           return !context_->pins.kept_by_readers(segment);
         });
}

// What is moved takes its room anew before the old one is given back: with little space, fewer at a time.
std::size_t Settler::victims_now(std::uint64_t segment_size) const {
  const auto space = files_.space(directory_);
  if (!space) return 1;
  return std::clamp<std::uint64_t>(space->available / (4 * segment_size), 1, options_.victims_max);
}

// `now`: space is short; `left_too`: those as well that were left as they are.
Result<std::vector<SegmentId>> Settler::choose(bool now, bool left_too) {
  const auto segments = index().segments();
  const SegmentId current = index().mark().segment;
  const std::size_t victims_max = victims_now(options_.segment_size);
  std::vector<SegmentId> victims;
  std::uint64_t due = 0;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const auto& [segment, references] = segments[i];
    if (is_cold(segment)) break;
    std::uint64_t& most = most_[segment];
    most = std::max(most, references);
    if (segment >= current) continue;
    if (i + 1 == segments.size() || is_cold(segments[i + 1].first)) break;
    if (left_too ? gives_nothing(segment, references) : stays(segment, references)) continue;
    if (references == 0 || waits_.contains(segment) || was_tried(segment)) continue;
    if (!now && options_.settle_after_us != 0) {
      const auto age = TIDEMARK_TRY(age_of(segment, segments[i + 1].first));
      if (!age || *age < options_.settle_after_us || waits_for_age(segment, references, *age)) continue;
    }
    ++due;
    if (victims.size() < victims_max) victims.push_back(segment);
  }
  const std::lock_guard lock(mutex_);
  stats_.segments_due = due;
  return victims;
}

Result<bool> Settler::settle_some() {
  if (waits_for_space()) return false;
  const auto gone = [&](const auto& entry) { return !index().knows_segment(entry.first); };
  std::erase_if(tried_, gone);
  std::erase_if(filled_, gone);
  std::erase_if(most_, gone);
  std::erase_if(full_, gone);
  std::erase_if(waits_, [&](const auto& wait) {
    const auto open = index().open_epoch(wait.second.first);
    return !open || open->number() != wait.second.second.value();
  });
  const bool now = short_of_space();
  std::vector<SegmentId> victims = TIDEMARK_TRY(choose(now, false));
  if (now && victims.empty()) victims = TIDEMARK_TRY(choose(now, true));
  if (victims.empty()) return false;
  left_.clear();
  TIDEMARK_TRY(settle_each(victims));
  for (const SegmentId segment : victims) {
    if (!left_.contains(segment)) tried(segment);  // what was left may be moved as soon as space is short
  }
  return true;
}

Status Settler::leave_live(Move& move) {
  if (options_.log_garbage_max < 0 || move.sizes.empty()) return {};
  std::map<SegmentId, std::uint64_t> live;  // bytes
  bool encrypted = false;                   // the volume at hand: what is still in the clear is better moved
  const auto look = [&](Version& version, std::vector<Version>& to) -> Status {
    to.push_back(version);
    const bool counts = version.extent.encoding != wire::Encoding::zero && (version.extent.sealed || !encrypted);
    if (counts && move.sizes.contains(version.segment)) {
      live[version.segment] +=
          limits::kBlockHeaderSize + version.extent.stored_size * version.shown.count() / version.extent.count;
    }
    return {};
  };
  std::vector<RegionChange> changes;
  for (const auto& [volume, regions] : move.regions) {
    for (const std::uint32_t region : regions) {
      if (stopping()) return fail(Code::cancelled, directory_, "it is being closed");
      Machine* const machine = TIDEMARK_TRY(machine_of(move, volume));
      if (machine == nullptr) break;
      encrypted = machine->encrypted.contains(volume);
      if (auto folded = TIDEMARK_TRY(fold_region(*machine, volume, region, look)))
        changes.push_back(*std::move(folded));
      if (changes.size() >= 1024) TIDEMARK_TRY(change(changes, {}));
    }
  }
  TIDEMARK_TRY(change(changes, {}));
  const bool now = short_of_space();
  for (const auto& [segment, size] : move.sizes) {
    const auto usual = static_cast<std::uint64_t>(static_cast<double>(size) * (1 - options_.log_garbage_max));
    const std::uint64_t full = size - std::min(size, least_gain(size));
    const bool again = now && index().kept_with(segment);  // space is short, and this one was left before
    left_.erase(segment);
    if (live[segment] < (again ? std::max(usual, full) : usual)) continue;
    left_.insert(segment);
    const std::uint64_t references = TIDEMARK_TRY(index().live_references(segment));
    TIDEMARK_TRY(indexer_.call([&](Index& index) { return index.note_kept(segment, references); }));
    if (again) full_[segment] = references;
    move.victims.erase(segment);
    move.files.erase(segment);
    const std::lock_guard lock(mutex_);
    ++stats_.segments_kept;
  }
  return {};
}

}  // namespace tidemark::storage
