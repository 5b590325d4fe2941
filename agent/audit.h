// The audit: in quiet time slices of the source are compared with the replica, so that a recovery point is not right
// by reasoning alone. One pass over all disks after another; a pass that has met every chunk proves that the replica
// was complete when it began.
//
// A chunk (limits::kDigestChunkSize) is compared with the server's SHA-256 of it as of the newest epoch, which is a
// point and the tracker's base. It is read first; then, if it differs, the tracker is asked whether any of it was
// written to since that epoch. If it was, it is looked at again later, and after kTries sent whole: what travels in an
// exact epoch is proven as well. If it was not, the replica is wrong: that is logged as an alarm and remembered, and
// the chunk is sent again with the next epoch.
//
// What was left out unread (agent/skipped_chunks.h) is left out here too; while that is not known, nothing is compared.
//
// Belongs to the engine's thread. Memory: 1 MiB, and 24 bytes for each chunk that was busy.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/memory_keeper.h"
#include "agent/skipped_chunks.h"
#include "agent/source_set.h"
#include "agent/tracker.h"
#include "base/aligned_buffer.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"

namespace tidemark::agent {

class Audit {
 public:
  static constexpr std::uint64_t kChunksPerLook = 16;  // of one reading and one question: 1 MiB
  static constexpr std::uint64_t kChunk = limits::kDigestChunkSize;
  static constexpr std::uint64_t kGranulesPerChunk = kChunk / limits::kGranuleSize;
  static constexpr std::uint64_t kBytesOwedMax = std::uint64_t{64} << 20;  // what a long want of quiet time adds up to
  static constexpr int kTries = 3;  // for a chunk that is written to again and again

  // The server's digests of `count` chunks from `first` on, as of `epoch`: 32 bytes each; fewer where it has none.
  using Digests = std::function<Result<std::vector<std::byte>>(DiskId disk, std::uint64_t first, std::uint32_t count,
                                                               EpochNumber epoch)>;

  // `period`: a pass over everything takes this long, and more when there is little quiet time.
  Audit(std::chrono::milliseconds period, SourceSet& sources, Tracker& tracker, MemoryKeeper& keeper,
        const SkippedChunks& skipped, const Clock& clock, std::stop_token stop);

  // Between two epochs, the newer of which does not exist yet and the older is a point: compares what has come due, no
  // longer than `until`. Errors are those of `digests` and of the memory; a place of a disk that cannot be read is
  // logged, and the pass proves nothing.
  Status step(const Digests& digests, std::chrono::steady_clock::time_point until);

 private:
  struct Busy {
    std::size_t disk = 0;
    std::uint64_t chunk = 0;
    int tries = 0;
  };
  enum class Verdict : std::uint8_t { same, busy, differs, unreadable, unknown };

  bool know_epoch(const Memory& memory);
  void find_place(const Memory& memory);
  Status remember();
  Status end_pass();
  Result<std::vector<Verdict>> compare(const Digests& digests, std::size_t disk, std::uint64_t first,
                                       std::uint32_t count);
  Status look_again(const Digests& digests, std::chrono::steady_clock::time_point until);
  Status judge(std::size_t disk, std::uint64_t chunk, Verdict verdict, int tries);
  GranuleRange granules(std::size_t disk, std::uint64_t chunk) const;
  std::uint64_t chunks(std::size_t disk) const;
  void advance(std::uint64_t chunks_done);

  std::chrono::milliseconds period_;
  SourceSet& sources_;
  Tracker& tracker_;
  MemoryKeeper& keeper_;
  const SkippedChunks& skipped_;
  const Clock& clock_;
  std::stop_token stop_;
  AlignedBuffer buffer_;
  std::vector<KnownDisk> disks_;  // of the epoch that is compared with, in the order of sources_
  EpochNumber epoch_;
  AuditRecord record_;
  std::size_t disk_ = 0;  // where the pass stands
  std::uint64_t chunk_ = 0;
  std::deque<Busy> busy_;
  bool placed_ = false;
  double owed_bytes_ = 0;
  std::chrono::steady_clock::time_point paid_{};
  std::chrono::steady_clock::time_point remembered_{};
};

}  // namespace tidemark::agent
