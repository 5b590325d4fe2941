// Integrity in the background, on a thread of its own that runs behind everything else. It reads stored blocks back
// from the disk, compares them with what the index says of them, and decodes them:
//
//   new blocks   the log is followed commit by commit as soon as the index has it, and every new cold segment is read
//                once. How far that came is one mark for the whole partition: a point is *verified* when the mark has
//                passed it and no damage is known that it shows.
//   everything   a scrub goes through all that the index refers to, volume by volume, then through the segments' own
//                records and tables; by itself every scrub_interval, or when it is asked for.
//
// What is found goes to the DamageList, with what readers and the settler found; here it is worked out which points an
// entry concerns: those from the epoch that wrote the block up to the one that overwrote it whole. Only what something
// refers to is damage: whatever fails a check is looked up again before it is believed.
//
// The mark, the place of the scrub and the list are kept in the file `integrity`, written every half minute when they
// changed, at once when damage was found, and at the end. A crash repeats that much work. A file that is lost, or older
// than the index, makes everything unverified until it was read again.
//
// A segment that is given back before the mark came to it costs nothing: what was still needed of it stands in cold
// segments by then, and nothing is verified until those were read.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/cold_manifest.h"
#include "storage/disk_reader.h"
#include "storage/file.h"
#include "storage/indexer.h"
#include "storage/reader.h"
#include "storage/records.pb.h"

namespace tidemark::storage {

struct CheckerOptions {
  std::uint64_t verify_rate = 256ULL << 20;           // bytes per second of new data that are read back; 0: no bound
  std::uint64_t scrub_rate = 64ULL << 20;             // the same of a scrub
  WallMicros scrub_interval_us = 7 * 86'400'000'000;  // 0: only when it is asked for
  bool background = true;                             // false: step() does the work, in the caller
};

// An entry of the list, and what shows it.
struct DamageReport {
  DamagedExtent extent;
  bool located = false;             // false: not worked out yet; every point from extent.epoch on may show it
  bool open = false;                // its epoch is not committed yet
  EpochNumber first{}, last{};      // committed epochs that show it, both inclusive; 0: none does (any more)
  std::uint64_t points = 0;         // of them recovery points
  bool newest = false;              // the newest epoch shows it: it is to be sent again
  std::vector<ByteRange> wanted{};  // what of it the newest epoch shows
};

// A segment's own records or table: blocks in it are found all the same, but an index that is lost could not be made
// again from it.
struct DamagedSegment {
  SegmentId segment;
  std::uint64_t first_byte = 0, end_byte = 0;
  std::string what;
  WallMicros found_us = 0;
};

// What of a machine is to be sent again.
struct WantedRange {
  DiskId disk;
  std::uint64_t offset = 0, length = 0;
  bool operator==(const WantedRange&) const = default;
};
struct MachineDamage {
  std::uint64_t extents = 0;
  std::uint64_t bytes = 0;
  std::uint64_t points = 0;         // recovery points that show some of it
  bool newest = false;              // the newest state is affected
  bool unlisted = false;            // there is more than the list holds
  std::vector<WantedRange> wanted;  // in order, disjoint
  bool operator==(const MachineDamage&) const = default;
};

struct ScrubStatus {
  bool running = false;
  WallMicros started_us = 0;  // of the one that runs
  std::uint64_t bytes = 0, blocks = 0, damaged = 0;
  std::uint64_t volumes_done = 0, volumes = 0;
  bool segments = false;                                  // the volumes are done
  WallMicros completed_us = 0, completed_started_us = 0;  // 0: none ever was
  std::uint64_t completed_bytes = 0, completed_blocks = 0, completed_damaged = 0;
  WallMicros next_us = 0;  // 0: none by itself
};

// Which points of one machine are verified, as of one moment.
class VerifiedPoints {
 public:
  bool covers(const pb::EpochEntry& epoch) const { return known(epoch) && !all_in_doubt_; }
  // It would be, but for the reason there is to read everything again.
  bool covered(const pb::EpochEntry& epoch) const { return known(epoch) && all_in_doubt_ && !unlisted_; }
  bool damaged(const pb::EpochEntry& epoch) const;  // some of it is known to be

 private:
  friend class Checker;
  bool known(const pb::EpochEntry& epoch) const { return epoch.commit_lsn() <= checked_.value() && !damaged(epoch); }

  Lsn checked_;
  bool all_in_doubt_ = false;
  bool unlisted_ = false;                                      // there is more damage than the list holds
  std::vector<std::pair<EpochNumber, EpochNumber>> affected_;  // both inclusive
};

class Checker {
 public:
  Checker(FileSystem& files, std::string directory, PartitionId partition, std::uint32_t salt,
          std::shared_ptr<ReadContext> context, Indexer& indexer, ColdManifest& manifest, const Clock& clock,
          CheckerOptions options);
  ~Checker();  // stops its thread; without stop() before, as a crash would
  Checker(const Checker&) = delete;
  Checker& operator=(const Checker&) = delete;

  // Ends the thread, within one piece of work, and writes down how far it came.
  void stop();
  // One piece of work, when there is no thread; false: there is nothing to do.
  bool step();

  // --- any thread ---
  void start_scrub();  // from the begin; one that runs goes on
  void stop_scrub();   // gives up the one that runs; the next one comes scrub_interval later
  ScrubStatus scrub() const;
  std::vector<DamageReport> damage() const;  // by machine, disk and place
  std::vector<DamagedSegment> damaged_segments() const;
  std::map<MachineId, MachineDamage> machines() const;                                // those with damage
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }  // changes with machines()
  VerifiedPoints verified(const MachineId& machine) const;

