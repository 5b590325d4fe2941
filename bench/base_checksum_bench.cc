// Checksums and digests, one thread, over what they are used on: headers, granules, blocks, payloads.
#include <benchmark/benchmark.h>

#include "base/checksum.h"
#include "base/crypto.h"
#include "base/random.h"

namespace tidemark {
namespace {

std::vector<std::byte> noise(std::size_t size) {
  std::vector<std::byte> bytes(size);
  Random random(20261120);
  random.fill(bytes);
  return bytes;
}

template <auto function>
void checksum(benchmark::State& state) {
  const auto bytes = noise(static_cast<std::size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(function(bytes));
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * bytes.size()));
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()));
}

std::uint32_t crc(std::span<const std::byte> bytes) { return crc32c(bytes); }
std::uint64_t xxh64(std::span<const std::byte> bytes) { return xxh3_64(bytes); }
Hash128 xxh128_seeded(std::span<const std::byte> bytes) { return xxh3_128(bytes, 42); }
Sha256 sha(std::span<const std::byte> bytes) { return sha256(bytes); }

BENCHMARK(checksum<crc>)->Name("crc32c")->Arg(28)->Arg(4 << 10)->Arg(64 << 10);
BENCHMARK(checksum<xxh64>)->Name("xxh3_64")->Arg(48)->Arg(4 << 10)->Arg(64 << 10);
BENCHMARK(checksum<xxh128_seeded>)->Name("xxh3_128_seeded")->Arg(4 << 10)->Arg(64 << 10)->Arg(1 << 20);
BENCHMARK(checksum<sha>)->Name("sha256")->Arg(64 << 10);

}  // namespace
}  // namespace tidemark
