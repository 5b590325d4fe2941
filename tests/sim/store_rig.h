// A partition on a simulated disk, and what a model knows of its machines. Everything happens on the caller's thread.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "storage/block_cache.h"
#include "storage/epoch_progress.h"
#include "storage/partition.h"
#include "storage/sim_disk.h"
#include "wire/block.h"

namespace tidemark::sim {

// What a granule holds: 0 zeroes, else a number that its bytes are made from.
using Token = std::uint64_t;
void granule_of(Token token, std::span<std::byte> to);

// One disk, granule by granule.
struct DiskContent {
  std::uint64_t size = 0;  // bytes
  std::vector<Token> granules;
  void resize(std::uint64_t bytes);
};
using Content = std::map<std::uint32_t, DiskContent>;  // by disk

class StoreRig final : public storage::Partition::Listener {
 public:
  static constexpr char kDirectory[] = "/p0";
  static constexpr char kServer[] = "0123456789abcdef";

  StoreRig(std::uint64_t seed, storage::PartitionOptions options);
  ~StoreRig();

  Status create();
  Status open();     // after create(), crash(), kill() or close()
  void cut_power();  // what was not durable may be lost
  void kill();       // the process dies, the disk lives on
  Status close();
  void lose_index(bool whole = true);  // or it is damaged; while closed
  const std::string& index_directory() const { return options_.index_directory; }
  // Between two lives, what an operator does with the master key file: away with keys that are not needed any more, and
  // a new one in front.
  Status rotate_master_key();
  bool encrypted() const { return options_.encrypt; }
  // For the next life.
  storage::PartitionOptions& options() { return options_; }
  void pump(bool all);  // end of turn, submit, reap; `all`: until nothing is in flight any more
  bool running() const { return partition_ != nullptr; }
  storage::Partition& store() { return *partition_; }
  storage::SimDisk& disk() { return *disk_; }
  storage::FileSystem& files() { return disk_->files(); }
  const storage::Partition::Opened& opened() const { return opened_; }
  const std::optional<Error>& stopped() const { return stopped_; }
  ManualClock& clock() { return clock_; }
  const ManualClock& clock() const { return clock_; }
  // Of what the index said, for reads again and again; no data.
  const std::shared_ptr<storage::BlockCache>& cache() const { return cache_; }
  std::uint64_t operations() const { return operations_ + disk_->operations(); }

  struct Ack {
    MachineId machine;
    EpochNumber epoch;
    Hash128 digest;
  };
  std::vector<Ack> take_acks() { return std::exchange(acks_, {}); }
  std::uint64_t bytes_durable() const { return bytes_durable_; }
  // Of all lives that this rig has ended.
  const storage::Settler::Stats& settled() const { return settled_; }
  std::uint64_t room_offers() const { return room_offers_; }

  void on_epoch_durable(const MachineId& machine, EpochNumber epoch, const Hash128& digest) override {
    acks_.push_back({machine, epoch, digest});
  }
  void on_bytes_durable(const MachineId&, std::uint64_t bytes) override { bytes_durable_ += bytes; }
  void on_room() override { ++room_offers_; }
  void on_stopped(const Error& why) override { stopped_ = why; }

 private:
  const std::shared_ptr<storage::BlockCache> cache_ =
      std::make_shared<storage::BlockCache>(storage::BlockCache::Parts{.blocks = 0, .hashes = 0, .regions = 4 << 20});
  std::string index_directory_;
  storage::PartitionOptions options_;
  ManualClock clock_{1'700'000'000'000'000};
  std::unique_ptr<storage::SimDisk> disk_;
  std::unique_ptr<storage::SimQueue> queue_;
  storage::Partition::Opened opened_;
  std::unique_ptr<storage::Partition> partition_;
  std::vector<Ack> acks_;
  std::uint64_t bytes_durable_ = 0;
  std::uint64_t room_offers_ = 0;
  std::uint64_t operations_ = 0;
  storage::Settler::Stats settled_;
  void note_settled();
  std::optional<Error> stopped_;
};

// Reads a disk as of an epoch whole, in pieces of random sizes, and compares. nullopt: it is right. The error of a
// read that failed is put into `read_error` and is no difference.
std::optional<std::string> compare_disk(storage::Partition& store, const MachineId& machine, std::uint32_t disk,
                                        EpochNumber epoch, const DiskContent& expected, Random& random,
                                        std::optional<Error>& read_error,
                                        std::shared_ptr<storage::BlockCache> cache = nullptr);

}  // namespace tidemark::sim
