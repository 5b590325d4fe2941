// The log of a partition: the one stream into which everything durable goes first.
//
// append() gathers records into the open commit, in memory; end_turn() closes it and queues one RWF_DSYNC write;
// several may be in flight; the durable mark advances in log order; on_durable() tells. A commit that fills up is
// closed at once. An acknowledged record survives a loss of power; what was not acknowledged may or may not be there.
//
// Runs on its shard's thread alone. A SegmentKeeper formats and recycles segments on a background thread.
//
// Failure: after a failed write the segment is poisoned: it is sealed at the durable LSN and the commits that were not
// acknowledged are written to a fresh segment, once. A second failure stops the log: every later append returns the
// error.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "storage/commit_info.h"
#include "storage/file.h"
#include "storage/log_format.h"

namespace tidemark::storage {

class SegmentKeeper;  // storage/segment_keeper.h: formats, hands out, recycles and removes segment files

struct LogOptions {
  PartitionId partition;
  std::uint32_t salt = 0;
  Incarnation incarnation;
  std::uint32_t commits_in_flight_max = 2;  // raised by itself up to limits::kCommitsInFlightMax as latency grows
  std::chrono::microseconds linger{0};
};

// Where the chain stands when a log is opened: from recovery, or all zero for a new partition.
struct LogTail {
  Lsn last_lsn;
  std::uint64_t last_checksum = 0;
  SegmentId last_segment;  // the log goes on in a new segment after it, never behind a recovered tail
  std::uint64_t last_segment_end = 0;
  Lsn stated_lsn;  // what the log says is durable; on_idle() says last_lsn when this is behind
};

class Log {
 public:
  class Listener {
   public:
    // In log order, on the shard's thread. Everything up to commit.last_lsn is durable.
    virtual void on_durable(CommitInfo&& commit) = 0;
    // The log stopped for good: nothing further will become durable.
    virtual void on_stopped(const Error& why) = 0;

   protected:
    ~Listener() = default;
  };

  Log(LogOptions options, IoQueue& queue, SegmentKeeper& segments, const Clock& clock, LogTail tail,
      Listener& listener);
  ~Log();  // waits for what is in flight

  // The record's LSN. The payload is copied. Code::busy: all commit buffers are in flight, or no formatted segment is
  // ready: call again after on_durable (or SegmentKeeper's notice). Any other error: the log has stopped.
  Result<Lsn> append(RecordType type, const MachineId& machine, DiskId disk, std::span<const std::byte> payload);

  // The same for blocks that are sealed where they are to stand: `write` is called once, when the record is taken, and
  // fills all of `size` bytes (kSealedRecord of storage/log_format.h).
  Result<Lsn> append_sealed(const MachineId& machine, DiskId disk, std::size_t size,
                            const std::function<void(std::span<std::byte>)>& write);

  // How many payload bytes append() would take now without Code::busy; cautious: for records of 256 bytes and more.
  std::size_t room() const;
  std::size_t room_max() const;  // of an empty log

  // Once per turn of the loop, and after SegmentKeeper's notice: closes the open commit and queues its write; while the
  // most commits are in flight it goes on gathering instead, and follows by itself. The caller submits the queue, after
  // IoQueue::reap() as well.
  void end_turn();
  // Called about every limits::kIdleCommitMillis: writes an empty commit when the durable LSN on disk is behind.
  void on_idle();

  Lsn last_lsn() const;  // appended
  Lsn durable_lsn() const;
  bool stopped() const;
  bool quiet() const;  // no write is under way

  struct Counters {
    std::uint64_t commits = 0, records = 0, payload_bytes = 0, written_bytes = 0, segments = 0, rewritten = 0;
    std::uint64_t commit_bytes = 0;  // of the written: without the segments' headers
    std::uint64_t write_us_total = 0, write_us_max = 0;
    std::uint64_t failures = 0;          // failed writes that were followed by a fresh segment
    std::uint32_t in_flight_target = 0;  // commits that may be in flight now
    std::uint32_t in_flight = 0;         // that are
    std::uint64_t buffer_bytes = 0;      // of the commit buffers that were made so far
    // How many commits had up to kSizeLeast << i bytes, and up to 1 << i records; the last of each: all above.
    static constexpr std::uint64_t kSizeLeast = limits::kIoAlignment;
    std::array<std::uint64_t, 13> sizes{};
    std::array<std::uint64_t, 15> gathered{};
  };
  const Counters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::storage
