// What encryption costs, in pairs: a payload is checked and put where it is to stand, in the clear or sealed; a stored
// payload is checked and decoded, in the clear or sealed. In memory, so that only CPU counts.
// Argument: plain bytes of a block, incompressible.
#include <benchmark/benchmark.h>

#include <cstring>
#include <memory>
#include <vector>

#include "base/random.h"
#include "storage/sealing.h"
#include "storage/volume_keys.h"
#include "wire/block.h"

namespace tidemark::storage {
namespace {

constexpr std::size_t kPlain = 960 << 10;

std::shared_ptr<VolumeKeys> keys_of_one_volume() {
  auto masters = std::make_shared<const MasterKeys>(MasterKeys("bench").with_new_key(0));
  auto keys = std::make_shared<VolumeKeys>(masters, PartitionId(0), true);
  pb::MachineRecord record;
  record.set_machine(std::string(MachineId::kSize, 'm'));
  record.add_disks()->set_volume(1);
  keys->equip(record);
  if (!keys->load(record)) return nullptr;
  return keys;
}

std::vector<std::byte> payload_of(const MachineId& machine, std::size_t block_size) {
  Random random(1);
  wire::BlockEncoder encoder(machine, 0);
  encoder.start(DiskId(1), EpochNumber(1));
  std::vector<std::byte> plain(block_size);
  for (std::size_t at = 0; at < kPlain; at += plain.size()) {
    random.fill(plain);
    encoder.add(at / limits::kGranuleSize, plain);
  }
  return encoder.take();
}

// The blocks of `payload`, sealed if there is a key; the bytes that were put into `to`.
std::size_t place(std::span<const std::byte> payload, const MachineId& machine, const VolumeKey* key,
                  BlockSealer& sealer, std::span<std::byte> to) {
  if (key == nullptr) {
    std::memcpy(to.data(), payload.data(), payload.size());
    return payload.size();
  }
  wire::BlockReader reader(payload);
  wire::BlockReader::Block block;
  std::size_t at = 0;
  while (reader.next(block).value_or(false)) {
    const std::size_t size = sizeof block.header + block.stored.size() + wire::kSealedOverhead;
    sealer.seal(machine, *key, block.header, block.stored, to.subspan(at, size));
    at += size;
  }
  return at;
}

void take_in(benchmark::State& state, bool sealed) {
  const MachineId machine;
  const auto payload = payload_of(machine, static_cast<std::size_t>(state.range(0)));
  const VolumeKey key(Key256::random());
  BlockSealer sealer;
  std::vector<std::byte> to(2 * payload.size());
  for (auto _ : state) {
    const auto checked = wire::check_blocks(payload, machine, DiskId(1), EpochNumber(1), 1 << 30);
    if (!checked) return state.SkipWithError("not checked");
    benchmark::DoNotOptimize(place(payload, machine, sealed ? &key : nullptr, sealer, to));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(kPlain));
}

void read_back(benchmark::State& state, bool sealed) {
  const MachineId machine(std::array<std::byte, MachineId::kSize>{});
  const auto payload = payload_of(machine, static_cast<std::size_t>(state.range(0)));
  const auto keys = keys_of_one_volume();
  if (keys == nullptr) return state.SkipWithError("no keys");
  BlockSealer sealer;
  std::vector<std::byte> stored(2 * payload.size());
  stored.resize(place(payload, machine, sealed ? keys->find(VolumeId(1)).get() : nullptr, sealer, stored));
  StoredDecoder decoder(keys);
  std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
  for (auto _ : state) {
    wire::BlockReader reader(stored, wire::BlockReader::Kind::stored);
    wire::BlockReader::Block block;
    while (reader.next(block).value_or(false)) {
      const bool sound = wire::block_hash(machine, block.header, block.stored) == block.header.hash();
      const auto decoded = decoder.decode(machine, VolumeId(1), block.header, block.stored,
                                          std::span(plain).first(block.header.plain_size()));
      if (!sound || !decoded) return state.SkipWithError("not read");
      benchmark::ClobberMemory();
    }
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(kPlain));
}

void BM_TakeInClear(benchmark::State& state) { take_in(state, false); }
void BM_TakeInSealed(benchmark::State& state) { take_in(state, true); }
void BM_ReadBackClear(benchmark::State& state) { read_back(state, false); }
void BM_ReadBackSealed(benchmark::State& state) { read_back(state, true); }

BENCHMARK(BM_TakeInClear)->Arg(4 << 10)->Arg(64 << 10);
BENCHMARK(BM_TakeInSealed)->Arg(4 << 10)->Arg(64 << 10);
BENCHMARK(BM_ReadBackClear)->Arg(4 << 10)->Arg(64 << 10);
BENCHMARK(BM_ReadBackSealed)->Arg(4 << 10)->Arg(64 << 10);

}  // namespace
}  // namespace tidemark::storage
