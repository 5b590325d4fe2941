// Knows what was written from marks that the kernel makes (agent/kernel_marks.h), and makes exact cuts of it.
//
// Invariants:
//  - A granule whose content may differ from the server's base is marked: in a collecting set, or in the taken one.
//  - What moves from a collecting set to the taken one is there before it leaves the other: to die between is harmless.
//  - What was in flight at a cut may have been read before it took effect. It is carried: due at the next cut, whether
//  the epoch becomes durable or not, and whether its end is ever seen or not.
//  - The taken set is cleared by durable() alone, and `pending_epoch` outlives the agent: who comes next asks the
//  server.
#pragma once

#include <memory>

#include "agent/kernel_marks.h"
#include "agent/tracker.h"
#include "base/clock.h"

namespace tidemark::agent {

class EbpfTracker final : public Tracker {
 public:
  // The moment of a cut is known this exactly: a store of which it was the time before, and the time after.
  static constexpr std::int64_t kCutWidthUs = 50;

  EbpfTracker(std::unique_ptr<KernelMarks> marks, const Clock& clock);

  bool exact() const override { return true; }
  WallMicros since_us() const override { return static_cast<WallMicros>(marks_->control().since_us); }
  Result<Suspects> begin_round(const RoundStart& start) override;
  Status cut() override;
  WallMicros cut_us() const override { return cut_us_; }
  void want(std::size_t disk, const GranuleRange& range) override;
  std::vector<GranuleRange> next(std::size_t& disk, std::uint64_t granules_max) override;
  std::uint64_t hits(std::size_t disk, const GranuleRange& range) const override;
  bool sound() override;
  std::string why_lost() override;
  void sent(EpochNumber epoch) override;
  void durable(EpochNumber epoch) override;
  void failed() override;

  std::uint64_t marked_granules() const;  // due, of all sets
  const KernelMarks& marks() const { return *marks_; }

 private:
  Status take_rest();
  Status drain();
  void mark_again(std::size_t disk);  // what rests is marked as of now
  void mark_carried(unsigned set);
  std::vector<track_carried> in_flight() const;
  void cut_the_next_disk();
  bool lost();
  void forget(EpochNumber epoch);  // what was taken: this epoch has it, durably
  void clear(unsigned set);

  std::unique_ptr<KernelMarks> marks_;
  const Clock& clock_;
  WallMicros cut_us_ = 0;
  bool first_cut_ = true;
  bool reading_taken_ = false;  // next() gives what the taken set has as well
  bool provable_ = true;        // what the round began with and the marks make up the whole
  bool doubted_ = false;        // a submission may have been missed since the last cut
  std::size_t disk_ = 0;        // where next() is
  std::size_t word_ = 0;
};

}  // namespace tidemark::agent
