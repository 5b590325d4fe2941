// What it costs to apply durable commits to the index, and what a version takes there. Items are granules (4 KiB of
// plain data), bytes are plain bytes; one version is one granule written once.
//
//   index_bytes_per_granule  on disk after a compaction-free flush, over the granules written
//   cpu_us_per_granule       of the applying thread; what RocksDB flushes and compacts on its threads comes on top
#include <benchmark/benchmark.h>
#include <stdlib.h>
#include <time.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "storage/epoch_progress.h"
#include "storage/index.h"

namespace {

using namespace tidemark;
using storage::CommitInfo;
using storage::Index;
using storage::RecordInfo;
using storage::RecordType;

constexpr std::uint64_t kDiskGranules = std::uint64_t{1} << 24;  // 64 GiB
constexpr std::uint64_t kSegment = limits::kSegmentSizeDefault;

MachineId machine() {
  std::array<std::byte, 16> bytes{};
  bytes[3] = std::byte{9};
  return MachineId(bytes);
}

// Commits of about 1 MiB, as the log hands them on.
class Load {
 public:
  // `granules` a block, `blocks` a record; places random over the disk, or one after the other.
  Load(std::uint32_t granules, std::uint32_t blocks, bool sequential, bool compressed)
      : granules_(granules), blocks_(blocks), sequential_(sequential), compressed_(compressed) {
    storage::pb::MachineRecord record;
    record.set_machine(storage::machine_to_bytes(machine()));
    record.set_name("bench");
    auto* disk = record.add_disks();
    disk->set_volume(1);
    disk->set_size(kDiskGranules * limits::kGranuleSize);
    start();
    control(RecordType::machine, record.SerializeAsString());
    storage::pb::EpochBeginRecord begin;
    begin.set_number(1);
    begin.set_kind(2);
    control(RecordType::epoch_begin, begin.SerializeAsString());
  }

  CommitInfo next() {
    while (offset_ - commit_.offset < limits::kCommitSizeTarget) record();
    commit_.last_lsn = Lsn(lsn_ - 1);
    offset_ = round_up(offset_, limits::kIoAlignment);
    commit_.size = static_cast<std::uint32_t>(offset_ - commit_.offset);
    CommitInfo taken = std::move(commit_);
    start();
    return taken;
  }
  std::uint64_t granules_made() const { return made_; }

 private:
  void start() {
    if (offset_ + 2 * limits::kCommitSizeTarget > kSegment) {
      offset_ = limits::kIoAlignment;
      segment_ = segment_.next();
    }
    commit_ = CommitInfo();
    commit_.segment = segment_;
    commit_.offset = offset_;
    commit_.first_lsn = Lsn(lsn_);
    offset_ += 128;
  }
  void control(RecordType type, std::string payload) {
    RecordInfo& info = commit_.records.emplace_back();
    info.lsn = Lsn(lsn_++);
    info.type = type;
    info.machine = machine();
    offset_ += payload.size();
    info.control = std::move(payload);
  }
  void record() {
    RecordInfo& info = commit_.records.emplace_back();
    info.lsn = Lsn(lsn_++);
    info.type = RecordType::blocks;
    info.machine = machine();
    info.first_block = static_cast<std::uint32_t>(commit_.blocks.size());
    info.block_count = blocks_;
    for (std::uint32_t i = 0; i < blocks_; ++i) {
      const std::uint64_t first = sequential_ ? next_ : random_.below(kDiskGranules / granules_) * granules_;
      next_ = (next_ + granules_) % kDiskGranules;
      const auto plain = static_cast<std::uint32_t>(granules_ * limits::kGranuleSize);
      const auto stored = compressed_ ? static_cast<std::uint32_t>(plain / 3 + random_.below(plain / 3)) : plain;
      commit_.blocks.push_back({.first_granule = first,
                                .granules = granules_,
                                .stored_size = stored,
                                .offset = static_cast<std::uint32_t>(offset_),
                                .encoding = compressed_ ? wire::Encoding::zstd : wire::Encoding::raw});
      offset_ += limits::kBlockHeaderSize + stored;
      made_ += granules_;
    }
  }

