// What the settler costs: moving what is live out of the log into cold segments, and folding away what no point shows.
// Real files in TIDEMARK_BENCH_DIR (default: the temporary directory); all in the caller's thread, without its rate
// limit.
//
//   moved_mib_per_s, cpu_s_per_gib   of settling, over the bytes moved
//   peak_mib                         by which the process grew meanwhile, at most
//   versions_per_s                   of folding: dropped, and looked at to be kept
#include <benchmark/benchmark.h>

#include "bench/storage_store.h"

namespace {

using namespace tidemark;
using namespace tidemark::bench;

constexpr std::uint64_t kDiskGranules = std::uint64_t{1} << 20;  // 4 GiB

// Blocks of `range(0)` granules; 512 MiB of them, most still shown.
void Settle(benchmark::State& state) {
  const auto granules = static_cast<std::uint32_t>(state.range(0));
  double seconds = 0, cpu = 0, peak = 0;
  std::uint64_t moved = 0;
  for (auto _ : state) {
    Store store({}, kDiskGranules);
    for (int i = 0; i < 64; ++i) store.epoch((8 << 20) / (granules * limits::kGranuleSize), granules, kDiskGranules);
    store.clock().advance(26h);
    reset_peak();
    const double before = memory_mib("VmRSS"), cpu_before = cpu_seconds();
    const auto start = std::chrono::steady_clock::now();
    store.background();
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    state.SetIterationTime(took);
    seconds += took;
    cpu += cpu_seconds() - cpu_before;
    peak = std::max(peak, memory_mib("VmHWM") - before);
    moved += store.settled().bytes_moved;
  }
  state.counters["moved_mib_per_s"] = static_cast<double>(moved) / (1 << 20) / seconds;
  state.counters["cpu_s_per_gib"] = cpu / (static_cast<double>(moved) / (1 << 30));
  state.counters["peak_mib"] = peak;
}
BENCHMARK(Settle)->Arg(1)->Arg(16)->UseManualTime()->Iterations(1)->Unit(benchmark::kSecond);

// 600 epochs of 256 blocks of 4 KiB over 256 MiB; nine points of ten go.
void Fold(benchmark::State& state) {
  double seconds = 0, cpu = 0;
  std::uint64_t versions = 0, dropped = 0;
  for (auto _ : state) {
    Store store({.settle_after_us = 365LL * 86'400'000'000, .fold_every_us = 0}, kDiskGranules);
    for (int i = 0; i < 600; ++i) store.epoch(256, 1, 65'536);
    versions += std::uint64_t{600} * 256;
    store.drop_all_but_every(10);
    const double cpu_before = cpu_seconds();
    const auto start = std::chrono::steady_clock::now();
    store.background();
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    state.SetIterationTime(took);
    seconds += took;
    cpu += cpu_seconds() - cpu_before;
    dropped += store.settled().versions_dropped;
  }
  state.counters["versions_per_s"] = static_cast<double>(versions) / seconds;
  state.counters["cpu_us_per_version"] = cpu * 1e6 / static_cast<double>(versions);
  state.counters["versions_dropped"] = static_cast<double>(dropped);
}
BENCHMARK(Fold)->UseManualTime()->Iterations(1)->Unit(benchmark::kSecond);

}  // namespace
