// Knowing what may have changed. The seam between the sync engine and whatever tracks writes.
//
// A tracker keeps three sets of granules: *collecting* (marked now), *being read* (taken by begin_round), and *sent,
// not yet durable*. Only durable() clears anything: after a failure or a cut link everything that was taken is due
// again.
//
//   begin_round  -> flips: collecting becomes being read, a new generation collects; says what to read
//   end_round    -> were granules that were read hit again meanwhile? None: what was read is one moment's state
//   sent         -> being read becomes sent
//   durable      -> sent is cleared
//   failed       -> being read and sent go back to what is due
//
// All calls come from the engine's thread. Disks are indices of the engine's list.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::agent {

struct GranuleRange {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

// What a round has to look at.
struct Suspects {
  bool everything = true;  // nothing is known: compare all of every disk with the server's digests
  std::string why;         // when everything: a sentence for the log
  std::vector<std::vector<GranuleRange>> by_disk;  // when not: sorted, disjoint, for each disk
};

class Tracker {
 public:
  virtual ~Tracker() = default;
  // `sizes` of the disks as they are now; another number of them, or another size, means that nothing is known.
  virtual Result<Suspects> begin_round(const std::vector<std::uint64_t>& sizes) = 0;
  // Granules of this round that were written since begin_round. Nothing: the tracker cannot tell, the witnesses of the
  // sources decide (agent/consistency.h). An empty list: none was, the round is an exact cut.
  virtual Result<std::optional<std::vector<std::vector<GranuleRange>>>> end_round() = 0;
  virtual void sent() = 0;
  virtual void durable() = 0;
  virtual void failed() = 0;
};

// Tracks nothing: every round compares everything, and hits are unknown.
class DigestComparison final : public Tracker {
 public:
  Result<Suspects> begin_round(const std::vector<std::uint64_t>& sizes) override;
  Result<std::optional<std::vector<std::vector<GranuleRange>>>> end_round() override;
  void sent() override {}
  void durable() override {}
  void failed() override {}
};

}  // namespace tidemark::agent
