// Appends to a log on real files: with durable writes (RWF_DSYNC), and with plain ones for comparison (what the log
// itself costs). Bytes and items a second for payloads of 4 KiB to 1 MiB. The directory is TIDEMARK_BENCH_DIR, or /tmp.
//
// A turn of the loop appends what there is room for, as a busy shard does, submits, and reaps.
#include <benchmark/benchmark.h>
#include <spdlog/spdlog.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "storage/log.h"
#include "storage/segment_keeper.h"
#include "storage/system_files.h"
#include "storage/uring_queue.h"
#include "wire/block.h"

namespace tidemark::storage {
namespace {

// The ring, with every write made plain: the same path without the wait for the device's durability.
class PlainQueue final : public IoQueue {
 public:
  explicit PlainQueue(IoQueue& queue) : queue_(queue) {}
  void write_durable(File& file, std::uint64_t offset, std::span<const std::byte> from, IoCompletion& done) override {
    waiting_.push_back({&file, offset, from, &done});
  }
  void read(File& file, std::uint64_t offset, std::span<std::byte> to, IoCompletion& done) override {
    queue_.read(file, offset, to, done);
  }
  void submit() override {}
  std::size_t reap() override {
    const auto waiting = std::exchange(waiting_, {});
    for (const Write& write : waiting) {
      const bool good = write.file->write_at(write.offset, write.from).has_value();
      write.done->on_io_done(good ? static_cast<int>(write.from.size()) : -EIO);
    }
    return waiting.size();
  }
  std::size_t in_flight() const override { return waiting_.size(); }
  int event_fd() const override { return -1; }
  std::size_t wait(std::size_t) override { return reap(); }

 private:
  struct Write {
    File* file;
    std::uint64_t offset;
    std::span<const std::byte> from;
    IoCompletion* done;
  };
  IoQueue& queue_;
  std::vector<Write> waiting_;
};

struct Listener final : Log::Listener {
  void on_durable(CommitInfo&& commit) override {
    for (const RecordInfo& record : commit.records) bytes += record.payload_size;
    records += commit.records.size();
    if (keeper != nullptr && segment.value() != 0 && commit.segment != segment) keeper->recycle(segment);
    segment = commit.segment;
  }
  void on_stopped(const Error& why) override { stopped = why; }
  std::uint64_t bytes = 0, records = 0;
  SegmentKeeper* keeper = nullptr;
  SegmentId segment;
  std::optional<Error> stopped;
};

struct Bench {
  Bench() {
    const char* const base = std::getenv("TIDEMARK_BENCH_DIR");
    directory = std::string(base != nullptr ? base : "/tmp") + "/tidemark-log-bench-XXXXXX";
    if (::mkdtemp(directory.data()) == nullptr) directory.clear();
  }
  ~Bench() {
    if (!directory.empty()) std::filesystem::remove_all(directory);
  }
  std::string directory;
};

void append(benchmark::State& state, bool durable) {
  spdlog::set_level(spdlog::level::warn);
  const auto payload_size = static_cast<std::size_t>(state.range(0));
  const auto depth = static_cast<std::uint32_t>(state.range(1));
  Bench bench;
  auto ring = make_uring_queue(64);
  SegmentKeeperOptions options;
  options.directory = bench.directory;
  options.segment_size = limits::kSegmentSizeMax;
  options.reserve = 2;
  auto keeper = SegmentKeeper::open(system_files(), options);
  if (bench.directory.empty() || !ring || !keeper) {
    state.SkipWithError("cannot set up");
    return;
  }
  // Formatting is not what is measured: enough segments to go round, dead ones come back while the log goes on.
  constexpr std::uint32_t kSegments = 5;
  std::vector<SegmentId> made;
  while (made.size() < kSegments && !(*keeper)->stats().error) {
    if (const auto segment = (*keeper)->take()) made.push_back(segment->id());
    ::usleep(1000);
  }
  for (const SegmentId id : made) (*keeper)->recycle(id);
  while ((*keeper)->stats().ready < kSegments - 1 && !(*keeper)->stats().error) ::usleep(1000);

  // One blocks payload of that size: incompressible data in blocks of up to 64 KiB.
  Random random(1);
  wire::BlockEncoder encoder(MachineId(), 0);
  encoder.start(DiskId(1), EpochNumber(1));
  std::vector<std::byte> plain(std::min<std::size_t>(payload_size, limits::kBlockPlainSizeMax));
  for (std::size_t at = 0; at < payload_size; at += plain.size()) {
    random.fill(plain);
    encoder.add(at / limits::kGranuleSize, plain);
  }
  std::vector<std::byte> payload = encoder.take();
  if (payload.size() > limits::kFramePayloadMax) {  // headers came on top: one block less
    encoder.start(DiskId(1), EpochNumber(1));
    for (std::size_t at = 0; at + plain.size() < payload_size; at += plain.size())
      encoder.add(at / limits::kGranuleSize, plain);
    payload = encoder.take();
  }

  Listener listener;
  listener.keeper = keeper->get();
  PlainQueue plain_queue(**ring);
  IoQueue& queue = durable ? **ring : plain_queue;
  LogOptions log_options;
  log_options.incarnation = Incarnation(1);
  log_options.commits_in_flight_max = depth;
  Log log(log_options, queue, **keeper, Clock::system(), {}, listener);
  std::uint64_t segment_waits = 0;  // turns in which only a segment was missing
  for (auto _ : state) {
    while (!log.append(RecordType::blocks, MachineId(), DiskId(1), payload)) {
      if (listener.stopped) {
        state.SkipWithError(listener.stopped->message().c_str());
        return;
      }
      log.end_turn();
      queue.submit();
      if (queue.wait() == 0) {
        ::usleep(50);
        ++segment_waits;
      }
    }
    log.end_turn();
    queue.submit();
    queue.reap();
  }
  while (log.durable_lsn() < log.last_lsn() && !listener.stopped) {
    log.end_turn();
    queue.submit();
    queue.wait();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(listener.bytes));
  state.SetItemsProcessed(static_cast<std::int64_t>(listener.records));
  const Log::Counters& counters = log.counters();
  state.counters["commit_KiB"] = static_cast<double>(counters.written_bytes) / 1024 /
                                 static_cast<double>(std::max<std::uint64_t>(1, counters.commits));
  state.counters["write_us"] =
      static_cast<double>(counters.write_us_total) / static_cast<double>(std::max<std::uint64_t>(1, counters.commits));
  state.counters["segment_waits"] = static_cast<double>(segment_waits);
  state.counters["in_flight"] = counters.in_flight_target;
}

void BM_LogAppendDurable(benchmark::State& state) { append(state, true); }
void BM_LogAppendPlain(benchmark::State& state) { append(state, false); }

// Arguments: payload bytes, commits in flight (at least).
BENCHMARK(BM_LogAppendDurable)
    ->ArgsProduct({{4 << 10, 64 << 10, 256 << 10, 1 << 20}, {2, 8}})
    ->UseRealTime()
    ->MeasureProcessCPUTime();
BENCHMARK(BM_LogAppendPlain)->ArgsProduct({{4 << 10, 64 << 10, 1 << 20}, {2}})->UseRealTime()->MeasureProcessCPUTime();

}  // namespace
}  // namespace tidemark::storage
