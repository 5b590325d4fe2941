// Makes one epoch after another: reads the disks, sends what the server lacks, and says what the result is.
//
// The first epoch of a machine (INITIAL) sends everything and resumes where a cut left it. Every later one compares
// each chunk with the server's digest as of the last durable epoch, and sends what differs (DELTA; RESCAN when what the
// two sides knew of each other was lost). All of it is read between one start and one end; agent/consistency.h decides
// what that is worth.
//
// Belongs to one thread. Memory: EpochSender's and Link's bounds, and 32 bytes for each 64 KiB of disk during a frozen
// pass.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/consistency.h"
#include "agent/digest_feed.h"
#include "agent/epoch_sender.h"
#include "agent/freeze.h"
#include "agent/link.h"
#include "agent/source_set.h"
#include "agent/status_board.h"
#include "agent/tracker.h"

namespace tidemark::agent {

struct EpochReport {
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
  double seconds = 0, frozen_seconds = 0;
  bool resumed = false;
  // Of an INITIAL one that was resumed: what had been durable when it last went on. With it compared_bytes and
  // changed_bytes make the whole; sent_bytes counts all connections of this run of the agent.
  std::uint64_t resumed_bytes = 0;
};

class Engine {
 public:
  struct Options {
    MachineId machine;
    int zstd_level = 1;
    std::chrono::milliseconds freeze_limit{10'000};
    std::filesystem::path state_dir;
    std::string boot_id;
  };
  Engine(Options options, SourceSet& sources, MemoryKeeper& keeper, Tracker& tracker, StatusBoard& board,
         const Clock& clock, std::stop_token stop);

  // What an error of sync() was about.
  enum class Fault : std::uint8_t {
    link,     // the connection, or what the two sides made of it: connect again
    source,   // a disk: the epoch was aborted, the connection is fine
    changed,  // a disk has another size, or was replaced: at once again
    stopped,
  };
  // One epoch, durable when this returns. `freeze`: the file systems stand still for the reading (not in an INITIAL
  // one).
  Result<EpochReport> sync(Link& link, bool freeze);
  Fault fault() const { return fault_; }

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
    std::vector<std::unique_ptr<Witness>> witnesses;
    bool unproven = false;  // parts were read by an earlier run of the agent
    std::unique_ptr<Freeze> freeze;
    std::string freeze_failure;
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
  Status read_range(Link& link, Pass& pass, std::size_t index, std::uint64_t begin, std::uint64_t end, DigestFeed* feed,
                    EpochSender& sender);
  Decision judge(Pass& pass);
  Result<EpochReport> conclude(Link& link, Pass& pass, const Decision& decision);
  Result<EpochReport> transfer(Link& link, Pass& pass, bool freeze);
  Result<EpochReport> read_and_commit(Link& link, Pass& pass, bool freeze, DigestFeed* feed, EpochSender& sender);
  std::optional<EpochReport> settle_doubt();
  void give_up(Link& link, Pass& pass, const Error& why);
  void tell_progress(Link& link, std::uint64_t done);
  std::unexpected<Error> source_failed(Error error);

  Options options_;
  SourceSet& sources_;
  MemoryKeeper& keeper_;
  Tracker& tracker_;
  StatusBoard& board_;
  const Clock& clock_;
  std::stop_token stop_;
  Fault fault_ = Fault::link;
  std::optional<EpochReport> in_doubt_;  // committed, its Durable did not come
  double compare_rate_ = 0;              // bytes a second
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
