// The retention ladder: which epochs of a machine stay as they age. Pure functions, no I/O, no clock of their own.
//
// What holds an epoch:
//   dense     every epoch, fuzzy ones too, for the dense window
//   rung      the first point of each UTC bucket (10 minutes, an hour, a day ...), of the newest keep/every buckets
//             that have a point at all, the one in progress included
//   pin       a point that an administrator pinned, until the pin ends
//   in use    a point that a clone, an export or a running read needs
//   newest    the newest point, the newest verified point, and the newest epoch: what follows builds on it
// An epoch that nothing holds is dropped. A removal that is due overrides dense and rung, and nothing else.
//
// Rungs count buckets, not days, and that is on purpose. For a machine that makes points all the time it is the same.
// But a machine that died, slept for a month, or came back with a wrecked disk keeps what it had, until as many newer
// hours and days took its place; and a clock that leaps by years begins one bucket, and costs one point a rung, the
// oldest. Which bucket a point is in goes by a clock that leaps neither way before the leap has lasted
// (storage/retention.h): what that was ahead of the arrival is the point's rung offset.
//
// Whether a bucket is a new one is seen by comparing a point with the point before it, in order of number: times of a
// clock that was set back and forth make more buckets then, never fewer.
//
// The age of an epoch, for the dense window, is counted
//   to    the arrival of the machine's newest point (for fuzzy epochs: of its newest epoch), by the clock that had it
//         earlier, but not beyond `now_us`: whoever sends nothing loses nothing, and has nothing that must be looked at
//   from  its arrival; but where that is later than `now_us` (the clock was ahead when it came, and was set back), from
//         the arrival of the next epoch that is not
// `now_us` must come from a clock that does not leap ahead: storage/retention.h has the rule. With a clock that went
// back everything is younger, and nothing is dropped.
//
// An epoch that was dropped does not come back: with times that never go back, what decide() keeps of what is left
// is what it would keep of everything that ever was.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/records.pb.h"

namespace tidemark::storage {

inline constexpr std::size_t kRungsMax = 16;
inline constexpr std::uint64_t kRungPointsMax = 4'000;  // of all rungs: one record tells of them all
inline constexpr std::uint64_t kDenseSecondsMax = 31ULL * 86'400;
inline constexpr std::uint64_t kRungSecondsMax = 100ULL * 366 * 86'400;
inline constexpr std::size_t kFormerLaddersMax = 16;
inline constexpr std::size_t kPinsMax = 256;      // per machine: its record is written whole
inline constexpr std::size_t kRemovalsMax = 256;  // likewise

struct Rung {
  std::uint64_t every_s = 0;
  std::uint64_t keep_s = 0;
  std::uint64_t points() const { return (keep_s + every_s - 1) / every_s; }  // of a checked one
  bool operator==(const Rung&) const = default;
};

struct Ladder {
  std::uint64_t dense_s = 0;
  std::vector<Rung> rungs;
  bool operator==(const Ladder&) const = default;
};

// Every epoch for 1 h, then 10-minute points for 6 h, hourly ones for 24 h, daily ones for 30 days.
const Ladder& default_ladder();
// 6 ten-minute points, 24 hourly, 30 daily, and every epoch of the last 10 minutes.
const Ladder& ladder_of_60();

// Code::invalid_argument: it keeps nothing, or more than the limits allow.
Status check_ladder(const Ladder& ladder);
// Whatever `less` holds, `more` holds too. False when in doubt.
bool keeps_at_least(const Ladder& more, const Ladder& less);
std::string to_string(const Ladder& ladder);  // "all for 1h, 10m for 6h, 1h for 1d, 1d for 30d"

Ladder from_record(const pb::LadderRecord& record);
pb::LadderRecord to_record(const Ladder& ladder);
Ladder ladder_of(const pb::MachineRecord& record);  // its own, or the default; a clone's keeps nothing
// Makes `ladder` the machine's; if it keeps less than the one before, that one counts on until `former_until_us`
// (0: not). Code::busy: too many former ones are still in force.
Status set_ladder(pb::MachineRecord& record, const Ladder& ladder, WallMicros now_us, WallMicros former_until_us);

struct LadderEpoch {
  EpochNumber number;
  WallMicros arrival_us = 0;
  bool point = false;  // not fuzzy
  WallMicros rung_offset_us = 0;
  WallMicros rung_us() const { return arrival_us + rung_offset_us; }
};
LadderEpoch ladder_epoch(const pb::EpochEntry& entry);

// What the store knows and the record does not.
struct Guards {
  std::vector<EpochNumber> in_use;  // by clones, exports, running reads
  std::optional<EpochNumber> newest_verified;
  bool unread = false;  // which one that is cannot be said before the points were read: nothing goes until then
};
// `epochs`: as they are told to who asks. Where there is reason to read everything again, what was verified counts.
void guard_newest_verified(Guards& guards, std::span<const pb::EpochEntry> epochs);

struct Hold {
  enum class Kind : std::uint8_t { dense, rung, pin, in_use, newest_point, newest_verified, newest_epoch };
  Kind kind{};
  std::uint64_t every_s = 0;  // of a rung
  std::string pin{};          // its name
  bool former = false;        // by a ladder that is not in force any more
  // When this may end, at the earliest; 0: that cannot be said. Dense and rungs end only as newer points come.
  WallMicros until_us = 0;
  bool operator==(const Hold&) const = default;
};

struct Decision {
  std::vector<EpochNumber> keep, drop;  // ascending; together all that were given
  // Nothing will be dropped before, as long as no epoch comes and record and guards stay the same. Absent: never.
  std::optional<WallMicros> next_due_us;
  // One is kept only because nothing newer is verified yet. That changes without an event: look again soon.
  bool waits_for_check = false;
};

// `epochs`: all committed ones of a machine, ascending. Only ladder, pins and removals of the record count.
Decision decide(std::span<const LadderEpoch> epochs, const pb::MachineRecord& record, const Guards& guards,
                WallMicros now_us);
// What holds each of them, in the same order; nothing: it goes.
std::vector<std::vector<Hold>> explain(std::span<const LadderEpoch> epochs, const pb::MachineRecord& record,
                                       const Guards& guards, WallMicros now_us);

// Epochs that a removal names and that are none of `epochs` any more.
std::vector<EpochNumber> gone_removals(const pb::MachineRecord& record, std::span<const LadderEpoch> epochs);
// Pins and former ladders that are over, and removals of the epochs that are `gone`, go out of the record. True: it
// changed.
bool tidy_retention(pb::MachineRecord& record, std::span<const EpochNumber> gone, WallMicros now_us);

bool is_in_force(const pb::PinRecord& pin, WallMicros now_us);
const pb::RemovalRecord* machine_removal(const pb::MachineRecord& record);  // nullptr: there is none

}  // namespace tidemark::storage
