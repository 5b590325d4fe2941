#include "storage/ladder.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/planted.h"
#include "storage/epoch_progress.h"

namespace tidemark::storage {

namespace {

constexpr WallMicros kSecond = 1'000'000;

WallMicros micros(std::uint64_t seconds) { return static_cast<WallMicros>(seconds) * kSecond; }

// "10m", "6h", "30d", "90s".
std::string duration_text(std::uint64_t seconds) {
  if (seconds != 0 && seconds % 86'400 == 0) return fmt::format("{}d", seconds / 86'400);
  if (seconds != 0 && seconds % 3'600 == 0) return fmt::format("{}h", seconds / 3'600);
  if (seconds != 0 && seconds % 60 == 0) return fmt::format("{}m", seconds / 60);
  return fmt::format("{}s", seconds);
}

// Of times before 1970 too: a broken clock is no reason to fail.
std::int64_t bucket_of(WallMicros time_us, std::uint64_t every_s) {
  const WallMicros every = micros(every_s);
  return time_us >= 0 ? time_us / every : (time_us + 1) / every - 1;
}

// One look at a machine's epochs.
class Look {
 public:
  Look(std::span<const LadderEpoch> epochs, const pb::MachineRecord& record, const Guards& guards, WallMicros now_us)
      : epochs_(epochs), record_(record), guards_(guards), now_us_(now_us), protected_(epochs.size()) {
    since_.reserve(epochs.size());
    for (const LadderEpoch& epoch : epochs) since_.push_back(epoch.arrival_us);
    // From the back, so that the next epoch that is not of the future is known.
    std::optional<WallMicros> next;
    for (std::size_t i = epochs.size(); i-- > 0;) {
      if (epochs[i].arrival_us <= now_us) {
        next = epochs[i].arrival_us;
      } else if (next) {
        since_[i] = *next;
      }
    }
    for (std::size_t i = epochs.size(); i-- > 0 && !newest_point_;)
      if (epochs[i].point) newest_point_ = i;
    const auto until = [&](const LadderEpoch& newest) {
      return std::min({now_us, newest.arrival_us, newest.rung_us()});
    };
    if (newest_point_) points_until_ = until(epochs[*newest_point_]);
    if (!epochs.empty()) epochs_until_ = until(epochs.back());
  }

  // Tells every hold there is.
  template <typename Tell>  // (index, Hold)
  void tell(const Tell& tell) {
    if (epochs_.empty()) return;
    std::vector<bool> unchecked(
        epochs_.size());  // kept as the newest that is verified, and for nothing else that matters
    const auto guard = [&](std::size_t i, const Hold& hold) {
      unchecked[i] = hold.kind == Hold::Kind::newest_verified && !protected_[i];
      protected_[i] = true;
      tell(i, hold);
    };
    guard(epochs_.size() - 1, {.kind = Hold::Kind::newest_epoch});
    if (newest_point_) guard(*newest_point_, {.kind = Hold::Kind::newest_point});
    if (guards_.newest_verified)
      if (const auto at = find(*guards_.newest_verified)) guard(*at, {.kind = Hold::Kind::newest_verified});
    for (const EpochNumber number : guards_.in_use)
      if (const auto at = find(number)) guard(*at, {.kind = Hold::Kind::in_use});
    for (const pb::PinRecord& pin : record_.pins()) {
      if (!is_in_force(pin, now_us_) || planted(Planted::prune_ignores_pins)) continue;
      if (pin.until_us() != 0) due(pin.until_us());
      if (const auto at = find(EpochNumber(pin.epoch())))
        guard(*at, {.kind = Hold::Kind::pin, .pin = pin.name(), .until_us = pin.until_us()});
    }
    removed_.assign(epochs_.size(), false);
    for (const pb::RemovalRecord& removal : record_.removals()) {
      if (removal.epoch() == 0) continue;
      const auto at = find(EpochNumber(removal.epoch()));
      if (removal.effective_us() > now_us_) {
        if (at) due(removal.effective_us());
      } else if (at && !protected_[*at]) {
        removed_[*at] = true;
      } else if (at && unchecked[*at]) {
        waits_for_check_ = true;
      }
    }
    by_ladder(ladder_of(record_), 0, tell);
    for (const pb::FormerLadderRecord& former : record_.former_ladders()) {
      if (former.until_us() <= now_us_) continue;
      due(former.until_us());
      by_ladder(from_record(former.ladder()), former.until_us(), tell);
    }
  }

  std::optional<WallMicros> next_due_us() const { return next_due_; }
  bool waits_for_check() const { return waits_for_check_; }

