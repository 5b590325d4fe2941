// Clones of a large disk with a long history: how long one takes to make, how long until its first byte, and what
// reading it takes in memory. Written as 60 epochs of random 4 KiB blocks that compress to next to nothing, all of them
// kept; the clones are of the point in the middle.
//
//   create_ms_max, create_ms_median   from the call until the clone is durable
//   first_byte_ms_max, ..._median     of a new clone, at a place of its own: opened, and 4 KiB read
//   write_ms_median                   4 KiB written into a clone, until that is durable
//   read_mib                          by which the process grows at most while 16,384 random blocks and 1 GiB in a row
//                                     are read of a clone
#include <benchmark/benchmark.h>

#include <algorithm>

#include "bench/storage_store.h"
#include "storage/clone.h"

namespace {

using namespace tidemark;
using namespace tidemark::bench;

constexpr std::uint64_t kPoints = 60;
constexpr std::size_t kClones = 50;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

MachineId clone_id(std::size_t number) {
  std::array<std::byte, MachineId::kSize> bytes{};
  std::memcpy(bytes.data(), &number, sizeof number);
  bytes[15] = std::byte{1};
  return MachineId(bytes);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// A disk of range(0) GiB with range(1) extents.
void Clone(benchmark::State& state) {
  const std::uint64_t granules = static_cast<std::uint64_t>(state.range(0)) << 18;
  const auto extents = static_cast<std::uint64_t>(state.range(1));
  std::vector<double> create, first, written;
  double grown = 0;
  for (auto _ : state) {
    Store store({.settle_after_us = 365LL * 86'400'000'000}, granules, true);
    for (std::uint64_t i = 0; i < kPoints; ++i) store.epoch(extents / kPoints, 1, granules);
    storage::Partition& partition = store.partition();
    Random random(3);
    std::vector<std::byte> got(limits::kGranuleSize);
    const EpochNumber point(kPoints / 2);
    for (std::size_t i = 0; i < kClones; ++i) {
      auto start = std::chrono::steady_clock::now();
      const auto base = partition.clone_base(machine(), point, 10s);
      if (!base) Store::check(std::unexpected(base.error()));
      const std::vector<storage::CloneName> names{{.id = clone_id(i), .name = "c" + std::to_string(i)}};
      bool durable = false;
      Store::check(partition.create_clones(*base, names, "bench", store.clock().wall_us(), [&](const Status& status) {
        Store::check(status);
        durable = true;
      }));
      store.pump();
      if (!durable) std::abort();
      create.push_back(milliseconds_since(start));
      start = std::chrono::steady_clock::now();
      const auto reader = partition.read(names[0].id, DiskId(0), EpochNumber(), 10s);
      if (!reader) Store::check(std::unexpected(reader.error()));
      Store::check((*reader)->read(random.below(granules) * limits::kGranuleSize, got));
      first.push_back(milliseconds_since(start));
    }
    reset_peak();
    const double before = memory_mib("VmRSS");
    {
      const auto reader = partition.read(clone_id(0), DiskId(0), EpochNumber(), 10s);
      if (!reader) Store::check(std::unexpected(reader.error()));
      for (int i = 0; i < 16'384; ++i)
        Store::check((*reader)->read(random.below(granules) * limits::kGranuleSize, got));
      std::vector<std::byte> piece(1 << 20);
      for (std::uint64_t at = 0; at < 1_GiB; at += piece.size()) Store::check((*reader)->read(at, piece));
    }
    grown = std::max(grown, memory_mib("VmHWM") - before);
    for (std::uint64_t epoch = 1; epoch <= 50; ++epoch) {
      const auto start = std::chrono::steady_clock::now();
      store.epoch_of(clone_id(1), epoch, random.below(granules));
      written.push_back(milliseconds_since(start));
    }
    state.SetIterationTime(median(create) / 1e3);
  }
  state.counters["create_ms_median"] = median(create);
  state.counters["create_ms_max"] = *std::ranges::max_element(create);
  state.counters["first_byte_ms_median"] = median(first);
  state.counters["first_byte_ms_max"] = *std::ranges::max_element(first);
  state.counters["write_ms_median"] = median(written);
  state.counters["read_mib"] = grown;
}
BENCHMARK(Clone)
    ->Args({64, 625'000})
    ->Args({1024, 10'000'000})
    ->UseManualTime()
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

}  // namespace
