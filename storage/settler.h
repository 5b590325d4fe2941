// The settler keeps history cheap, behind everything else and on a thread of its own: it drops points, folds what no
// point shows any more, moves what outlives the log into cold segments, and rewrites cold segments that are mostly
// dead.
//
// Its work is made of steps, each of which leaves a store that is whole: blocks are copied and synced first, then the
// index is changed in one batch, and what they were copied from goes only when a flush of the index has made that
// durable (Partition's housekeeping). A crash at any moment costs the step, never data: a cold segment that the index
// does not refer to is removed, and what was to be moved still stands where it was.
//
// What the log must tell (points dropped, records carried forward out of a segment that is to go) it does not write
// itself: next_record() hands it to the shard, which appends it. Points go from the index with that record, and data of
// theirs only after it.
//
// Open and committed data never share a move: whatever is newer than a machine's newest commit stays where it is.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/cold_manifest.h"
#include "storage/cold_segment.h"
#include "storage/disk_reader.h"
#include "storage/file.h"
#include "storage/indexer.h"
#include "storage/released.h"

namespace tidemark::storage {

struct SettlerOptions {
  WallMicros settle_after_us = 3'600'000'000;     // a log segment of that age may be settled
  std::uint32_t mature_after = 25;                // times settle_after_us; until then one that is mostly live waits
  double wait_garbage_max = 0.5;                  // share of its references that may have gone while it waits
  double log_garbage_max = 0.12;                  // share of its space: left as it is; negative: none ever is
  std::uint64_t cold_segment_size = 64ULL << 20;  // about
  std::uint32_t victims_max = 8;                  // segments that are settled together
  double garbage_max = 0.2;                       // share of a cold segment's extents that may be dead
  WallMicros fold_every_us = 3'600'000'000;       // a machine's volumes are folded whole at most this often
  std::uint64_t bytes_per_second = 128ULL << 20;  // that are moved; 0: without a bound
  std::uint64_t segment_size = 64ULL << 20;       // of the log
  // With less free space than this it does not wait for segments to be old nor for folds to be due, and none is left in
  // the log unless moving it would give nothing.
  std::uint64_t short_below = 0;
  bool background = true;  // false: step() does the work, in the caller
};

class Settler {
 public:
  Settler(FileSystem& files, std::string directory, PartitionId partition, std::uint32_t salt,
          std::shared_ptr<ReadContext> context, Indexer& indexer, ColdManifest& manifest, const Clock& clock,
          SettlerOptions options);
  ~Settler();  // stops
  Settler(const Settler&) = delete;
  Settler& operator=(const Settler&) = delete;

  // Ends the thread, within one region. What was asked for and not done is forgotten. Stays as it is otherwise.
  void stop();

  // Any thread. Asks for these epochs of the machine to be dropped. The newest one, those that are being read, and
  // unknown ones stay.
  void drop_points(const MachineId& machine, const std::vector<EpochNumber>& epochs);
  // Any thread. Takes back what was asked for and is not under way.
  void keep_points(const MachineId& machine);
  // Any thread. In order and apart; as of the last segment that was given back.
  void set_gone(std::vector<GoneLsns> gone);

  // --- the shard's thread ---
  struct Record {
    RecordType type{};
    MachineId machine;
    std::string payload;
  };
  // What is to be appended next; the same again until appended() says that it was.
  std::optional<Record> next_record();
  void appended(Lsn lsn);

  // One piece of work, when there is no thread; false: there is nothing to do.
  bool step();

  struct Stats {
    std::uint64_t points_dropped = 0, regions_folded = 0, versions_dropped = 0;
    std::uint64_t segments_settled = 0, blocks_moved = 0, bytes_moved = 0, records_carried = 0;
    std::uint64_t segments_kept = 0;     // of the log, left as they are
    std::uint64_t aborts_forgotten = 0;  // ranges of aborted epochs of which nothing is left
    std::uint64_t damaged_blocks = 0;    // found when they were to be moved; they stay where they are
    std::uint64_t too_many_points = 0;   // machines with more than one record can tell of: their old segments stay
    std::uint64_t segments_due = 0;      // of the log: could be settled, and had not been when it last looked
    std::optional<Error> error;          // why it cannot go on; it tries again
  };
  Stats stats() const;

 private:
  struct Machine;
  struct Move;

  void run();
  bool work();  // one piece; false: nothing to do
  Result<bool> drop_some();
  Result<bool> settle_some();
  Result<bool> compact_some();
  Result<bool> fold_some();