 private:
  std::optional<std::size_t> find(EpochNumber number) const {
    const auto at = std::lower_bound(epochs_.begin(), epochs_.end(), number,
                                     [](const LadderEpoch& epoch, EpochNumber n) { return epoch.number < n; });
    if (at == epochs_.end() || at->number != number) return std::nullopt;
    return static_cast<std::size_t>(at - epochs_.begin());
  }

  void due(WallMicros at_us) { next_due_ = std::min(next_due_.value_or(at_us), at_us); }

  template <typename Tell>
  void by_ladder(const Ladder& ladder, WallMicros former_until_us, const Tell& tell) {
    const bool former = former_until_us != 0;
    const auto until = [&](WallMicros own) { return former ? std::min(own, former_until_us) : own; };
    for (std::size_t i = 0; i < epochs_.size(); ++i) {
      const WallMicros ends = since_[i] + micros(ladder.dense_s);
      const WallMicros to = epochs_[i].point ? points_until_ : epochs_until_;
      if (removed_[i] || ends <= to) continue;
      tell(i, Hold{.kind = Hold::Kind::dense, .former = former, .until_us = until(ends)});
      // Where the clock is behind the newest arrival, time alone ends it; else a newer one must come.
      const LadderEpoch& newest = epochs_[i].point ? epochs_[*newest_point_] : epochs_.back();
      if (newest.arrival_us > now_us_) due(ends);
    }
    for (const Rung& rung : ladder.rungs) by_rung(rung, former, until, tell);
  }

  template <typename Until, typename Tell>
  void by_rung(const Rung& rung, bool former, const Until& until, const Tell& tell) {
    // From the newest back: a point is the first of its bucket when the one before it is of another.
    std::uint64_t left = rung.points();
    std::optional<std::size_t> candidate;
    const auto take = [&] {
      const std::int64_t bucket = bucket_of(epochs_[*candidate].rung_us(), rung.every_s);
      const auto last = static_cast<std::int64_t>(rung.points());
      tell(*candidate, Hold{.kind = Hold::Kind::rung,
                            .every_s = rung.every_s,
                            .former = former,
                            .until_us = until((bucket + last) * micros(rung.every_s))});
      --left;
    };
    for (std::size_t i = epochs_.size(); i-- > 0 && left > 0;) {
      if (!epochs_[i].point || removed_[i]) continue;
      if (candidate &&
          bucket_of(epochs_[i].rung_us(), rung.every_s) != bucket_of(epochs_[*candidate].rung_us(), rung.every_s))
        take();
      candidate = i;
    }
    if (candidate && left > 0) take();
  }

  const std::span<const LadderEpoch> epochs_;
  const pb::MachineRecord& record_;
  const Guards& guards_;
  const WallMicros now_us_;
  std::vector<WallMicros> since_;  // from when an epoch's age counts
  std::vector<bool> protected_;    // by more than the ladder
  std::vector<bool> removed_;      // a removal is due, and nothing protects it
  std::optional<std::size_t> newest_point_;
  WallMicros points_until_ = std::numeric_limits<WallMicros>::min();  // to when ages count
  WallMicros epochs_until_ = std::numeric_limits<WallMicros>::min();
  std::optional<WallMicros> next_due_;
  bool waits_for_check_ = false;
};

}  // namespace

const Ladder& default_ladder() {
  static const Ladder ladder{.dense_s = 3'600, .rungs = {{600, 21'600}, {3'600, 86'400}, {86'400, 30 * 86'400}}};
  return ladder;
}

