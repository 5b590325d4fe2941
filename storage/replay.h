// From the log into the index: what opening a partition and rebuilding its index have in common. Blocking.
#pragma once

#include <chrono>
#include <deque>
#include <string>

#include "base/ids.h"
#include "base/status.h"
#include "storage/commit_info.h"
#include "storage/file.h"
#include "storage/index.h"
#include "storage/open_progress.h"
#include "storage/recovery.h"
#include "storage/released.h"

namespace tidemark::storage {

// Tells how far a rebuild is, in the log about every ten seconds.
class RebuildWatch {
 public:
  RebuildWatch(std::string index_directory, OpenProgress& progress)
      : directory_(std::move(index_directory)), progress_(progress) {}

  void begin(std::uint64_t segments);
  Status segment(SegmentId id);  // about to be read, or still being read. Code::cancelled when it was called off
  void end();

 private:
  const std::string directory_;
  OpenProgress& progress_;
  SegmentId last_;
  std::chrono::steady_clock::time_point told_{};
};

// Applies what recovery hands on, in batches. What it hands on last may not be synced yet: the index must not get it,
// and by chance persist it, before recovery has returned. So the end is held back until finish().
class Replay {
 public:
  Replay(Index& index, RebuildWatch& watch) : index_(index), watch_(watch) {}
  Status take(CommitInfo&& commit);
  Status finish();

 private:
  Status apply(std::uint64_t keep);

  Index& index_;
  RebuildWatch& watch_;
  std::deque<CommitInfo> held_;
  std::uint64_t bytes_ = 0;
};

// Before the log is replayed from its begin into an empty index: the newest record of each machine, which may stand
// behind blocks of it, and what the cold segments hold. `lost`: it is known that there was an index once; gives whether
// there was, as segments that it took an index to settle or to give back tell, too.
Result<bool> begin_rebuild(FileSystem& files, const std::string& directory, const RecoveryOptions& options,
                           const std::vector<MachineId>& removed, Index& index, bool lost, RebuildWatch& watch);

// A log that was walked from its begin began where it should.
Status check_begin(const RecoveryResult& recovery, const Released& released, const std::string& index_directory);

}  // namespace tidemark::storage
