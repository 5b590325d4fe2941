// A partition: a store with an identity (log + index + catalog), owned by one shard. The unit of placement.
//
// Directory: partition.toml-like superblock `partition` (id, salt, format version, server id), `log/`, `cold/`,
// `index/`.
//
// Everything not marked "any thread" belongs to the shard's thread. Reads of an acknowledged epoch wait until the
// indexer has applied it; acknowledgement never waits for the index.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "storage/block_cache.h"
#include "storage/catalog.h"
#include "storage/changes.h"
#include "storage/checker.h"
#include "storage/clone.h"
#include "storage/disk_view.h"
#include "storage/file.h"
#include "storage/index.h"
#include "storage/log.h"
#include "storage/master_keys.h"
#include "storage/open_progress.h"
#include "storage/reader.h"
#include "storage/recovery.h"
#include "storage/settler.h"
#include "wire/block.h"

namespace tidemark::storage {

struct Superblock;  // storage/superblock.h

struct PartitionOptions {
  std::uint64_t segment_size = limits::kSegmentSizeDefault;
  std::uint32_t reserve_segments = limits::kReserveSegments;
  std::uint32_t commits_in_flight_max = 2;
  // Below this on the file system nothing new is taken in and no segment is formatted for it. Pruning, settling and the
  // records they write go on: what they need is left for them. free_space_needed() of storage/space.h says how much.
  std::uint64_t free_space_min = 256 << 20;
  IndexOptions index;
  std::string index_directory;  // empty: `index` in the partition's directory
  std::string index_damage;     // why it is made again although it can be opened; empty: it is not
  // Log that may wait for the index: beyond it room() is 0.
  std::uint64_t index_lag_max = 128 << 20;
  std::uint64_t index_flush_bytes = limits::kReplayMax;  // flushed after this much log, or kIndexFlushSeconds
  // False: no threads; indexing, flushing, formatting and recycling happen inside the calls. For simulation.
  bool background = true;
  SettlerOptions settler;  // its `background` follows this one's
  CheckerOptions checker;  // the same
  // Encryption (storage/sealing.h). `encrypt`: every machine whose disks are opened from now on; it needs a master key.
  // A machine that is encrypted stays so, and without its master keys the partition does not open.
  std::shared_ptr<const MasterKeys> master_keys;
  bool encrypt = false;
  OpenProgress* progress = nullptr;  // of opening; outlives open()
};

class Partition {
 public:
  class Listener {
   public:
    // An epoch of this machine is durable: acknowledge it.
    virtual void on_epoch_durable(const MachineId& machine, EpochNumber epoch, const Hash128& digest) = 0;
    // Payload bytes of this machine's blocks became durable (or failed with the log) and left the buffers.
    virtual void on_bytes_durable(const MachineId& machine, std::uint64_t payload_bytes) = 0;
    // After Code::busy: there is room again.
    virtual void on_room() = 0;
    virtual void on_stopped(const Error& why) = 0;

   protected:
    ~Listener() = default;
  };

  // Makes a new, empty one. Durable when it returns.
  static Status create(FileSystem& files, const std::string& directory, PartitionId id, const std::string& server_id);

  // The master keys that what is stored may be encrypted with; without any it is in the clear.
  static Result<std::vector<MasterKeyId>> master_keys_needed(FileSystem& files, const std::string& directory);

  struct Opened {
    std::unique_ptr<Partition> partition;
    RecoveryResult recovery;
    std::string index_rebuilt;  // why the index was made again from the log; empty: it was not
  };
  // Recovers, replays into the index, raises the incarnation, starts the indexer. Blocking, and long when the index has
  // to be made again (it is missing or damaged): on any thread, of which the partition then knows nothing.
  // Code::corrupt fences the partition: it cannot be opened, nothing is changed. Code::not_found: a master key is
  // missing; nothing is changed either. Code::cancelled: it was called off (`progress`).
  static Result<Opened> open(FileSystem& files, const std::string& directory, PartitionId id,
                             const std::string& server_id, const PartitionOptions& options, IoQueue& queue,
                             const Clock& clock, Listener& listener);
  ~Partition();  // close() first for a clean end; without it, it ends like a crash. Readers must be gone before
  Partition(const Partition&) = delete;
  Partition& operator=(const Partition&) = delete;

  // Any thread. Something of the index is damaged: it is made again when the partition is opened again and told so
  // (PartitionOptions::index_damage). Nothing of what is stored is lost by it.
  std::optional<Error> index_damage() const;

  // --- catalog ---
  const MachineState* find(const MachineId& machine) const;
  const MachineState* find_by_name(const std::string& name) const;
  void for_each_machine(const std::function<void(const MachineState&)>& visit) const;  // without clones
  void for_each_clone(const std::function<void(const MachineState&)>& visit) const;
  // Writes the machine's record whole (new, renamed, quarantined, removed ...). `durable` is called once it is.
  Status put_machine(const pb::MachineRecord& record, std::function<void(Status)> durable);
  // Calls back, on the shard's thread, when everything appended so far is durable (at once if it is), or with the
  // log's error. For Hello: what a machine's last session left in flight must be settled before the next one is told.
  void when_durable(std::function<void(Status)> then);
  // Adds or resizes a disk (recognised by its identity) and gives its number; the record is in the log before any block
  // that follows.
  Result<pb::DiskRecord> open_disk(const MachineId& machine, const pb::DiskRecord& disk);

