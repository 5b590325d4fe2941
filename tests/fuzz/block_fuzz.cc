// Payloads of blocks: the reader, the checks, and the decoder on whatever the reader lets through. Then the same input
// as plain data through the encoder and back.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "wire/block.h"

using namespace tidemark;

namespace {

// Checks fail on arbitrary bytes for want of a fitting hash, so the decoder gets what the reader alone has passed.
void decode_whatever_reads(std::span<const std::byte> payload) {
  static wire::BlockDecoder decoder;
  static std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
  wire::BlockReader reader(payload);
  for (wire::BlockReader::Block block;;) {
    const auto more = reader.next(block);
    if (!more || !*more) return;
    if (block.header.plain_size() > plain.size()) continue;  // of zeroes: there is nothing to decode
    (void)decoder.decode(block.header, block.stored, std::span(plain).first(block.header.plain_size()));
  }
}

// With hashes made to fit, so that everything behind the hash is reached too.
void check_with_fitting_hashes(std::span<const std::byte> payload) {
  const MachineId machine;
  std::vector<std::byte> bytes(payload.begin(), payload.end());
  std::size_t offset = 0;
  wire::BlockHeader first{};
  while (bytes.size() - offset >= sizeof(wire::BlockHeader)) {
    wire::BlockHeader header;
    std::memcpy(&header, bytes.data() + offset, sizeof header);
    const std::size_t rest = bytes.size() - offset - sizeof header;
    if (header.stored_size > rest) break;
    const auto stored = std::span<const std::byte>(bytes).subspan(offset + sizeof header, header.stored_size);
    const Hash128 hash = wire::block_hash(machine, header, stored);
    header.hash_low = hash.low;
    header.hash_high = hash.high;
    std::memcpy(bytes.data() + offset, &header, sizeof header);
    if (offset == 0) first = header;
    offset += sizeof header + header.stored_size;
  }
  constexpr std::uint64_t kDiskSize = 1_GiB + 5;
  const auto summary = wire::check_blocks(bytes, machine, DiskId(first.disk), EpochNumber(first.epoch), kDiskSize);
  if (summary && summary->plain_bytes > limits::kDiskSizeMax * std::uint64_t{summary->blocks}) std::abort();
}

void encode_and_back(std::span<const std::byte> input) {
  static wire::BlockEncoder encoder{MachineId()};
  static wire::BlockDecoder decoder;
  const std::size_t granules = 1 + input.size() / limits::kGranuleSize;
  if (granules > limits::kBlockGranulesMax) return;
  std::vector<std::byte> plain(granules * limits::kGranuleSize), back(plain.size());
  if (!input.empty()) std::memcpy(plain.data(), input.data(), input.size());
  encoder.start(DiskId(1), EpochNumber(1));
  encoder.add(0, plain);
  if (!wire::check_blocks(encoder.payload(), MachineId(), DiskId(1), EpochNumber(1), 1_MiB)) std::abort();
  wire::BlockReader reader(encoder.payload());
  wire::BlockReader::Block block;
  if (!reader.next(block) || !decoder.decode(block.header, block.stored, back) || back != plain) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = std::as_bytes(std::span(data, size));
  decode_whatever_reads(input);
  check_with_fitting_hashes(input);
  encode_and_back(input);
  // The whole input as one block's zstd frame, which the reader's rules would seldom let through.
  if (size <= limits::kBlockPlainSizeMax) {
    static wire::BlockDecoder decoder;
    static std::vector<std::byte> plain(limits::kBlockPlainSizeMax);
    wire::BlockHeader header{};
    header.encoding = static_cast<std::uint8_t>(wire::Encoding::zstd);
    header.stored_size = static_cast<std::uint32_t>(size);
    for (const std::uint32_t granules : {1u, 16u}) {
      header.granules = granules;
      (void)decoder.decode(header, input, std::span(plain).first(header.plain_size()));
    }
  }
  return 0;
}
