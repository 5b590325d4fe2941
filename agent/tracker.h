// Knowing what may have changed, and when. The seam between the sync engine and whatever tracks writes.
//
// A tracker keeps three sets of granules: *collecting* (marked now), *being read* and *sent, not yet durable*. Only
// durable() clears anything: after a failure, a cut link or the agent's death everything that was taken is due again.
//
//   begin_round  -> what does the round begin with: everything, or what is marked
//   cut          -> a moment T: what was marked before it becomes due, a new generation collects
//   next         -> of what is due, the next piece to read
//   hits         -> were these granules, just read, marked again since T? Nothing of the round was: what was read, on
//                   the base, is the machine at T
//   sent         -> what was taken is on its way in this epoch
//   durable      -> ... and is forgotten
//   failed       -> ... or is due again
//
// All calls come from the engine's thread, except hits(), which may come from several. Disks are indices of the
// engine's list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::agent {

struct GranuleRange {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

struct RoundStart {
  EpochNumber base;      // what the server has
  EpochNumber number;    // of the epoch to make
  bool whole = false;    // no base is known: everything is read, whatever is marked
  bool resumed = false;  // it goes on with an epoch that was begun before
};

// What a round begins with.
struct Suspects {
  bool everything = true;  // all of every disk, compared with the server's digests where it has them
  std::string why;         // when everything: a sentence for the log
  bool covered = false;    // resumed: whatever changed since the epoch was begun is marked
};

class Tracker {
 public:
  virtual ~Tracker() = default;
  // Can it tell? If not, only begin_round is called, and the witnesses of the sources decide (agent/consistency.h).
  virtual bool exact() const = 0;
  virtual WallMicros since_us() const = 0;  // nothing escaped it since then; 0: it tracks nothing
  virtual Result<Suspects> begin_round(const RoundStart& start) = 0;

  virtual Status cut() = 0;
  virtual WallMicros cut_us() const = 0;  // T lies at most kCutWidth behind it
  // These granules are due, marked or not.
  virtual void want(std::size_t disk, const GranuleRange& range) = 0;
  // Up to `granules_max` of one disk, ascending, at least one. None: the round has seen all that was due at T. The
  // first cut of a round gives all that is not durable, a later one what was marked since the one before.
  virtual std::vector<GranuleRange> next(std::size_t& disk, std::uint64_t granules_max) = 0;
  virtual std::uint64_t hits(std::size_t disk, const GranuleRange& range) const = 0;
  // Nothing can have escaped since the last cut.
  virtual bool sound() = 0;
  // Why what is marked is worth nothing until everything was read; empty: it is worth something.
  virtual std::string why_lost() { return {}; }

  virtual void sent(EpochNumber epoch) = 0;
  virtual void durable(EpochNumber epoch) = 0;
  virtual void failed() = 0;
};

// Tracks nothing: every round compares everything.
class DigestComparison final : public Tracker {
 public:
  bool exact() const override { return false; }
  WallMicros since_us() const override { return 0; }
  Result<Suspects> begin_round(const RoundStart& start) override;
  Status cut() override;
  WallMicros cut_us() const override { return 0; }
  void want(std::size_t, const GranuleRange&) override {}
  std::vector<GranuleRange> next(std::size_t&, std::uint64_t) override { return {}; }
  std::uint64_t hits(std::size_t, const GranuleRange&) const override { return 0; }
  bool sound() override { return false; }
  void sent(EpochNumber) override {}
  void durable(EpochNumber) override {}
  void failed() override {}
};

}  // namespace tidemark::agent
