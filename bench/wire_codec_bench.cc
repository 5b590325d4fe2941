// The codec and the frames, one thread: what an agent spends on a block, what a server spends on a frame.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>

#include "base/random.h"
#include "wire/block.h"
#include "wire/frame.h"
#include "wire/frame_assembler.h"

namespace tidemark::wire {
namespace {

enum class Content : std::uint8_t { noise, mixed, zero };

// 64 KiB: random; half random and half a repeating text by 256 bytes; or zeroes.
std::vector<std::byte> plain_of(Content content) {
  std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
  Random random(20261120);
  if (content != Content::zero) random.fill(plain);
  if (content == Content::mixed)
    for (std::size_t i = 0; i < plain.size(); ++i)
      if (i / 256 % 2 == 0) plain[i] = static_cast<std::byte>("tidemark keeps what was written "[i % 32]);
  return plain;
}

constexpr std::size_t kBlocksPerPayload = 15;  // a full frame of blocks

std::vector<std::byte> payload_of(Content content, int level) {
  BlockEncoder encoder(MachineId(), level);
  encoder.start(DiskId(0), EpochNumber(1));
  const auto plain = plain_of(content);
  for (std::size_t i = 0; i < kBlocksPerPayload; ++i)
    encoder.add(i * 2 * limits::kBlockGranulesMax, plain);  // with gaps: zeroes would merge
  return encoder.take();
}

void count(benchmark::State& state, std::size_t bytes_each, std::size_t items_each = 1) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * bytes_each));
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * items_each));
}

void encode_block(benchmark::State& state, Content content, int level) {
  const auto plain = plain_of(content);
  BlockEncoder encoder(MachineId(), level);
  encoder.start(DiskId(0), EpochNumber(1));
  std::size_t stored = 0, n = 0;
  for (auto _ : state) {
    encoder.add((n++ % 8) * 32, plain);
    if (encoder.payload().size() + limits::kBlockHeaderSize + limits::kBlockPlainSizeMax > limits::kFramePayloadMax) {
      stored += encoder.payload().size();
      encoder.start(DiskId(0), EpochNumber(1));
    }
  }
  stored += encoder.payload().size();
  count(state, plain.size());
  state.counters["stored_ratio"] = static_cast<double>(stored) / static_cast<double>(n * plain.size());
}
BENCHMARK_CAPTURE(encode_block, noise_zstd1, Content::noise, 1);
BENCHMARK_CAPTURE(encode_block, noise_raw, Content::noise, 0);
BENCHMARK_CAPTURE(encode_block, mixed_zstd1, Content::mixed, 1);
BENCHMARK_CAPTURE(encode_block, mixed_zstd3, Content::mixed, 3);
BENCHMARK_CAPTURE(encode_block, zero, Content::zero, 1);

void decode_block(benchmark::State& state, Content content, int level) {
  const auto payload = payload_of(content, level);
  BlockReader reader(payload);
  BlockReader::Block block;
  if (!reader.next(block)) return state.SkipWithError("the payload does not read");
  BlockDecoder decoder;
  std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
  for (auto _ : state) {
    if (!decoder.decode(block.header, block.stored, plain)) return state.SkipWithError("the block does not decode");
    benchmark::DoNotOptimize(plain.data());
  }
  count(state, plain.size());
}
BENCHMARK_CAPTURE(decode_block, raw, Content::noise, 0);
BENCHMARK_CAPTURE(decode_block, zstd1, Content::mixed, 1);
BENCHMARK_CAPTURE(decode_block, zero, Content::zero, 1);

// What the server does with a blocks frame: bytes are those that came.
void check_payload(benchmark::State& state, Content content) {
  const auto payload = payload_of(content, 1);
  for (auto _ : state) {
    const auto summary = check_blocks(payload, MachineId(), DiskId(0), EpochNumber(1), 1_GiB);
    if (!summary) return state.SkipWithError("the payload does not pass");
    benchmark::DoNotOptimize(summary->sum);
  }
  count(state, payload.size(), kBlocksPerPayload);
}
BENCHMARK_CAPTURE(check_payload, noise, Content::noise);
BENCHMARK_CAPTURE(check_payload, mixed, Content::mixed);
BENCHMARK_CAPTURE(check_payload, zero, Content::zero);

void frame_decode(benchmark::State& state) {
  std::array<std::byte, limits::kFrameHeaderSize> bytes;
  encode({FrameType::blocks, 70'000, DiskId(3), 12'345}, bytes);
  for (auto _ : state) {
    benchmark::DoNotOptimize(bytes.data());
    auto header = decode_frame_header(bytes);
    benchmark::DoNotOptimize(header);
  }
  count(state, bytes.size());
}
BENCHMARK(frame_decode);

// Whole frames from pieces of a TLS record, copied once as a stream would decrypt them.
void frame_assemble(benchmark::State& state) {
  const auto payload_size = static_cast<std::size_t>(state.range(0));
  std::vector<std::byte> bytes(limits::kFrameHeaderSize + payload_size);
  encode({FrameType::blocks, static_cast<std::uint32_t>(payload_size), DiskId(0), 0},
         std::span(bytes).first<limits::kFrameHeaderSize>());
  HeapPayloadPool pool(limits::kFramePayloadMax);
  FrameAssembler assembler(pool);
  constexpr std::size_t kRecord = 16 << 10;
  for (auto _ : state) {
    for (std::size_t at = 0; at < bytes.size();) {
      const auto space = assembler.space();
      const std::size_t piece = std::min(space.size(), kRecord);
      std::memcpy(space.data(), bytes.data() + at, piece);
      if (!assembler.filled(piece)) return state.SkipWithError("the frame does not assemble");
      at += piece;
    }
    benchmark::DoNotOptimize(assembler.frame());
    assembler.consume();
  }
  count(state, bytes.size());
}
BENCHMARK(frame_assemble)->Arg(64)->Arg(64 << 10)->Arg(1 << 20);

void find_zero(benchmark::State& state) {
  const std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
  for (auto _ : state) benchmark::DoNotOptimize(all_zero(plain));
  count(state, plain.size());
}
BENCHMARK(find_zero);

}  // namespace
}  // namespace tidemark::wire
