#include "agent/ebpf_tracker.h"

#include <spdlog/spdlog.h>

#include <bit>

namespace tidemark::agent {
namespace {

constexpr int kFlipsMax = 1000;

std::string why_missed(std::uint64_t missed) {
  std::string why;
  const auto add = [&](std::uint64_t bit, const char* text) {
    if ((missed & bit) != 0) why += (why.empty() ? "" : ", ") + std::string(text);
  };
  add(TRACK_MISSED_ZONE, "an operation on zones");
  add(TRACK_MISSED_PASSTHROUGH, "a command sent past the block layer");
  add(TRACK_MISSED_SUBMISSION, "a write whose beginning was not seen");
  add(TRACK_MISSED_IN_FLIGHT, "too many writes in flight");
  add(TRACK_MISSED_GENERATION, "cuts in too quick succession");
  add(TRACK_MISSED_NESTED, "interrupts within interrupts");
  add(TRACK_MISSED_TABLE, "device mapper shows something else than before, or cannot be asked");
  return "writes may have been missed: " + why;
}

}  // namespace

EbpfTracker::EbpfTracker(std::unique_ptr<KernelMarks> marks, const Clock& clock)
    : marks_(std::move(marks)), clock_(clock) {}

void EbpfTracker::clear(unsigned set) {
  for (std::size_t disk = 0; disk < marks_->disks(); ++disk) {
    for (std::uint64_t& word : marks_->words(set, disk)) {
      if (word != 0) word = 0;
    }
  }
}

// What an agent that died had not taken yet. Afterwards the resting set is empty, and nobody marks in it.
Status EbpfTracker::take_rest() {
  TIDEMARK_TRY(marks_->settle());
  for (std::size_t disk = 0; disk < marks_->disks(); ++disk) {
    const auto rest = marks_->words(marks_->resting(), disk);
    const auto taken = marks_->words(TRACK_TAKEN_SET, disk);
    for (std::size_t i = 0; i < rest.size(); ++i) {
      if (rest[i] == 0) continue;
      taken[i] |= rest[i];
      __atomic_store_n(&rest[i], 0, __ATOMIC_SEQ_CST);
    }
  }
  return {};
}

std::vector<track_carried> EbpfTracker::in_flight() const {
  if (planted(Planted::in_flight_forgotten) || planted(Planted::marks_on_completion_only)) return {};
  return marks_->in_flight();
}

void EbpfTracker::mark_carried(unsigned set) {
  for (const track_carried& place : marks_->carried()) marks_->mark(set, place);
}

// Forgets all that was written, and has taken effect, before this call.
Status EbpfTracker::drain() {
  TIDEMARK_TRY(marks_->settle());
  clear(marks_->resting());
  marks_->next_generation();
  TIDEMARK_TRY(marks_->settle());
  clear(marks_->resting());
  clear(TRACK_TAKEN_SET);
  (void)marks_->carry({});
  marks_->control().doubted = 0;
  for (const track_carried& place : in_flight()) marks_->mark(marks_->collecting(), place);
  return {};
}

// Something may have changed without a mark: the sets are worth nothing from here on, until everything was read.
bool EbpfTracker::lost() {
  track_control& control = marks_->control();
  marks_->look_at_tables();
  const auto skipped = marks_->skipped();
  if (!skipped) {
    spdlog::warn("tracking: {}", skipped.error().message());
    doubted_ = true;
  } else {
    // A write whose submission was skipped is found out when it ends, unless that is skipped as well.
    doubted_ = doubted_ || skipped->submissions;
    if (skipped->submissions) control.doubted = 1;
    if (skipped->commands || (skipped->ends && control.doubted != 0))
      __atomic_fetch_or(&control.missed, TRACK_MISSED_NESTED, __ATOMIC_SEQ_CST);
  }
  return __atomic_load_n(&control.missed, __ATOMIC_SEQ_CST) != 0;
}

Result<Suspects> EbpfTracker::begin_round(const RoundStart& start) {
  track_control& control = marks_->control();
  // The epoch that was on its way became durable, or it never will.
  if (control.pending_epoch != 0 && control.pending_epoch == start.base.value()) forget(start.base);
  control.pending_epoch = 0;
  Suspects suspects;
  if (marks_->adopted() || control.base_epoch != 0) {
    suspects.why = "what is marked does not begin with the server's newest epoch";
  } else {
    suspects.why = "the tracking of writes begins: " + marks_->why_new();
  }
  if (lost()) {
    control.base_epoch = control.whole_epoch = 0;
    suspects.why = why_missed(__atomic_exchange_n(&control.missed, 0, __ATOMIC_SEQ_CST));
    control.since_us = static_cast<__u64>(clock_.wall_us());
  }
  first_cut_ = true;
  provable_ = true;
  suspects.covered = start.resumed && control.whole_epoch == start.number.value();
  if (suspects.covered) return suspects;
  if (!start.whole && control.base_epoch != 0 && control.base_epoch == start.base.value()) {
    suspects.everything = false;
    suspects.why.clear();
    return suspects;
  }
  control.base_epoch = control.whole_epoch = 0;
  TIDEMARK_TRY(drain());
  provable_ = !start.resumed;
  if (provable_) control.whole_epoch = start.number.value();
  return suspects;
}

Status EbpfTracker::cut() {
  TIDEMARK_TRY(take_rest());
  reading_taken_ = first_cut_;
  first_cut_ = false;
  doubted_ = false;
  (void)lost();  // counts of what was skipped before the cut do not concern it
  doubted_ = false;
  for (int i = 0; i < kFlipsMax; ++i) {
    cut_us_ = clock_.wall_us();
    marks_->next_generation();
    const WallMicros after = clock_.wall_us();
    TIDEMARK_TRY(marks_->settle());
    if (after - cut_us_ <= kCutWidthUs || i + 1 == kFlipsMax) break;
    // The time of the store is not known well enough: what was marked counts as marked now, and once more.
    for (std::size_t disk = 0; disk < marks_->disks(); ++disk) mark_again(disk);
  }
  mark_carried(marks_->resting());
  if (!marks_->carry(in_flight()))
    __atomic_fetch_or(&marks_->control().missed, TRACK_MISSED_IN_FLIGHT, __ATOMIC_SEQ_CST);
  disk_ = word_ = 0;
  return {};
}

void EbpfTracker::want(std::size_t disk, const GranuleRange& range) {
  const auto taken = marks_->words(TRACK_TAKEN_SET, disk);
  for (std::uint64_t i = range.first; i < range.first + range.count; ++i) taken[i / 64] |= std::uint64_t{1} << (i % 64);
}

std::vector<GranuleRange> EbpfTracker::next(std::size_t& disk, std::uint64_t granules_max) {
  std::vector<GranuleRange> ranges;
  std::uint64_t granules = 0;
  for (; disk_ < marks_->disks(); ++disk_, word_ = 0) {
    const auto rest = marks_->words(marks_->resting(), disk_);
    const auto taken = marks_->words(TRACK_TAKEN_SET, disk_);
    for (; word_ < rest.size(); ++word_) {
      const std::uint64_t marked = rest[word_];
      std::uint64_t due = reading_taken_ ? marked | taken[word_] : marked;
      if (due == 0) continue;
      if (granules + static_cast<std::uint64_t>(std::popcount(due)) > granules_max) return ranges;
      if (marked != 0) {
        taken[word_] |= marked;
        __atomic_store_n(&rest[word_], 0, __ATOMIC_SEQ_CST);
      }
      disk = disk_;
      granules += static_cast<std::uint64_t>(std::popcount(due));
      while (due != 0) {
        const auto first = static_cast<unsigned>(std::countr_zero(due));
        const auto count = static_cast<unsigned>(std::countr_one(due >> first));
        const std::uint64_t granule = word_ * 64 + first;
        if (!ranges.empty() && ranges.back().first + ranges.back().count == granule) {
          ranges.back().count += count;
        } else {
          ranges.push_back({granule, count});
        }
        due = first + count == 64 ? 0 : due >> (first + count) << (first + count);
      }
    }
    if (planted(Planted::cut_per_disk)) cut_the_next_disk();
    if (!ranges.empty()) {
      ++disk_;
      word_ = 0;
      return ranges;
    }
  }
  return ranges;
}

void EbpfTracker::mark_again(std::size_t disk) {
  const auto rest = marks_->words(marks_->resting(), disk);
  const auto now = marks_->words(marks_->collecting(), disk);
  for (std::size_t word = 0; word < rest.size(); ++word) {
    if (rest[word] == 0) continue;
    __atomic_fetch_or(&now[word], rest[word], __ATOMIC_SEQ_CST);
    __atomic_store_n(&rest[word], 0, __ATOMIC_SEQ_CST);
  }
}

// Only as a planted bug.
void EbpfTracker::cut_the_next_disk() {
  for (std::size_t disk = disk_ + 1; disk < marks_->disks(); ++disk) mark_again(disk);
  marks_->next_generation();
  (void)marks_->settle();
}

std::uint64_t EbpfTracker::hits(std::size_t disk, const GranuleRange& range) const {
  return marks_->marked(marks_->collecting(), disk, range.first, range.count);
}

bool EbpfTracker::sound() { return !lost() && !doubted_; }

std::string EbpfTracker::why_lost() {
  return lost() ? why_missed(__atomic_load_n(&marks_->control().missed, __ATOMIC_SEQ_CST)) : std::string();
}

void EbpfTracker::sent(EpochNumber epoch) {
  if (provable_) marks_->control().pending_epoch = epoch.value();
  if (planted(Planted::cleared_before_durable)) clear(TRACK_TAKEN_SET);
}

void EbpfTracker::durable(EpochNumber epoch) {
  if (provable_) forget(epoch);
}

void EbpfTracker::forget(EpochNumber epoch) {
  track_control& control = marks_->control();
  // In this order: who finds the set half cleared finds the pending epoch too.
  control.pending_epoch = epoch.value();
  mark_carried(marks_->collecting());
  (void)marks_->carry({});
  clear(TRACK_TAKEN_SET);
  __atomic_store_n(&control.base_epoch, epoch.value(), __ATOMIC_SEQ_CST);
  control.whole_epoch = 0;
  __atomic_store_n(&control.pending_epoch, 0, __ATOMIC_SEQ_CST);
}

void EbpfTracker::failed() { marks_->control().pending_epoch = 0; }

std::uint64_t EbpfTracker::marked_granules() const {
  std::uint64_t sum = 0;
  for (std::size_t disk = 0; disk < marks_->disks(); ++disk) {
    for (unsigned set = 0; set < TRACK_SETS; ++set) sum += marks_->marked(set, disk, 0, marks_->granules(disk));
  }
  return sum;
}

}  // namespace tidemark::agent
