#include "wire/block.h"

#include <array>
#include <cstring>
#include <string>

#include "wire/endian.h"

namespace tidemark::wire {
namespace {

constexpr std::uint64_t kGranulesMax = limits::kDiskSizeMax / limits::kGranuleSize;
constexpr std::size_t kIdentitySize = offsetof(BlockHeader, hash_low);

std::unexpected<Error> malformed(std::size_t offset, std::string what) {
  return fail(Code::protocol, "block at byte " + std::to_string(offset), std::move(what));
}

std::unexpected<Error> foreign(std::size_t offset, const char* what, std::uint64_t has, std::uint64_t wanted) {
  return malformed(
      offset, std::string("it belongs to ") + what + ' ' + std::to_string(has) + ", not to " + std::to_string(wanted));
}

}  // namespace

Hash128 block_hash(const MachineId& machine, const BlockHeader& header, std::span<const std::byte> stored) {
  std::array<std::byte, MachineId::kSize + kIdentitySize> identity;
  std::memcpy(identity.data(), machine.bytes().data(), MachineId::kSize);
  std::memcpy(identity.data() + MachineId::kSize, &header, kIdentitySize);
  return xxh3_128(stored, xxh3_64(identity));
}

Result<bool> BlockReader::next(Block& block) {
  if (rest_.empty()) return false;
  if (rest_.size() < sizeof(BlockHeader)) return malformed(offset_, "the payload ends within a header");
  BlockHeader& header = block.header;
  std::memcpy(&header, rest_.data(), sizeof header);

  const std::uint8_t flags_known = kind_ == Kind::stored ? kSealedFlag : std::uint8_t{0};
  if ((header.flags & ~flags_known) != 0 || header.reserved[0] != 0 || header.reserved[1] != 0)
    return malformed(offset_, "reserved bytes are set");
  if (header.granules == 0) return malformed(offset_, "it covers nothing");
  if (header.first_granule >= kGranulesMax || header.granules > kGranulesMax - header.first_granule)
    return malformed(offset_, "its range lies beyond the largest disk");
  const auto encoding = static_cast<Encoding>(header.encoding);
  switch (encoding) {
    case Encoding::raw:
    case Encoding::zstd: {
      if (header.granules > limits::kBlockGranulesMax) return malformed(offset_, "it covers too much");
      if (header.first_granule / limits::kRegionGranules != (header.end_granule() - 1) / limits::kRegionGranules)
        return malformed(offset_, "it crosses the end of a region");
      const std::uint32_t overhead = header.sealed() ? kSealedOverhead : 0;
      const bool size_fits = encoding == Encoding::raw
                                 ? header.stored_size == header.plain_size() + overhead
                                 : header.stored_size > overhead && header.stored_size < header.plain_size() + overhead;
      if (!size_fits)
        return malformed(offset_, std::to_string(header.stored_size) + " stored bytes do not fit its encoding");
      break;
    }
    case Encoding::zero:
      if (header.stored_size != 0) return malformed(offset_, "a block of zeroes has stored bytes");
      if (header.sealed()) return malformed(offset_, "a block of zeroes is sealed");
      break;
    default: return malformed(offset_, "unknown encoding " + std::to_string(header.encoding));
  }
  if (header.stored_size > rest_.size() - sizeof header) return malformed(offset_, "the payload ends within its bytes");

  block.stored = rest_.subspan(sizeof header, header.stored_size);
  block.offset = offset_;
  rest_ = rest_.subspan(sizeof header + header.stored_size);
  offset_ += sizeof header + header.stored_size;
  return true;
}

Result<BlocksSummary> check_blocks(std::span<const std::byte> payload, const MachineId& machine, DiskId disk,
                                   EpochNumber epoch, std::uint64_t disk_size) {
  if (payload.empty()) return fail(Code::protocol, "blocks", "the payload is empty");
  // Written so that no disk size, however absurd, overflows.
  const std::uint64_t disk_granules =
      disk_size / limits::kGranuleSize + (disk_size % limits::kGranuleSize != 0 ? 1 : 0);
  BlocksSummary summary;
  BlockReader reader(payload);
  BlockReader::Block block;
  while (TIDEMARK_TRY(reader.next(block))) {
    const BlockHeader& header = block.header;
    if (header.disk != disk.value()) return foreign(block.offset, "disk", header.disk, disk.value());
    if (header.epoch != epoch.value()) return foreign(block.offset, "epoch", header.epoch, epoch.value());
    if (header.end_granule() > disk_granules)
      return malformed(block.offset, "granules " + std::to_string(header.first_granule) + " to " +
                                         std::to_string(header.end_granule()) + " lie beyond the disk's " +
                                         std::to_string(disk_size) + " bytes");
    if (block_hash(machine, header, block.stored) != header.hash())
      return malformed(block.offset, "its content or identity does not match its hash");
    ++summary.blocks;
    summary.plain_bytes += header.plain_size();
    summary.sum += header.hash();
  }
  return summary;
}

bool all_zero(std::span<const std::byte> bytes) {
  constexpr std::size_t kHead = 16;
  const std::size_t head = bytes.size() < kHead ? bytes.size() : kHead;
  for (std::size_t i = 0; i < head; ++i)
    if (bytes[i] != std::byte{0}) return false;
  // Each byte equals the one kHead before it, and the first kHead are zero.
  return bytes.size() <= kHead || std::memcmp(bytes.data(), bytes.data() + kHead, bytes.size() - kHead) == 0;
}

Hash128 epoch_digest(const Hash128& previous, EpochNumber number, std::int64_t cut_time_us, std::uint32_t consistency,
                     const EpochContent& content) {
  std::array<std::byte, 64> bytes;
  put_little(bytes.data(), previous.low);
  put_little(bytes.data() + 8, previous.high);
  put_little(bytes.data() + 16, number.value());
  put_little(bytes.data() + 24, cut_time_us);
  put_little(bytes.data() + 32, std::uint64_t{consistency});
  put_little(bytes.data() + 40, content.blocks);
  put_little(bytes.data() + 48, content.sum.low);
  put_little(bytes.data() + 56, content.sum.high);
  return xxh3_128(bytes);
}

}  // namespace tidemark::wire
