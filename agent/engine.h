// Makes one epoch after another: reads the disks, sends what the server lacks, and says what the result is.
//
// The first epoch of a machine (INITIAL) sends everything and resumes where a cut left it. Every later one compares
// each chunk with the server's digest as of the last durable epoch, and sends what differs (DELTA; RESCAN when what the
// two sides knew of each other was lost). All of it is read between one start and one end; agent/consistency.h decides
// what that is worth.
//
// A pass that reads everything leaves out what nobody can refer to (agent/free_space.h): it counts as zeroes, as a hole
// does. Whoever asks for free space must know of every write since, so it is asked after the tracking, or the watching,
// has begun.
//
// Belongs to one thread. Memory: EpochSender's and Link's bounds, up to some 16 MiB for each disk for what is left out,
// and 32 bytes for each 64 KiB of disk during a frozen pass without tracking.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "agent/consistency.h"
#include "agent/digest_feed.h"
#include "agent/epoch_sender.h"
#include "agent/freeze.h"
#include "agent/link.h"
#include "agent/pace.h"
#include "agent/quiesce.h"
#include "agent/read_pool.h"
#include "agent/skipped_chunks.h"
#include "agent/source_set.h"
#include "agent/status_board.h"
#include "agent/tracker.h"

namespace tidemark::agent {

// What an epoch is to be, beyond what it is anyway.
struct Wish {
  bool freeze = false;       // the file systems stand still for the reading (not in an INITIAL one without tracking)
  bool application = false;  // the hooks hold the applications for the cut (likewise)
  bool own_epoch = false;    // also when nothing differs from the point before
  std::string request;       // the id of whoever asked; empty: nobody did
};

struct EpochReport {
  Wish wish;
  EpochNumber epoch;  // the newest durable one
  pb::EpochKind kind = pb::EPOCH_KIND_UNSPECIFIED;
  Consistency consistency = Consistency::fuzzy;
  bool point = false;          // the newest epoch is a recovery point that holds what was read
  bool unchanged = false;      // nothing differed from a point: no new epoch
  bool committed = false;      // a new epoch was made
  std::string reason, remedy;  // of a fuzzy one
  bool freeze_would_help = false;
  WallMicros cut_us = 0;
  std::uint64_t compared_bytes = 0, changed_bytes = 0, zero_bytes = 0, sent_bytes = 0;
  std::uint64_t skipped_bytes = 0;  // left out, unread: not among compared_bytes
  double seconds = 0, frozen_seconds = 0;
  std::uint64_t rounds = 0, hits = 0;  // with tracking: moments tried, and granules written while they were read
  // Of a wish for an application point.
  bool hooks_ran = false;     // or were refused; false: it did not come to that
  std::string hooks_failure;  // why it is none, though the hooks' turn came
  double held_seconds = 0;
  bool resumed = false;
  // Of an INITIAL one that was resumed: what had been durable when it last went on. With it compared_bytes and
  // skipped_bytes make the whole, and changed_bytes; sent_bytes counts all connections of this run of the agent.
  std::uint64_t resumed_bytes = 0;
};

// What of a disk nobody can refer to: BlockSource::unused().
using UnusedSpace = std::function<std::vector<DataRange>(BlockSource&)>;

class Engine {
 public:
  struct Options {
    MachineId machine;
    std::optional<int> zstd_level;  // none: what suits the way to the server
    std::chrono::milliseconds freeze_limit{10'000};
    std::filesystem::path state_dir;
    std::string boot_id;
    HookSettings hooks;
    std::chrono::milliseconds cut_patience{10'000};                            // rounds of one epoch; then it is fuzzy
    bool skip_unused = true;                                                   // leave out what nobody can refer to
    UnusedSpace unused = [](BlockSource& source) { return source.unused(); };  // another one in tests
  };
  // `pace` hears of the time that reading and waiting take.
  Engine(Options options, SourceSet& sources, MemoryKeeper& keeper, Tracker& tracker, StatusBoard& board, Pace& pace,
         const Clock& clock, std::stop_token stop);

  // What an error of sync() was about.
  enum class Fault : std::uint8_t {
    link,     // the connection, or what the two sides made of it: connect again
    source,   // a disk: the epoch was aborted, the connection is fine
    changed,  // a disk has another size, or was replaced: at once again
    stopped,
  };
  // One epoch, durable when this returns. The report's wish is this one, or, of an epoch that was in doubt, the one it
  // was made for.
  Result<EpochReport> sync(Link& link, const Wish& wish);
  Fault fault() const { return fault_; }
  int zstd_level() const { return compression_.level(); }
  // Of the last sync(), however it ended: post hooks that failed, so that their application may still stand still.
  const std::vector<std::string>& post_failures() const { return post_failures_; }

  // What of the disks the server does not have as they are.
  const SkippedChunks& skipped() const { return skipped_; }

  // How long a comparison of everything takes, from the last one made.
  std::optional<std::chrono::milliseconds> compare_estimate() const;

 private:
  struct Pass {
    pb::EpochKind kind = pb::DELTA;
    EpochNumber number;
    EpochNumber base;  // digests are asked for as of this one
    bool resumed = false;
    bool must_commit = false;               // even when no chunk differs
    std::vector<KnownDisk> disks;           // as the server numbers them
    std::vector<std::uint64_t> start;       // bytes: where to go on
    std::vector<std::uint64_t> comparable;  // chunks of which the server has a digest
    Suspects suspects;
    std::vector<pb::Resend::Range> wanted;          // what the server asked for again
    std::vector<std::vector<GranuleRange>> forced;  // the same, for each disk, within it
    std::vector<ChunkSet> skip;                     // what is left out, of each disk
    std::vector<ChunkSet> read_anew;                // ... what had been left out before, and was read whole
    std::vector<std::unique_ptr<Witness>> witnesses;
    bool unproven = false;  // parts were read by an earlier run of the agent
    std::unique_ptr<Freeze> freeze;
    std::string freeze_failure;
    std::unique_ptr<Quiesce> hold;                        // while applications stand still
    std::set<std::pair<std::size_t, std::uint64_t>> hit;  // only for a planted bug
    bool begun = false;
    EpochReport report;
  };

  Status prepare(Link& link, Pass& pass);
  Status open_disks(Link& link, Pass& pass);
  void choose_kind(const SessionView& view, Pass& pass);
  void plan_comparison(const SessionView& before, Pass& pass);
  void force_wanted(Link& link, Pass& pass);
  static bool is_forced(const Pass& pass, std::size_t disk, std::uint64_t begin, std::uint64_t end);
  Status watch(Pass& pass);
  Status begin(Link& link, Pass& pass);
  Status read_disks(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender);
  void plan_skips(Pass& pass);
  void note_read(Pass& pass, std::size_t disk, const GranuleRange& range) const;
  void remember_skips(const Pass& pass);
  Status read_range(Link& link, Pass& pass, std::size_t index, std::uint64_t begin, std::uint64_t end, DigestFeed* feed,
                    EpochSender& sender);
  Decision judge(Pass& pass);
  Result<std::vector<std::string>> writable_mounts();
  Status freeze_all(Pass& pass);
  Status hold_applications(Pass& pass);
  bool let_go(Pass& pass);
  Result<Decision> read_cuts(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender);
  Result<Decision> read_compared(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender);
  Result<std::uint64_t> read_due(Link& link, Pass& pass, EpochSender& sender);
  Result<EpochReport> conclude(Link& link, Pass& pass, const Decision& decision);
  Result<EpochReport> transfer(Link& link, Pass& pass);
  Result<EpochReport> read_and_commit(Link& link, Pass& pass, DigestFeed* feed, EpochSender& sender);
  std::optional<EpochReport> settle_doubt();
  void give_up(Link& link, Pass& pass, const Error& why);
  void tell_progress(Link& link, std::uint64_t done);
  std::unexpected<Error> source_failed(Error error);

  Options options_;
  SourceSet& sources_;
  MemoryKeeper& keeper_;
  Tracker& tracker_;
  StatusBoard& board_;
  Pace& pace_;
  CompressionLevel compression_;
  const Clock& clock_;
  std::stop_token stop_;
  Fault fault_ = Fault::link;
  std::vector<std::string> post_failures_;
  std::unique_ptr<ReadPool> readers_;    // with tracking
  std::optional<EpochReport> in_doubt_;  // committed, its Durable did not come
  std::uint64_t generation_;             // of the disks that the tracker was made for
  SkippedChunks skipped_;
  std::chrono::steady_clock::time_point skipped_saved_{};
  double compare_rate_ = 0;  // bytes a second
  std::uint64_t done_bytes_ = 0;
  std::chrono::steady_clock::time_point told_{};
  // Witnesses of an initial sync that outlive a cut connection.
  struct Initial {
    EpochNumber number;
    std::uint64_t generation = 0;
    std::vector<std::unique_ptr<Witness>> witnesses;
  };
  std::optional<Initial> initial_;
  // What this run sent of the epoch it was last at, an initial sync that was cut over all its connections.
  struct Sent {
    EpochNumber number;
    std::uint64_t bytes = 0;
  };
  Sent sent_;
};

}  // namespace tidemark::agent
