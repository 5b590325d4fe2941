// Creating and opening a partition.
//
// Opening: superblock, index, recovery of the log from the index's mark (or from the log's begin, when the index is
// lost), replay, a flush, and only then the log, in a new incarnation and a new segment.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <optional>

#include "base/marks.h"
#include "base/random.h"
#include "base/thread_task.h"
#include "storage/partition_impl.h"
#include "storage/rebuild_index.h"
#include "storage/replay.h"

namespace tidemark::storage {

namespace {

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// Cold segments that the index does not know were cut off by a crash before it was told of them.
Status tidy_cold(FileSystem& files, const std::string& directory, const Index& index, ColdManifest& manifest) {
  const std::string cold = directory + "/cold";
  std::vector<SegmentId> known;
  for (const auto& [segment, references] : index.segments()) {
    if (is_cold(segment) && references != 0) known.push_back(segment);
  }
  if (!TIDEMARK_TRY(files.exists(cold))) {
    TIDEMARK_TRY(files.make_directory(cold));
    TIDEMARK_TRY(files.sync_directory(directory));
  }
  // A rebuild needs it; as it is, the index knows the same.
  const auto loaded = manifest.load();
  if (!loaded) {
    spdlog::error("event=cold_manifest_damaged path={} error=\"{}\"", cold, loaded.error().message());
  } else if (!*loaded && !known.empty()) {
    spdlog::error("event=cold_manifest_missing path={} segments={}", cold, known.size());
  } else if (!*loaded) {
    TIDEMARK_TRY(manifest.create());
  }
  TIDEMARK_TRY(manifest.add(known));
  for (const SegmentId segment : known) {
    if (TIDEMARK_TRY(files.exists(cold_path(cold, segment)))) continue;
    spdlog::error("event=cold_segment_missing path={} remedy=\"restore it from a copy; what is in it cannot be read\"",
                  cold_path(cold, segment));
  }
  std::vector<SegmentId> unknown;
  for (const SegmentId segment : manifest.segments()) {
    if (!index.knows_segment(segment)) unknown.push_back(segment);
  }
  TIDEMARK_TRY(manifest.remove(unknown));
  const auto listed = manifest.segments();
  for (const SegmentId segment : TIDEMARK_TRY(list_cold_segments(files, cold))) {
    if (!listed.contains(segment)) TIDEMARK_TRY(files.remove(cold_path(cold, segment)));
  }
  manifest.measure();
  return {};
}

std::string index_directory_of(const PartitionOptions& options, const std::string& directory) {
  return options.index_directory.empty() ? directory + "/index" : options.index_directory;
}

Status check_master_keys(const Superblock& superblock, const PartitionOptions& options, const std::string& directory) {
  if (options.encrypt && (options.master_keys == nullptr || options.master_keys->empty())) {
    return fail(Code::invalid_argument, directory, "it is to be encrypted, and there is no master key");
  }
  if (superblock.master_keys.empty()) return {};
  if (options.master_keys == nullptr) {
    return std::unexpected(no_master_key_file("master key file", superblock.master_keys, directory));
  }
  return options.master_keys->need(superblock.master_keys, directory);
}

}  // namespace

Result<std::vector<MasterKeyId>> Partition::master_keys_needed(FileSystem& files, const std::string& directory) {
  return TIDEMARK_TRY(read_superblock(files, directory)).master_keys;
}

Status Partition::create(FileSystem& files, const std::string& directory, PartitionId id,
                         const std::string& server_id) {
  if (server_id.empty() || server_id.find('\n') != std::string::npos || server_id.size() > 256) {
    return fail(Code::invalid_argument, "server id", "it is empty, longer than 256 bytes or has a line break");
  }
  TIDEMARK_TRY(files.make_directory(directory));
  if (TIDEMARK_TRY(files.exists(directory + "/partition"))) {
    return fail(Code::already_exists, directory, "there is a partition already");
  }
  TIDEMARK_TRY(files.make_directory(directory + "/log"));
  TIDEMARK_TRY(files.sync_directory(directory + "/log"));
  Superblock superblock{.partition = id, .salt = 0, .server_id = server_id, .master_keys = {}};
  secure_random(std::as_writable_bytes(std::span(&superblock.salt, 1)));
  TIDEMARK_TRY(write_superblock(files, directory, superblock));
  return files.sync_directory(parent_of(directory));
}

Result<Partition::Opened> Partition::open(FileSystem& files, const std::string& directory, PartitionId id,
                                          const std::string& server_id, const PartitionOptions& options, IoQueue& queue,
                                          const Clock& clock, Listener& listener) {
  const Superblock superblock = TIDEMARK_TRY(read_superblock(files, directory));
  TIDEMARK_TRY(check_superblock(superblock, directory, id, server_id));
  TIDEMARK_TRY(check_master_keys(superblock, options, directory));
  bool made_again = false;
  auto opened = open_with_index(files, directory, superblock, options, queue, clock, listener, made_again);
  if (opened || made_again || opened.error().code != Code::corrupt ||
      opened.error().object != index_directory_of(options, directory)) {
    return opened;
  }
  // It could be opened, and what was wrong with it was only met when the log was applied.
  PartitionOptions again = options;
  again.index_damage = opened.error().what;
  return open_with_index(files, directory, superblock, again, queue, clock, listener, made_again);
}

// `made_again`: the index was, or would have been.
Result<Partition::Opened> Partition::open_with_index(FileSystem& files, const std::string& directory,
                                                     const Superblock& superblock, const PartitionOptions& options,
                                                     IoQueue& queue, const Clock& clock, Listener& listener,
                                                     bool& made_again) {
  const PartitionId id = superblock.partition;
  Opened opened;
  const std::string index_directory = index_directory_of(options, directory);
  const bool index_existed = Index::exists(index_directory);
  OpenProgress unwatched;
  RebuildWatch watch(index_directory, options.progress != nullptr ? *options.progress : unwatched);
  TIDEMARK_TRY(Index::destroy(unfinished_index(index_directory)));  // of a rebuild that was cut off
  auto released = read_released(files, directory);
  Result<std::unique_ptr<Index>> index = fail(Code::corrupt, index_directory, options.index_damage);
  if (options.index_damage.empty()) index = Index::open(index_directory, options.index);
  if (!index && index.error().code == Code::corrupt) {
    made_again = true;
    leave_mark(Mark::index_damaged);
    opened.index_rebuilt = "it was damaged: " + index.error().what;
    spdlog::warn("event=index_damaged path={} error=\"{}\"", index_directory, index.error().message());
    if (!released) return std::unexpected(std::move(released).error());  // without it none can be made
    TIDEMARK_TRY(Index::destroy(index_directory));
    index = Index::open(index_directory, options.index);
  }
  if (!index) return std::unexpected(std::move(index).error());

  const std::string log_directory = directory + "/log";
  auto impl = std::make_unique<Impl>(files, directory, options, queue, listener);
  impl->keys = std::make_shared<VolumeKeys>(options.master_keys, id, options.encrypt);
  impl->context = std::make_shared<ReadContext>(std::move(*index), files, directory);
  impl->manifest = std::make_unique<ColdManifest>(files, directory + "/cold");
  impl->id = id;
  impl->salt = superblock.salt;
  const LogMark mark = impl->index().mark();
  RecoveryOptions recovery_options{.partition = id, .salt = superblock.salt, .mark = mark, .begin = {}, .released = {}};
  const bool from_the_begin = mark.segment == SegmentId();
  made_again = made_again || from_the_begin;
  bool lost = !index_existed || !opened.index_rebuilt.empty();
  std::optional<ThreadTask> task;
  if (from_the_begin) task.emplace("td-rebuild");
  if (released) {
    if (from_the_begin) {
      recovery_options.begin = released->begin;
      recovery_options.released = released->segments;
      lost = TIDEMARK_TRY(
          begin_rebuild(files, directory, recovery_options, released->removed, impl->index(), lost, watch));
    }
    impl->released = std::move(*released);
  } else {
    if (from_the_begin) return std::unexpected(std::move(released).error());
    // Only a rebuild needs it. Until it is restored no segment is given back.
    spdlog::error("event=released_damaged path={} error=\"{}\"", directory, released.error().message());
  }
  Replay replay(impl->index(), watch);
  opened.recovery = TIDEMARK_TRY(recover_log(files, log_directory, recovery_options,
                                             [&](CommitInfo&& commit) { return replay.take(std::move(commit)); }));
  RecoveryResult& recovery = opened.recovery;
  if (recovery.tail.last_lsn < mark.lsn) {
    return fail(Code::corrupt, directory,
                fmt::format("the index has applied the log up to LSN {}, and the log ends at {}", mark.lsn.value(),
                            recovery.tail.last_lsn.value()),
                "the log is older than the index: restore both from the same moment");
  }
  if (from_the_begin && recovery.commits != 0) {
    TIDEMARK_TRY(check_begin(recovery, *impl->released, index_directory));
    // Of a young partition, one that is there and empty was made shortly before a crash: nothing out of the ordinary.
    if (opened.index_rebuilt.empty() && lost)
      opened.index_rebuilt = index_existed ? "the making of it was cut off" : "it was missing";
  }
  TIDEMARK_TRY(replay.finish());
  if (from_the_begin) TIDEMARK_TRY(impl->index().end_rebuild());
  task.reset();
  watch.end();
  TIDEMARK_TRY(tidy_cold(files, directory, impl->index(), *impl->manifest));
  if (!opened.index_rebuilt.empty()) {
    leave_mark(Mark::index_rebuilt);
    spdlog::warn("event=index_rebuilt path={} reason=\"{}\" commits={} bytes={}", index_directory, opened.index_rebuilt,
                 recovery.commits, recovery.replayed_bytes);
  }
  for (const DamagedBlock& block : recovery.damaged) {
    const auto known = impl->index().machine(block.machine);
    if (!known || known->removed()) continue;
    for (const pb::DiskRecord& disk : known->disks()) {
      if (disk.disk() != block.disk.value()) continue;
      impl->context->damage.report({.machine = block.machine,
                                    .volume = VolumeId(disk.volume()),
                                    .disk = block.disk,
                                    .epoch = block.epoch,
                                    .first_granule = block.place.first_granule,
                                    .granules = block.place.granules,
                                    .segment = block.segment,
                                    .offset = block.place.offset,
                                    .stored_size = block.place.stored_size,
                                    .what = "its checksum does not match"});
    }
  }
  if (recovery.commits != 0) {
    if (const auto flushed = impl->index().flush(); !flushed) {
      // Nothing is lost by it: the same is replayed at the next start. The indexer goes on trying.
      spdlog::warn("event=index_flush_failed path={} error=\"{}\"", index_directory, flushed.error().message());
    }
  }
  TIDEMARK_TRY(impl->open_keys(superblock));
  impl->catalog.for_each_clone([&](const MachineState& clone) { impl->hold_parent(clone.record); });
  impl->durable_lsn = recovery.tail.last_lsn.value();
  impl->last_lsn = recovery.tail.last_lsn.value();
  impl->refresh_space();

  impl->keeper = TIDEMARK_TRY(SegmentKeeper::open(files, {.directory = log_directory,
                                                          .segment_size = options.segment_size,
                                                          .reserve = options.reserve_segments,
                                                          .free_space_min = options.free_space_min,
                                                          .free_space_hard = options.free_space_min / 2,
                                                          .last_id = recovery.segment_max,
                                                          .live = recovery.segments,
                                                          .background = options.background}));
  impl->keeper->set_notice([state = impl.get()] {
    state->refresh_space();  // before the segment is used: what it took may be what was to stay free
    state->segment_ready.store(true, std::memory_order_release);
  });
  // Given back in an earlier life, but a crash came before the file was gone; or superseded, and never of the index.
  const SegmentId persisted = impl->index().persisted_mark().segment;
  for (const SegmentId segment : recovery.segments) {
    if (segment < persisted && !impl->index().knows_segment(segment)) impl->keeper->recycle(segment);
  }
  impl->log = std::make_unique<Log>(LogOptions{.partition = id,
                                               .salt = superblock.salt,
                                               .incarnation = recovery.incarnation_max.next(),
                                               .commits_in_flight_max = options.commits_in_flight_max},
                                    queue, *impl->keeper, clock, recovery.tail, *impl);
  impl->indexer =
      std::make_unique<Indexer>(impl->index(),
                                Indexer::Options{.lag_max = options.index_lag_max,
                                                 .flush_bytes = options.index_flush_bytes,
                                                 .flush_after = std::chrono::seconds(limits::kIndexFlushSeconds),
                                                 .background = options.background},
                                [state = impl.get()] { state->housekeeping(); });
  SettlerOptions settler_options = options.settler;
  settler_options.background = options.background;
  settler_options.segment_size = options.segment_size;
  settler_options.short_below = options.free_space_min + options.free_space_min / 2;
  impl->settler = std::make_unique<Settler>(files, directory, id, superblock.salt, impl->context, *impl->indexer,
                                            *impl->manifest, clock, settler_options);
  CheckerOptions checker_options = options.checker;
  checker_options.background = options.background;
  impl->checker = std::make_unique<Checker>(files, directory, id, superblock.salt, impl->context, *impl->indexer,
                                            *impl->manifest, clock, checker_options);
  impl->indexer->start();
  opened.partition.reset(new Partition(std::move(impl)));
  return opened;
}

}  // namespace tidemark::storage