const Ladder& ladder_of_60() {
  static const Ladder ladder{.dense_s = 600, .rungs = {{600, 3'600}, {3'600, 86'400}, {86'400, 30 * 86'400}}};
  return ladder;
}

Status check_ladder(const Ladder& ladder) {
  const auto wrong = [](const std::string& object, const std::string& what, const std::string& remedy) {
    return fail(Code::invalid_argument, object, what, remedy);
  };
  if (ladder.dense_s == 0 && ladder.rungs.empty())
    return wrong("ladder", "it keeps nothing", "give a dense window, or rungs like 1h:24h, or both");
  if (ladder.dense_s > kDenseSecondsMax)
    return wrong("dense window", fmt::format("{} is too long", duration_text(ladder.dense_s)),
                 fmt::format("every epoch can be kept for {} at most; add rungs for what is older",
                             duration_text(kDenseSecondsMax)));
  if (ladder.rungs.size() > kRungsMax)
    return wrong("ladder", fmt::format("it has {} rungs", ladder.rungs.size()),
                 fmt::format("allowed are {} at most", kRungsMax));
  std::uint64_t points = 0;
  for (const Rung& rung : ladder.rungs) {
    const std::string object = fmt::format("rung {}:{}", duration_text(rung.every_s), duration_text(rung.keep_s));
    if (rung.every_s == 0 || rung.keep_s == 0)
      return wrong(object, "it keeps nothing", "write EVERY:SPAN, like 10m:6h for 36 ten-minute points");
    if (rung.keep_s < rung.every_s)
      return wrong(object, "it keeps nothing: its span is shorter than its step",
                   "write EVERY:SPAN, like 1d:30d for 30 daily points");
    if (rung.every_s > kRungSecondsMax || rung.keep_s > kRungSecondsMax)
      return wrong(object, "it is too long", fmt::format("allowed is {} at most", duration_text(kRungSecondsMax)));
    points += rung.points();
    if (points > kRungPointsMax)
      return wrong(object, fmt::format("with it the rungs would keep {} points", points),
                   fmt::format("they keep {} at most: take a longer step or a shorter span", kRungPointsMax));
    if (std::count_if(ladder.rungs.begin(), ladder.rungs.end(),
                      [&](const Rung& other) { return other.every_s == rung.every_s; }) > 1)
      return wrong(object, "another rung has the same step", "name each step once");
  }
  return {};
}

bool keeps_at_least(const Ladder& more, const Ladder& less) {
  return more.dense_s >= less.dense_s && std::all_of(less.rungs.begin(), less.rungs.end(), [&](const Rung& rung) {
           return std::any_of(more.rungs.begin(), more.rungs.end(), [&](const Rung& other) {
             return other.every_s == rung.every_s && other.points() >= rung.points();
           });
         });
}

std::string to_string(const Ladder& ladder) {
  std::string text;
  if (ladder.dense_s != 0) text = "all for " + duration_text(ladder.dense_s);
  for (const Rung& rung : ladder.rungs)
    text +=
        fmt::format("{}{} for {}", text.empty() ? "" : ", ", duration_text(rung.every_s), duration_text(rung.keep_s));
  return text;
}

// What a record of the future or of a damaged log may say is cut to what this code can count with.
Ladder from_record(const pb::LadderRecord& record) {
  Ladder ladder{.dense_s = std::min(record.dense_s(), kDenseSecondsMax), .rungs = {}};
  for (const auto& rung : record.rungs()) {
    if (rung.every_s() == 0 || rung.every_s() > kRungSecondsMax || rung.keep_s() == 0) continue;
    ladder.rungs.push_back({rung.every_s(), std::min(rung.keep_s(), kRungSecondsMax)});
  }
  return ladder;
}

pb::LadderRecord to_record(const Ladder& ladder) {
  pb::LadderRecord record;
  record.set_dense_s(ladder.dense_s);
  for (const Rung& rung : ladder.rungs) {
    auto* const added = record.add_rungs();
    added->set_every_s(rung.every_s);
    added->set_keep_s(rung.keep_s);
  }
  return record;
}

Ladder ladder_of(const pb::MachineRecord& record) {
  if (record.has_clone()) return {};
  return record.has_ladder() ? from_record(record.ladder()) : default_ladder();
}

Status set_ladder(pb::MachineRecord& record, const Ladder& ladder, WallMicros now_us, WallMicros former_until_us) {
  TIDEMARK_TRY(check_ladder(ladder));
  const Ladder before = ladder_of(record);
  auto& formers = *record.mutable_former_ladders();
  const auto kept = std::remove_if(formers.begin(), formers.end(), [&](const pb::FormerLadderRecord& former) {
    return former.until_us() <= now_us || keeps_at_least(ladder, from_record(former.ladder()));
  });
  formers.erase(kept, formers.end());
  if (former_until_us > now_us && !keeps_at_least(ladder, before)) {
    if (static_cast<std::size_t>(formers.size()) >= kFormerLaddersMax)
      return fail(Code::busy, "ladder",
                  fmt::format("it was changed {} times lately, and what each kept stays for now", formers.size()),
                  "wait, or set it back to one of the former ones");
    auto* const former = formers.Add();
    *former->mutable_ladder() = to_record(before);
    former->set_until_us(former_until_us);
  }
  *record.mutable_ladder() = to_record(ladder);
  return {};
}

LadderEpoch ladder_epoch(const pb::EpochEntry& entry) {
  constexpr WallMicros kFar = std::numeric_limits<WallMicros>::max() / 4;  // so that sums cannot overflow
  return {EpochNumber(entry.number()), std::clamp(entry.arrival_us(), -kFar, kFar), entry.consistency() != kFuzzy,
          std::clamp(entry.rung_offset_us(), -kFar, kFar)};
}

void guard_newest_verified(Guards& guards, std::span<const pb::EpochEntry> epochs) {
  guards.newest_verified.reset();
  guards.unread = false;
  for (const pb::EpochEntry& epoch : epochs) {
    if (epoch.number() == 0 || !ladder_epoch(epoch).point) continue;  // 0: what a clone stands on
    if (epoch.verified() || epoch.was_verified()) {
      guards.newest_verified = std::max(guards.newest_verified.value_or(EpochNumber()), EpochNumber(epoch.number()));
    } else if (!epoch.damaged()) {
      guards.unread = true;
    }
  }
  if (guards.newest_verified) guards.unread = false;
}

Decision decide(std::span<const LadderEpoch> epochs, const pb::MachineRecord& record, const Guards& guards,
                WallMicros now_us) {
  Decision decision;
  if (guards.unread) {
    for (const LadderEpoch& epoch : epochs) decision.keep.push_back(epoch.number);
    decision.waits_for_check = true;
    return decision;
  }
  std::vector<LadderEpoch> left(epochs.begin(), epochs.end());
  // Again as long as something goes: without points that stood between them, buckets of a clock that was set back can
  // become one.
  while (true) {
    Look look(left, record, guards, now_us);
    std::vector<bool> held(left.size()), held_otherwise(left.size());
    look.tell([&](std::size_t i, const Hold& hold) {
      held[i] = true;
      if (hold.kind != Hold::Kind::newest_verified) held_otherwise[i] = true;
    });
    decision.next_due_us = look.next_due_us();
    decision.waits_for_check = look.waits_for_check() || held != held_otherwise;
    std::vector<LadderEpoch> stay;
    for (std::size_t i = 0; i < left.size(); ++i) {
      if (held[i]) {
        stay.push_back(left[i]);
      } else {
        decision.drop.push_back(left[i].number);
      }
    }
    const bool done = stay.size() == left.size();
    left = std::move(stay);
    if (done) break;
  }
  std::sort(decision.drop.begin(), decision.drop.end());
  for (const LadderEpoch& epoch : left) decision.keep.push_back(epoch.number);
  return decision;
}

std::vector<std::vector<Hold>> explain(std::span<const LadderEpoch> epochs, const pb::MachineRecord& record,
                                       const Guards& guards, WallMicros now_us) {
  std::vector<std::vector<Hold>> holds(epochs.size());
  Look(epochs, record, guards, now_us).tell([&](std::size_t i, const Hold& hold) { holds[i].push_back(hold); });
  return holds;
}

std::vector<EpochNumber> gone_removals(const pb::MachineRecord& record, std::span<const LadderEpoch> epochs) {
  std::vector<EpochNumber> gone;
  for (const pb::RemovalRecord& removal : record.removals()) {
    const EpochNumber number(removal.epoch());
    if (number != EpochNumber() &&
        !std::binary_search(epochs.begin(), epochs.end(), LadderEpoch{.number = number},
                            [](const auto& a, const auto& b) { return a.number < b.number; }))
      gone.push_back(number);
  }
  return gone;
}

bool tidy_retention(pb::MachineRecord& record, std::span<const EpochNumber> gone, WallMicros now_us) {
  const auto drop_if = [](auto& list, const auto& over) {
    const auto end = std::remove_if(list.begin(), list.end(), over);
    const bool any = end != list.end();
    list.erase(end, list.end());
    return any;
  };
  const bool pins = drop_if(*record.mutable_pins(), [&](const auto& pin) { return !is_in_force(pin, now_us); });
  const bool removals = drop_if(*record.mutable_removals(), [&](const auto& removal) {
    return std::find(gone.begin(), gone.end(), EpochNumber(removal.epoch())) != gone.end();
  });
  const bool formers =
      drop_if(*record.mutable_former_ladders(), [&](const auto& former) { return former.until_us() <= now_us; });
  return pins || removals || formers;
}

bool is_in_force(const pb::PinRecord& pin, WallMicros now_us) { return pin.until_us() == 0 || pin.until_us() > now_us; }

const pb::RemovalRecord* machine_removal(const pb::MachineRecord& record) {
  for (const pb::RemovalRecord& removal : record.removals())
    if (removal.epoch() == 0) return &removal;
  return nullptr;
}

}  // namespace tidemark::storage
