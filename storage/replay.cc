#include "storage/replay.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <unordered_map>

#include "base/limits.h"
#include "storage/cold_manifest.h"
#include "storage/cold_segment.h"
#include "storage/epoch_progress.h"
#include "storage/segment_keeper.h"

namespace tidemark::storage {

namespace {

constexpr std::uint64_t kHeldBack = 2 * limits::kCommitBuffers * limits::kCommitSizeMax;  // more than was in flight
constexpr std::uint64_t kReplayBatch = 32 << 20;
constexpr auto kTellEvery = std::chrono::seconds(10);

Result<std::uint64_t> count_log_segments(FileSystem& files, const std::string& log_directory) {
  std::uint64_t count = 0;
  for (const std::string& name : TIDEMARK_TRY(files.list(log_directory)))
    if (parse_segment_name(name)) ++count;
  return count;
}

}  // namespace

void RebuildWatch::begin(std::uint64_t segments) {
  progress_.done = 0;
  progress_.total = segments;
  progress_.rebuilding = true;
  told_ = std::chrono::steady_clock::now();
  spdlog::warn("event=index_rebuild_began path={} segments_to_read={}", directory_, segments);
}

Status RebuildWatch::segment(SegmentId id) {
  if (progress_.cancelled) return fail(Code::cancelled, directory_, "it was called off");
  if (!progress_.rebuilding || id == last_) return {};
  last_ = id;
  ++progress_.done;
  const auto now = std::chrono::steady_clock::now();
  if (now - told_ < kTellEvery) return {};
  told_ = now;
  spdlog::info("event=index_rebuilding path={} percent={}", directory_, progress_.percent());
  return {};
}

void RebuildWatch::end() { progress_.done = progress_.total.load(); }

Status Replay::take(CommitInfo&& commit) {
  TIDEMARK_TRY(watch_.segment(commit.segment));
  bytes_ += commit.size;
  held_.push_back(std::move(commit));
  return bytes_ > kHeldBack + kReplayBatch ? apply(kHeldBack) : Status();
}

Status Replay::finish() { return apply(0); }

Status Replay::apply(std::uint64_t keep) {
  std::vector<CommitInfo> batch;
  std::uint64_t batched = 0;
  while (!held_.empty() && bytes_ > keep) {
    bytes_ -= held_.front().size;
    batched += held_.front().size;
    batch.push_back(std::move(held_.front()));
    held_.pop_front();
    if (batched < kReplayBatch) continue;
    TIDEMARK_TRY(index_.apply(batch));
    batch.clear();
    batched = 0;
  }
  return index_.apply(batch);
}

Result<bool> begin_rebuild(FileSystem& files, const std::string& directory, const RecoveryOptions& options,
                           const std::vector<MachineId>& removed, Index& index, bool lost, RebuildWatch& watch) {
  const std::string cold = directory + "/cold";
  ColdManifest manifest(files, cold);
  const bool listed = TIDEMARK_TRY(manifest.load());
  if (!listed && TIDEMARK_TRY(files.exists(cold)) && !TIDEMARK_TRY(list_cold_segments(files, cold)).empty()) {
    return fail(Code::corrupt, cold + "/manifest",
                "the index is lost, and the list of cold segments is missing while some are there",
                "restore the data directory from a copy; nothing of it was changed");
  }
  lost = lost || options.begin != SegmentId() || !options.released.empty() || !manifest.segments().empty();
  const std::uint64_t log_segments = TIDEMARK_TRY(count_log_segments(files, directory + "/log"));
  if (lost && log_segments != 0) watch.begin(2 * log_segments + manifest.segments().size());  // the log is read twice
  std::unordered_map<MachineId, pb::MachineRecord> machines;
  const auto note_machines = [&](CommitInfo&& commit) -> Status {
    TIDEMARK_TRY(watch.segment(commit.segment));
    for (const RecordInfo& record : commit.records) {
      if (record.type != RecordType::machine) continue;
      machines[record.machine] = TIDEMARK_TRY(parse_record<pb::MachineRecord>(record));
    }
    return {};
  };
  TIDEMARK_TRY(recover_log(files, directory + "/log", options, note_machines));
  std::vector<pb::MachineRecord> records;
  for (auto& [id, record] : machines) records.push_back(std::move(record));
  TIDEMARK_TRY(index.begin_rebuild(records, removed));
  for (const SegmentId segment : manifest.segments()) {
    TIDEMARK_TRY(watch.segment(segment));
    const std::string path = cold_path(cold, segment);
    if (!TIDEMARK_TRY(files.exists(path))) {
      return fail(Code::corrupt, path, "the index is lost, and this segment is missing",
                  "restore the data directory from a copy; nothing of it was changed");
    }
    const auto file = TIDEMARK_TRY(files.open(path, OpenMode::read, true));
    const auto table = TIDEMARK_TRY(read_cold_table(*file, segment, options.partition, options.salt));
    TIDEMARK_TRY(index.add_cold(segment, table));
  }
  return lost;
}

Status check_begin(const RecoveryResult& recovery, const Released& released, const std::string& index_directory) {
  if (recovery.commits == 0 || recovery.walked_from == released.begin_lsn) return {};
  return fail(Code::corrupt, index_directory,
              fmt::format("the index is lost, and the log begins with LSN {} instead of {}: what was before is missing",
                          recovery.walked_from.value(), released.begin_lsn.value()),
              "restore the data directory from a copy; nothing of the log was changed");
}

}  // namespace tidemark::storage
