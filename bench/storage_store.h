// A partition on real files, driven in the caller's thread: what benchmarks of the store share. Its directory is made
// in TIDEMARK_BENCH_DIR (default: the temporary directory).
#pragma once

#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/units.h"
#include "storage/epoch_progress.h"
#include "storage/partition.h"
#include "storage/system_files.h"
#include "storage/uring_queue.h"

namespace tidemark::bench {

using namespace std::chrono_literals;
namespace pb = storage::pb;

inline constexpr char kServer[] = "0123456789abcdef";

inline MachineId machine() {
  std::array<std::byte, MachineId::kSize> bytes{};
  bytes[3] = std::byte{9};
  return MachineId(bytes);
}

inline double cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// Of this process, in MiB: "VmRSS" now, "VmHWM" at most since the last reset.
inline double memory_mib(const std::string& which) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(which + ":")) return std::strtod(line.c_str() + which.size() + 1, nullptr) / 1024;
  }
  return 0;
}
inline void reset_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

class Store final : public storage::Partition::Listener {
 public:
  // `compressed`: blocks are nearly empty, and encoded as such.
  Store(storage::SettlerOptions settler, std::uint64_t disk_granules, bool compressed = false)
      : disk_granules_(disk_granules), compressed_(compressed) {
    spdlog::set_level(spdlog::level::err);
    const char* const chosen = getenv("TIDEMARK_BENCH_DIR");
    directory_ = (chosen != nullptr ? std::filesystem::path(chosen) : std::filesystem::temp_directory_path()) /
                 "tidemark-store-XXXXXX";
    if (mkdtemp(directory_.data()) == nullptr) std::abort();
    storage::PartitionOptions options;
    options.background = false;
    options.settler = settler;
    options.settler.log_garbage_max = -1;  // everything is moved
    auto queue = storage::make_uring_queue(64);
    if (!queue) std::abort();
    queue_ = std::move(*queue);
    check(storage::Partition::create(storage::system_files(), directory_ + "/p0", PartitionId(0), kServer));
    auto opened = storage::Partition::open(storage::system_files(), directory_ + "/p0", PartitionId(0), kServer,
                                           options, *queue_, clock_, *this);
    check(opened ? Status() : Status(std::unexpected(opened.error())));
    partition_ = std::move(opened->partition);
    pb::MachineRecord record;
    record.set_machine(storage::machine_to_bytes(machine()));
    record.set_name("bench");
    check(partition_->put_machine(record, {}));
    pb::DiskRecord disk;
    disk.set_identity("disk");
    disk.set_size(disk_granules_ * limits::kGranuleSize);
    check(partition_->open_disk(machine(), disk) ? Status() : Status(fail(Code::internal, "disk", "was not opened")));
    pump();
  }
  ~Store() {
    partition_.reset();
    std::filesystem::remove_all(directory_);
  }

  // One epoch of random blocks among the first `span` granules.
  void epoch(std::uint64_t blocks, std::uint32_t granules, std::uint64_t span) {
    const std::uint64_t number = ++epoch_;
    pb::EpochBeginRecord begin;
    begin.set_number(number);
    begin.set_kind(2);
    auto* size = begin.add_disks();
    size->set_disk(0);
    size->set_size(disk_granules_ * limits::kGranuleSize);
    retry([&] { return partition_->begin_epoch(machine(), begin); });
    wire::BlockEncoder encoder(machine(), compressed_ ? 1 : 0);
    encoder.start(DiskId(0), EpochNumber(number));
    std::vector<std::byte> plain(std::size_t{granules} * limits::kGranuleSize);
    if (!compressed_) random_.fill(plain);
    for (std::uint64_t i = 0; i < blocks; ++i) {
      const std::uint64_t word = random_.next();
      std::memcpy(plain.data(), &word, sizeof word);
      encoder.add(random_.below(span / granules) * granules, plain);
      const bool full = encoder.payload().size() + limits::kBlockHeaderSize + plain.size() > limits::kFramePayloadMax;
      if (!full && i + 1 != blocks) continue;
      const auto payload = encoder.take();
      retry([&] { return partition_->append_blocks(machine(), DiskId(0), payload); });
    }
    pb::EpochCommitRecord commit;
    commit.set_number(number);
    commit.set_time_us(clock_.wall_us());
    commit.set_arrival_us(clock_.wall_us());
    commit.set_consistency(2);
    commit.set_digest(storage::hash_to_bytes({number, number}));
    retry([&] { return partition_->commit_epoch(machine(), commit); });
    pump();
    clock_.advance(1s);
  }

  // An epoch of one block, of a clone.
  void epoch_of(const MachineId& clone, std::uint64_t number, std::uint64_t granule) {
    pb::EpochBeginRecord begin;
    begin.set_number(number);
    begin.set_kind(2);
    auto* size = begin.add_disks();
    size->set_disk(0);
    size->set_size(disk_granules_ * limits::kGranuleSize);
    retry([&] { return partition_->begin_epoch(clone, begin); });
    wire::BlockEncoder encoder(clone, 0);
    encoder.start(DiskId(0), EpochNumber(number));
    std::vector<std::byte> plain(limits::kGranuleSize);
    random_.fill(plain);
    encoder.add(granule, plain);
    const auto payload = encoder.take();
    retry([&] { return partition_->append_blocks(clone, DiskId(0), payload); });
    pb::EpochCommitRecord commit;
    commit.set_number(number);
    commit.set_consistency(2);
    commit.set_digest(storage::hash_to_bytes({number, number}));
    retry([&] { return partition_->commit_epoch(clone, commit); });
    pump();
  }

  // All there is to do.
  void background() {
    for (Lsn before; before != partition_->stats().last_lsn;) {
      before = partition_->stats().last_lsn;
      partition_->on_idle();
      pump();
    }
    if (partition_->stats().settler.error) std::abort();
  }
  void drop_all_but_every(std::uint64_t nth) {
    std::vector<EpochNumber> gone;
    for (std::uint64_t number = 1; number < epoch_; ++number) {
      if (number % nth != 0) gone.emplace_back(number);
    }
    partition_->drop_points(machine(), std::move(gone));
  }
  storage::Settler::Stats settled() const { return partition_->stats().settler; }
  storage::Partition& partition() { return *partition_; }
  void pump() {
    for (;;) {
      partition_->end_turn();
      queue_->submit();
      if (queue_->in_flight() == 0) return;
      queue_->wait();
      queue_->submit();
    }
  }
  static void check(const Status& status) {
    if (status) return;
    fprintf(stderr, "bench: %s\n", status.error().message().c_str());
    std::abort();
  }
  ManualClock& clock() { return clock_; }

  void on_epoch_durable(const MachineId&, EpochNumber, const Hash128&) override {}
  void on_bytes_durable(const MachineId&, std::uint64_t) override {}
  void on_room() override {}
  void on_stopped(const Error&) override { std::abort(); }

 private:
  template <typename Call>
  void retry(Call call) {
    for (;;) {
      const Status done = call();
      if (done) return;
      if (done.error().code != Code::busy) check(done);
      pump();
    }
  }

  const std::uint64_t disk_granules_;
  const bool compressed_;
  std::string directory_;
  ManualClock clock_{1'700'000'000'000'000};
  std::unique_ptr<storage::IoQueue> queue_;
  std::unique_ptr<storage::Partition> partition_;
  Random random_{1};
  std::uint64_t epoch_ = 0;
};

}  // namespace tidemark::bench