  Status settle(const std::vector<SegmentId>& victims);
  // One that cannot be read does not keep the others.
  Status settle_each(const std::vector<SegmentId>& victims);
  // Of the victims those that are nearly all live stay.
  Status leave_live(Move& move);
  Result<std::vector<SegmentId>> choose(bool now, bool left_too);
  bool waits_for_age(SegmentId segment, std::uint64_t references, WallMicros age_us) const;
  bool stays(SegmentId segment, std::uint64_t references) const;
  bool gives_nothing(SegmentId segment, std::uint64_t references) const;
  bool nearly_full() const;
  bool short_of_space() const;
  bool waits_for_space() const;
  std::size_t victims_now(std::uint64_t segment_size) const;
  Status list_log_segment(SegmentId segment, Move& move);
  Status list_written(VolumeId volume, std::uint32_t first, std::uint32_t last, Move& move);
  Status list_resize(const pb::MachineRecord& machine, const RecordInfo& record, Move& move);
  Status list_cold_segment(SegmentId segment, Move& move);
  Status settle_region(Move& move, VolumeId volume, std::uint32_t region);
  static std::vector<std::pair<std::uint32_t, std::uint32_t>> shown_runs(const Version& version);
  Status place(Move& move, Machine& machine, Version& version, std::vector<Version>& to);
  Status finish_cold(Move& move);
  void give_up(SegmentId segment);
  Status carry(const Move& move);
  Result<Machine*> machine_of(Move& move, VolumeId volume);
  Result<std::optional<RegionChange>> fold_region(const Machine& machine, VolumeId volume, std::uint32_t region,
                                                  const std::function<Status(Version&, std::vector<Version>&)>& move);
  // How long ago a segment was filled; nullopt: that cannot be told now.
  Result<std::optional<WallMicros>> age_of(SegmentId segment, SegmentId successor);
  static Result<Machine> load_machine(const Index& index, const MachineId& id, EpochNumber through);
  bool in_flight(const MachineId& machine);
  bool was_tried(SegmentId segment) const;
  void tried(SegmentId segment);
  // False: the machine keeps more points than one record can tell of. Its points and segments stay until it does not.
  Result<bool> send_history(const MachineId& machine, EpochNumber through, const std::vector<EpochNumber>& without);
  void forget_gone(pb::AbortedRanges& aborted);
  Status change(std::vector<RegionChange>& changes, std::vector<SegmentId> added);
  void send(Record record);
  bool stopping() const { return stop_.load(std::memory_order_relaxed); }
  void hold_rate(std::uint64_t bytes);
  void count_rate(Move& move, std::uint64_t bytes);
  Index& index() const { return *context_->index; }

  FileSystem& files_;
  const std::string directory_;
  const PartitionId partition_;
  const std::uint32_t salt_;
  const std::shared_ptr<ReadContext> context_;
  Indexer& indexer_;
  ColdManifest& manifest_;
  const Clock& clock_;
  const SettlerOptions options_;

  // Of the working thread.
  std::uint64_t next_cold_ = 1;
  struct Tried {
    Lsn indexed;
    WallMicros at_us = 0;
  };
  std::map<SegmentId, Tried> tried_;  // settled, with something left: not again before the index went on, and a while
  std::map<SegmentId, std::pair<MachineId, EpochNumber>> waits_;  // for an open epoch to end
  std::map<SegmentId, WallMicros> filled_;                        // when a log segment's successor began
  std::map<SegmentId, std::uint64_t> most_;                       // references that a log segment was seen to have
  std::set<SegmentId> left_;                                      // as they are, by the settling at hand
  std::map<SegmentId, std::uint64_t> full_;     // references of those of which moving would give nothing
  std::map<SegmentId, std::uint64_t> extents_;  // in a cold segment's table
  struct Fold {
    MachineId machine;
    std::vector<VolumeId> volumes;
    std::uint32_t region = 0;
  };
  std::optional<Fold> fold_;
  std::map<MachineId, WallMicros> folded_;  // when it was begun last
  std::set<MachineId> too_many_points_;     // said once
  std::chrono::steady_clock::time_point retry_at_{};

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::unordered_map<MachineId, std::map<EpochNumber, bool>> drops_;  // true: it is under way
  std::set<MachineId> fold_wanted_;
  std::vector<GoneLsns> gone_;
  std::deque<Record> outbox_;
  std::atomic<bool> to_append_{false};  // it is not empty: the shard need not wait for the mutex to see that it is
  struct Sent {
    std::size_t waiting = 0;  // in the outbox
    Lsn last;                 // appended
  };
  std::unordered_map<MachineId, Sent> in_flight_;
  Stats stats_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace tidemark::storage
