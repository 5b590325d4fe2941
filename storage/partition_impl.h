// What a Partition is made of. Included by partition*.cc only.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "storage/catalog.h"
#include "storage/checker.h"
#include "storage/disk_reader.h"
#include "storage/indexer.h"
#include "storage/partition.h"
#include "storage/released.h"
#include "storage/sealing.h"
#include "storage/segment_keeper.h"
#include "storage/settler.h"
#include "storage/superblock.h"
#include "storage/volume_keys.h"

namespace tidemark::storage {

struct Partition::Impl final : Log::Listener, Catalog::Visitor {
  Impl(FileSystem& files, std::string directory, const PartitionOptions& options, IoQueue& queue,
       Partition::Listener& listener);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void on_durable(CommitInfo&& commit) override;
  void on_stopped(const Error& why) override;
  void epoch_durable(const MachineId& machine, EpochNumber epoch, const Hash128& digest) override;
  void blocks_durable(const MachineId& machine, std::uint64_t payload_bytes) override;

  Result<Lsn> append(RecordType type, const MachineId& machine, DiskId disk, std::span<const std::byte> payload);
  Result<Lsn> append(RecordType type, const MachineId& machine, const google::protobuf::MessageLite& message);
  std::size_t room() const;
  void offer_room();
  void stop(const Error& why);
  Status check_space();
  void note_counters();
  Index& index() const { return *context->index; }

  // On the indexer's thread.
  void housekeeping();
  void refresh_space();
  Status release(const std::vector<SegmentId>& segments);
  Status release_cold(const std::vector<SegmentId>& segments);
  // What the settler wants the log to tell.
  void append_records();

  // What clones stand on is not dropped while they are there.
  void hold_parent(const pb::MachineRecord& clone);
  void release_parent(const pb::MachineRecord& clone);

  // --- encryption: partition_seal.cc ---
  Status open_keys(const Superblock& found);
  // A machine's record, with keys for the disks that are to have them; they are in use when this returns well.
  Result<Lsn> append_machine(const MachineId& machine, pb::MachineRecord& record);
  Result<Lsn> append_blocks(const MachineId& machine, DiskId disk, std::span<const std::byte> payload);
  // Under the master key in use what was wrapped with an older one; some at a time.
  void rewrap_some();
  // On the indexer's thread: older master keys that nothing is wrapped with any more are not needed any more.
  Status forget_old_master_keys();

  // Waits until everything durable by now is in the index.
  Status wait_indexed(std::chrono::milliseconds timeout);
  struct FoundEpoch {
    pb::EpochEntry entry;
    pb::MachineRecord record;  // at least as new: it has every disk of the epoch
  };
  // Both wait for the index when it does not have it yet. Code::not_found: there is none, or it was removed.
  Result<FoundEpoch> find_epoch(const MachineId& machine, EpochNumber epoch, std::chrono::milliseconds timeout);
  // It may be older than an epoch that is found afterwards: its name and what it stands on hold, its disks do not.
  Result<pb::MachineRecord> find_record(const MachineId& machine, std::chrono::milliseconds timeout);
  Result<bool> base_verified(const pb::MachineRecord& record);

  FileSystem& files;
  const std::string directory;
  const PartitionOptions options;
  IoQueue& queue;
  Partition::Listener& listener;

  std::shared_ptr<ReadContext> context;
  std::unique_ptr<SegmentKeeper> keeper;
  std::unique_ptr<Log> log;
  std::unique_ptr<Indexer> indexer;
  std::unique_ptr<ColdManifest> manifest;
  std::unique_ptr<Settler> settler;
  std::unique_ptr<Checker> checker;

  // Of the indexer's thread.
  std::optional<Released> released;  // absent: the file is damaged, and nothing more is given back
  bool release_failed = false;
  std::map<SegmentId, Lsn> begins;  // first LSNs of segments that stand behind some that were given back
  PartitionId id;
  std::uint32_t salt = 0;

  // Of the indexer's thread once open; the mutex is for who asks which master keys are needed.
  Superblock superblock;
  mutable std::mutex superblock_mutex;
  std::atomic<bool> rewrapped{false};  // all that is wrapped with older master keys, durably

  // Of the shard's thread.
  std::shared_ptr<VolumeKeys> keys;
  BlockSealer sealer;
  std::deque<MachineId> to_rewrap;
  Catalog catalog;
  std::optional<Error> stopped;
  std::deque<std::pair<Lsn, std::function<void(Status)>>> waiting;
  struct Durable {
    MachineId machine;
    std::uint64_t payload_bytes = 0;
    EpochNumber epoch{};
    Hash128 digest{};
  };
  std::vector<Durable> durable_events;
  std::size_t wanted_room = 0;  // somebody was told to be busy: on_room when there is as much

  // Of any thread.
  std::atomic<std::uint64_t> durable_lsn{0};
  std::atomic<std::uint64_t> last_lsn{0};
  std::atomic<std::uint64_t> available_bytes{0};
  std::atomic<std::uint64_t> total_bytes{0};
  std::atomic<std::uint64_t> file_system_id{0};
  std::atomic<bool> segment_ready{false};
  mutable std::mutex counters_mutex;
  Log::Counters counters;
};

}  // namespace tidemark::storage
