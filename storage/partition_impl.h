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
#include "storage/disk_reader.h"
#include "storage/indexer.h"
#include "storage/partition.h"
#include "storage/released.h"
#include "storage/segment_keeper.h"
#include "storage/settler.h"
#include "storage/superblock.h"

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

  // Waits until everything durable by now is in the index.
  Status wait_indexed(std::chrono::milliseconds timeout);
  // Code::not_found: there is none, or it was removed.
  Result<pb::EpochEntry> find_epoch(const MachineId& machine, EpochNumber epoch, std::chrono::milliseconds timeout);
  Result<pb::MachineRecord> find_record(const MachineId& machine, std::chrono::milliseconds timeout);

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

  // Of the indexer's thread.
  std::optional<Released> released;  // absent: the file is damaged, and nothing more is given back
  bool release_failed = false;
  PartitionId id;
  std::uint32_t salt = 0;

  // Of the shard's thread.
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
  std::atomic<bool> segment_ready{false};
  mutable std::mutex counters_mutex;
  Log::Counters counters;
};

}  // namespace tidemark::storage