  struct Stats {
    Lsn checked_lsn;
    std::uint64_t verified_bytes = 0, verified_blocks = 0;  // read back for the first time
    std::uint64_t scrubbed_bytes = 0, scrubs = 0;
    std::uint64_t damage_found = 0;                           // since the start
    std::uint64_t damaged_extents = 0, damaged_segments = 0;  // there are
    double seconds_behind = 0;                                // how long the mark has been behind the index
    std::optional<Error> error;                               // why it cannot go on; it tries again
  };
  Stats stats() const;

 private:
  struct Block;    // one to be read
  struct Walk;     // through the log
  struct Scratch;  // buffers

  void run();
  bool work();
  bool stopping() const { return stop_.load(std::memory_order_relaxed); }
  void hold_rate(std::uint64_t bytes, std::uint64_t rate);
  Index& index() const { return *context_->index; }
  // Of the state that is kept.
  template <typename Change>
  void change_state(Change change) {
    const std::lock_guard lock(mutex_);
    change(state_);
    dirty_ = true;
  }

  // checker_verify.cc
  Result<bool> verify_log();
  Result<bool> verify_commits(Lsn indexed, std::uint64_t& done);
  Result<bool> enter_log();
  // Nothing: its header is damaged, or the file is missing. What is open stays readable when it is given back.
  struct OpenSegment {
    SegmentHeader header;
    std::shared_ptr<File> file;
  };
  Result<std::optional<OpenSegment>> open_segment(SegmentId segment);
  void enter_segment(SegmentId segment, OpenSegment opened, bool passed_over);
  Result<bool> leave_segment();
  Result<bool> pass_break(std::uint64_t end, const std::string& what);
  Status read_window(std::size_t want);
  Status check_commit(const CommitInfo& commit, std::span<const std::byte> bytes);
  Status check_record(const CommitInfo& commit, const RecordInfo& record, std::span<const std::byte> bytes);
  Status check_index(const CommitInfo& commit, const RecordInfo& record, VolumeId volume);
  void want_scrub();
  Result<bool> verify_cold();
  bool note_segment(SegmentId segment, std::uint64_t first, std::uint64_t end, const std::string& what);

  // checker_scrub.cc
  Result<bool> scrub_some();
  bool scrub_due();
  void begin_scrub();
  void end_scrub();
  Result<bool> scrub_blocks();
  Result<bool> scrub_segments();
  // False: it is damaged. `bytes`: that were read.
  Result<bool> scrub_cold_segment(SegmentId segment, std::uint64_t& bytes);
  Result<bool> scrub_log_segment(SegmentId segment, std::uint64_t& bytes);
  void pace_scrub(std::uint64_t bytes);
  void load_owners();
  Status check_blocks(std::vector<Block>& blocks, std::uint64_t& bytes);
  Status check_piece(std::span<const Block> blocks, std::uint64_t start, std::uint64_t end);
  Status found_bad(const Block& block, const std::string& what);

  // checker_damage.cc
  Status locate_damage();
  Result<bool> locate_one(DamageReport& report, const std::vector<pb::EpochEntry>& epochs);
  void publish(std::vector<DamageReport> reports, const std::map<MachineId, MachineDamage>& machines,
               std::uint64_t version);
  void restore();
  void save(bool now);

  FileSystem& files_;
  const std::string directory_;
  const PartitionId partition_;
  const std::uint32_t salt_;
  const std::shared_ptr<ReadContext> context_;
  Indexer& indexer_;
  ColdManifest& manifest_;
  const Clock& clock_;
  const CheckerOptions options_;

  // Of the working thread.
  std::unique_ptr<Walk> walk_;
  std::unique_ptr<Scratch> scratch_;
  std::map<VolumeId, std::pair<MachineId, DiskId>> owners_, scrub_owners_;
  std::vector<SegmentId> scrub_segments_;              // in order
  std::chrono::steady_clock::time_point scrub_at_{};   // it goes on then
  std::uint64_t located_version_ = ~std::uint64_t{0};  // of the list
  Lsn located_lsn_;
  std::chrono::steady_clock::time_point located_at_{}, saved_at_{}, retry_at_{};
  std::map<MachineId, std::map<DiskId, VolumeId>> volumes_of_;  // of one round through the log
  std::uint64_t saved_version_ = 0;                             // of the list
  bool save_failed_ = false;                                    // said once
  bool dirty_ = false;                                          // there is something to save
  bool save_soon_ = false;                                      // damage, or a word of the administrator
  int read_failures_ = 0;                                       // of the log, one after the other
  std::optional<std::chrono::steady_clock::time_point> behind_since_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  pb::IntegrityRecord state_;  // changed by the working thread; its lists are filled in when it is saved
  std::vector<DamageReport> reports_;
  std::uint64_t reports_version_ = 0;  // of the list that they were made from
  std::map<MachineId, MachineDamage> machines_;
  std::vector<DamagedSegment> segments_;
  std::optional<bool> scrub_asked_;  // true: start; false: stop
  Stats stats_;
  std::uint64_t volumes_done_ = 0, volumes_ = 0;

  std::atomic<std::uint64_t> version_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace tidemark::storage