  std::uint32_t granules_, blocks_;
  bool sequential_, compressed_;
  Random random_{20261121};
  SegmentId segment_{1};
  std::uint64_t offset_ = limits::kIoAlignment;
  std::uint64_t lsn_ = 1, next_ = 0, made_ = 0;
  CommitInfo commit_;
};

// Adds the thread's CPU time of its life to `seconds`.
class CpuTime {
 public:
  explicit CpuTime(double& seconds) : seconds_(seconds), begin_(now()) {}
  ~CpuTime() { seconds_ += now() - begin_; }
  CpuTime(const CpuTime&) = delete;
  CpuTime& operator=(const CpuTime&) = delete;

 private:
  static double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }
  double& seconds_;
  double begin_;
};

void apply(benchmark::State& state, std::uint32_t granules, std::uint32_t blocks, bool sequential, bool compressed) {
  std::string directory = (std::filesystem::temp_directory_path() / "tidemark-bench-XXXXXX").string();
  if (mkdtemp(directory.data()) == nullptr) return state.SkipWithError("no temporary directory");
  {
    auto index = Index::open(directory + "/index", {});
    if (!index) return state.SkipWithError(index.error().message().c_str());
    Load load(granules, blocks, sequential, compressed);
    constexpr std::size_t kCommits = 8;  // what the indexer takes at once under load
    double cpu_seconds = 0;
    for (auto _ : state) {
      state.PauseTiming();
      std::vector<CommitInfo> commits;
      for (std::size_t i = 0; i < kCommits; ++i) commits.push_back(load.next());
      state.ResumeTiming();
      const CpuTime cpu(cpu_seconds);
      if (const auto applied = (*index)->apply(commits); !applied) {
        return state.SkipWithError(applied.error().message().c_str());
      }
    }
    if (const auto flushed = (*index)->flush(); !flushed) return state.SkipWithError(flushed.error().message().c_str());
    const double made = static_cast<double>(load.granules_made());
    state.SetItemsProcessed(static_cast<std::int64_t>(load.granules_made()));
    state.SetBytesProcessed(static_cast<std::int64_t>(load.granules_made() * limits::kGranuleSize));
    state.counters["index_bytes_per_granule"] = static_cast<double>((*index)->usage().disk_bytes) / made;
    state.counters["cpu_us_per_granule"] = 1e6 * cpu_seconds / made;
  }
  std::filesystem::remove_all(directory);
}

void random_4k(benchmark::State& state) { apply(state, 1, 16, false, false); }
void random_4k_compressed(benchmark::State& state) { apply(state, 1, 16, false, true); }
void sequential_4k(benchmark::State& state) { apply(state, 1, 16, true, false); }
void bulk_64k(benchmark::State& state) { apply(state, 16, 8, true, false); }
void bulk_64k_compressed(benchmark::State& state) { apply(state, 16, 8, true, true); }
BENCHMARK(random_4k)->Iterations(200);
BENCHMARK(random_4k_compressed)->Iterations(200);
BENCHMARK(sequential_4k)->Iterations(200);
BENCHMARK(bulk_64k)->Iterations(200);
BENCHMARK(bulk_64k_compressed)->Iterations(200);

// Looking one 64 KiB range up, as of now, after 100 MiB of granules written at random over 64 GiB.
void lookup_64k(benchmark::State& state) {
  std::string directory = (std::filesystem::temp_directory_path() / "tidemark-bench-XXXXXX").string();
  if (mkdtemp(directory.data()) == nullptr) return state.SkipWithError("no temporary directory");
  {
    auto index = Index::open(directory + "/index", {});
    if (!index) return state.SkipWithError(index.error().message().c_str());
    Load load(1, 16, false, false);
    for (int i = 0; i < 100; ++i) {
      const CommitInfo commit = load.next();
      if (!(*index)->apply(std::span(&commit, 1))) return state.SkipWithError("apply failed");
    }
    Random random(1);
    for (auto _ : state) {
      const auto extents =
          (*index)->lookup(machine(), VolumeId(1), (*index)->mark().lsn, random.below(kDiskGranules / 16) * 16, 16);
      if (!extents) return state.SkipWithError(extents.error().message().c_str());
      benchmark::DoNotOptimize(extents->size());
    }
    state.SetItemsProcessed(state.iterations());
  }
  std::filesystem::remove_all(directory);
}
BENCHMARK(lookup_64k);

}  // namespace
