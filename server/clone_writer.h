// Writing to a clone: what NBD clients change on any of its disks becomes epochs of the clone, in the partition's log.
//
//   change() -> queue -> one worker at a time -> overlay (reads see it from here on; the change is done)
//                                             -> blocks, in order -> the shard -> the log
//   flush()  -> the same queue                -> the commit of the epoch -> durable -> done
//   durable, and later in the index           -> the view moves on, and what it shows leaves the overlay
//
// One worker at a time works on the queue, so order, read-modify-write and epoch numbers need no more care. An epoch is
// visible whole or not at all, so what was not flushed when the server dies was never written; what was, is there.
//
// Bounded: kOverlayMax of what is not in the index; beyond it changes wait for that. When there is no space, changes
// are refused, flushes fail, and what is in the overlay stays and is tried again. When the partition stops, all fails.
//
// Thread-safe. open() and reads block: on workers.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "server/nbd_export.h"
#include "server/overlay.h"
#include "wire/block.h"

namespace tidemark::server {

class NbdService;
class Shard;

class CloneWriter : public std::enable_shared_from_this<CloneWriter> {
 public:
  static constexpr std::uint64_t kOverlayMax = 64_MiB;
  static constexpr std::uint64_t kCommitBytes = 16_MiB;          // so much is committed unasked,
  static constexpr auto kCommitAfter = std::chrono::seconds(1);  // and what is older than that

  struct Place {
    Shard* shard;
    PartitionHost* host;
    std::shared_ptr<storage::Partition> partition;
    MachineId id;
    std::string name;
  };
  // What an earlier writer left in the log is durable, or given up, when it returns.
  static Result<std::shared_ptr<CloneWriter>> open(NbdService& service, const Place& place);
  CloneWriter(NbdService& service, const Place& place);
  ~CloneWriter();

  Status open_disk(DiskId disk);  // before anything is asked of it
  Status read(DiskId disk, std::uint64_t offset, std::span<std::byte> to, storage::ReadScratch& scratch,
              std::vector<storage::ByteRange>* zeroes);
  void read_many(DiskId disk, std::span<storage::DiskRead> reads, storage::ReadScratch& scratch);
  // What shows this range as of now, without blocking; null: not a view alone, or somebody is busy here.
  std::shared_ptr<const storage::DiskView> view_for(DiskId disk, std::uint64_t offset, std::uint64_t length);
  Result<std::vector<storage::ByteRange>> map(DiskId disk, std::uint64_t offset, std::uint64_t length);
  void prefetch(DiskId disk, std::uint64_t offset, std::uint64_t length, storage::ReadScratch& scratch);
  void change(DiskId disk, NbdChange change);
  void flush(std::function<void(Status)> done);
  void tick();    // about once a second
  bool broken();  // nothing more comes of it
  std::uint64_t overlay_bytes() const { return overlay_bytes_->load(std::memory_order_relaxed); }

 private:
  struct Disk {
    std::uint64_t size = 0;
    std::shared_ptr<const storage::DiskView> view;
    Overlay overlay;
  };
  struct Queued {
    std::optional<DiskId> disk;  // absent: a flush
    NbdChange change;
  };
  // One step for the log; they are taken in order.
  struct Step {
    enum class Kind : std::uint8_t { begin, blocks, commit } kind;
    EpochNumber epoch;
    DiskId disk;
    std::vector<std::byte> payload;
    Hash128 digest;
    WallMicros time_us = 0;
  };
  using Waiters = std::vector<std::function<void(Status)>>;

  // On a worker, one at a time.
  void work();
  void run();
  Status apply(DiskId disk, const NbdChange& change);
  Status put_edge(DiskId disk, std::uint64_t offset, std::span<const std::byte> bytes);
  void put_data(DiskId disk, std::uint64_t first, std::span<const std::byte> bytes, std::uint64_t granules);
  void put_zeroes(DiskId disk, std::uint64_t first, std::uint64_t granules);
  void make_ready(DiskId disk, std::size_t bytes);
  void hand_payload();
  void hand(Step step);
  EpochNumber commit();  // the epoch to wait for
  void refresh();
  void want_refresh();
  void enqueue(Queued queued);

  // On the shard.
  void take(std::vector<Step> steps);
  void advance();
  void failed(const Error& why);
  Status write(storage::Partition& partition, const Step& step);
  void durable(EpochNumber epoch, const Status& status);

  NbdService& service_;
  const Place place_;
  std::vector<std::pair<DiskId, std::uint64_t>> sizes_;  // of all disks it has; set by open()
  const std::shared_ptr<std::atomic<std::uint64_t>> overlay_bytes_ = std::make_shared<std::atomic<std::uint64_t>>(0);

  std::mutex mutex_;
  std::map<DiskId, Disk> disks_;
  std::deque<Queued> queue_;
  bool working_ = false;
  bool refreshing_ = false;
  std::optional<Error> broken_;   // for good
  std::optional<Error> no_room_;  // for now
  EpochNumber durable_, shown_;
  EpochNumber committed_;  // the newest epoch whose commit was handed over
  std::map<EpochNumber, Waiters> waiters_;
  std::chrono::steady_clock::time_point refreshed_;

  // Of the worker whose turn it is.
  std::unique_ptr<wire::BlockEncoder> encoder_;
  EpochNumber epoch_;  // that is being written
  bool begun_ = false;
  std::optional<DiskId> encoding_;
  wire::EpochContent content_;
  Hash128 digest_;  // of the epoch before
  std::atomic<std::uint64_t> uncommitted_{0};
  std::vector<Step> steps_;  // of this turn
  std::atomic<std::int64_t> dirty_since_{0};

  // Of the shard's thread.
  std::deque<Step> pending_;
  bool advancing_ = false;
};

}  // namespace tidemark::server
