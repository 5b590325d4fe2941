#include "storage/rebuild_index.h"

#include <fcntl.h>
#include <stdio.h>

#include <cerrno>

#include "storage/epoch_progress.h"
#include "storage/index_compare.h"
#include "storage/replay.h"
#include "storage/segment_kind.h"
#include "storage/superblock.h"
#include "storage/system_files.h"

namespace tidemark::storage {

namespace {

// In one step where the file system can; else in two, between which there is none: then the next start makes it again.
// Indexes are RocksDB's, which knows the system's files only.
Status take_place(const std::string& made, const std::string& place) {
  FileSystem& files = system_files();
  const std::string parent = place.substr(0, place.rfind('/'));
  const bool there = TIDEMARK_TRY(files.exists(place));
  if (there && ::renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, place.c_str(), RENAME_EXCHANGE) == 0)
    return files.sync_directory(parent);
  if (there && errno != EINVAL && errno != ENOSYS) return fail_errno(errno, made, "put it in place of " + place);
  const std::string old = place + ".old";
  TIDEMARK_TRY(Index::destroy(old));
  if (there) TIDEMARK_TRY(files.rename(place, old));
  TIDEMARK_TRY(files.rename(made, place));
  TIDEMARK_TRY(files.sync_directory(parent));
  return Index::destroy(old);
}

Result<RebuildReport> fill(FileSystem& files, const std::string& directory, const Superblock& superblock, Index& index,
                           RebuildWatch& watch) {
  const Released released = TIDEMARK_TRY(read_released(files, directory));
  const RecoveryOptions recovery_options{.partition = superblock.partition,
                                         .salt = superblock.salt,
                                         .mark = {},
                                         .begin = released.begin,
                                         .released = released.segments};
  TIDEMARK_TRY(begin_rebuild(files, directory, recovery_options, released.removed, index, true, watch));
  Replay replay(index, watch);
  const auto recovery = TIDEMARK_TRY(recover_log(files, directory + "/log", recovery_options,
                                                 [&](CommitInfo&& commit) { return replay.take(std::move(commit)); }));
  TIDEMARK_TRY(check_begin(recovery, released, directory));
  TIDEMARK_TRY(replay.finish());
  TIDEMARK_TRY(index.end_rebuild());
  watch.end();
  TIDEMARK_TRY(index.flush());
  RebuildReport report{.commits = recovery.commits,
                       .log_bytes = recovery.replayed_bytes,
                       .damaged_blocks = recovery.damaged.size(),
                       .differences = {}};
  for (const auto& [segment, references] : index.segments()) report.cold_segments += is_cold(segment) ? 1 : 0;
  for (const pb::MachineRecord& record : index.machines()) {
    if (record.removed()) continue;
    ++report.machines;
    const MachineId machine = TIDEMARK_TRY(machine_from_bytes(record.machine()));
    report.epochs += TIDEMARK_TRY(index.epochs(machine, 0, true)).size();
  }
  return report;
}

}  // namespace

std::string unfinished_index(const std::string& index_directory) { return index_directory + ".new"; }

Result<RebuildReport> rebuild_index(FileSystem& files, const std::string& directory, PartitionId id,
                                    const std::string& server_id, const IndexOptions& options, RebuildMode mode,
                                    OpenProgress& progress, const std::string& index_directory) {
  const Superblock superblock = TIDEMARK_TRY(read_superblock(files, directory));
  TIDEMARK_TRY(check_superblock(superblock, directory, id, server_id));
  const std::string place = index_directory.empty() ? directory + "/index" : index_directory;
  const std::string unfinished = unfinished_index(place);
  TIDEMARK_TRY(Index::destroy(unfinished));
  Result<RebuildReport> report = [&]() -> Result<RebuildReport> {
    const auto index = TIDEMARK_TRY(Index::open(unfinished, options));
    RebuildWatch watch(unfinished, progress);
    auto filled = TIDEMARK_TRY(fill(files, directory, superblock, *index, watch));
    if (mode != RebuildMode::check) return filled;
    if (!Index::exists(place)) {
      filled.differences.push_back("there is no index");
      return filled;
    }
    const auto there = Index::open(place, options);
    if (!there && there.error().code != Code::corrupt) return std::unexpected(there.error());
    if (there) {
      filled.differences = TIDEMARK_TRY(compare_indexes(**there, *index));
    } else {
      filled.differences.push_back(there.error().message());
    }
    return filled;
  }();
  if (report && mode == RebuildMode::replace)
    if (const Status taken = take_place(unfinished, place); !taken) report = std::unexpected(taken.error());
  if (const Status gone = Index::destroy(unfinished); !gone && report) return std::unexpected(gone.error());
  return report;
}

}  // namespace tidemark::storage