  // --- clones (storage/clone.h) ---
  // Any thread. What clones of this machine (or clone) at `epoch` are made of. Code::not_found: there is no such point,
  // or it is going; busy: they would be more than kCloneDepthMax deep.
  Result<CloneBase> clone_base(const MachineId& machine, EpochNumber epoch, std::chrono::milliseconds timeout);
  // Makes them, all or none; `durable` is called once they are. Code::busy: no room in the log now. They are dropped as
  // machines are removed; a machine that others stand on cannot be (Code::busy).
  Status create_clones(const CloneBase& base, std::span<const CloneName> names, const std::string& by,
                       WallMicros now_us, std::function<void(Status)> durable);

  // --- epochs: the caller has checked the order (wire/server_session.h) and the blocks (wire::check_blocks) ---
  // Each fails with Code::busy, having done nothing, when the log has no room now. begin_epoch and append_blocks fail
  // with Code::no_space while the file system has less than free_space_min left; commits and aborts are still taken.
  // begin_epoch of the open initial epoch resumes it; of any other while one is open: Code::protocol. abort_epoch of an
  // epoch that is not open does nothing.
  Status begin_epoch(const MachineId& machine, const pb::EpochBeginRecord& begin);
  Status append_blocks(const MachineId& machine, DiskId disk, std::span<const std::byte> payload);
  Status commit_epoch(const MachineId& machine, const pb::EpochCommitRecord& commit);
  Status abort_epoch(const MachineId& machine, const pb::EpochAbortRecord& abort);
  void set_unchanged(const MachineId& machine, WallMicros as_of_us);

  // Asks for these points to be dropped; done in the background. Those that are being read, and the newest epoch, stay.
  // Any thread.
  void drop_points(const MachineId& machine, const std::vector<EpochNumber>& epochs);
  // Takes back what was asked for and has not begun: they may be needed since. Any thread.
  void keep_points(const MachineId& machine);

  // --- the loop ---
  // Callbacks of Listener come from inside the queue's reap(), end_turn() and on_idle().
  void end_turn();  // closes the open commit; the caller then submits the queue
  void on_idle();
  std::size_t room() const;
  bool waits_for_room() const;  // somebody was told Code::busy for want of room, and on_room() is still to come
  bool stopped() const;
  // From now on nothing is taken: what it stands on is not to be trusted. Tells the listener, as a failed log does.
  void stop(const Error& why);
  // No write of it is under way: it may be destroyed, on any thread. True some time after it stopped.
  bool quiet() const;
  // Waits for the log, applies and flushes the index, joins the indexer. Nothing is appended afterwards.
  Status close();

  // --- any thread ---
  // What was read back and what was found: scrubs, damage, verified points. Its calls for any thread.
  Checker& checker() const;
  // Waits (bounded by `timeout`) until the index has the epoch. Code::not_found names what is there instead. Of a
  // clone, epoch 0 is the point that it stands on.
  Result<std::unique_ptr<Reader>> read(const MachineId& machine, DiskId disk, EpochNumber epoch,
                                       std::chrono::milliseconds timeout);
  // What of a disk was written after `from` and up to `to`; of a clone, `from` may be 0. The disk need not have been
  // there at `from`.
  Result<std::unique_ptr<Changes>> changes(const MachineId& machine, DiskId disk, EpochNumber from, EpochNumber to,
                                           std::chrono::milliseconds timeout);
  // The same for many threads at a time; `cache` may be null.
  Result<std::shared_ptr<const DiskView>> view(const MachineId& machine, DiskId disk, EpochNumber epoch,
                                               std::chrono::milliseconds timeout, std::shared_ptr<BlockCache> cache);
  // Newest first; `limit` 0: all. A clone's last one is number 0: the point that it stands on.
  // `verified` of the entries is as of now.
  Result<std::vector<pb::EpochEntry>> epochs(const MachineId& machine, std::size_t limit, bool with_fuzzy,
                                             std::chrono::milliseconds timeout);
  // The newest point at or before `time_us` (nullopt: the newest of all).
  Result<pb::EpochEntry> point_at(const MachineId& machine, std::optional<WallMicros> time_us,
                                  std::chrono::milliseconds timeout);

  // Bytes by machine, as the index has them: a moment behind the log. See Index::space().
  std::vector<Index::MachineSpace> machine_space() const;
  // Index::table_bytes(): may wait for the disk.
  std::vector<std::uint64_t> index_bytes(std::span<const MachineId> machines) const;
  SpaceInfo space() const;  // of its file system, not older than a second or so
  // Index::check_counts(), between two commits.
  Status check_counts() const;

  struct Stats {
    Log::Counters log;
    Lsn last_lsn, durable_lsn, indexed_lsn;
    std::uint64_t index_lag_bytes = 0;
    std::uint64_t segments = 0, segments_reserved = 0, segment_size = 0;
    Index::Usage index;
    SpaceInfo space;
    std::uint64_t damaged_reads = 0;
    Settler::Stats settler;
    Checker::Stats checker;
    std::uint64_t cold_segments = 0, cold_bytes = 0;  // bytes of their files
    std::uint64_t stored_bytes = 0;                   // that the versions of all machines refer to
    std::uint64_t encrypted_volumes = 0;
    std::vector<MasterKeyId> master_keys;  // that any of them may be wrapped with; more than one: being rewrapped
    std::optional<Error> index_error;      // the indexer cannot go on, and tries again
    std::optional<Error> segments_error;   // no new segment can be made
  };
  Stats stats() const;

 private:
  struct Impl;  // storage/partition_impl.h
  explicit Partition(std::unique_ptr<Impl> impl);
  static Result<Opened> open_with_index(FileSystem& files, const std::string& directory, const Superblock& superblock,
                                        const PartitionOptions& options, IoQueue& queue, const Clock& clock,
                                        Listener& listener, bool& made_again);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tidemark::storage
