// Blocks: a run of granules of one disk in one epoch, encoded once by the agent, stored as it came, decoded when read.
//
// The payload of a blocks frame is a sequence of {BlockHeader, stored bytes}, nothing between them. The same bytes
// are a record of the log and lie in a volume: header and content side by side, so that one read fetches both and can
// check what it got. The hash covers the stored bytes and, through its seed, what they claim to be: machine, epoch,
// disk, place, encoding and length. docs/protocol.md has the layout.
//
// The store may seal a block (storage/sealing.h): then the stored bytes are ciphertext, kSealedOverhead longer, the
// header says so, and its hash is over the ciphertext. Sealed blocks do not travel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/checksum.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"

namespace tidemark::wire {

enum class Encoding : std::uint8_t {
  raw = 0,   // stored bytes are the plain bytes; granules * 4 KiB of them
  zstd = 1,  // one zstd frame that decodes to exactly granules * 4 KiB
  zero = 2,  // no stored bytes; any number of granules reads as zeroes
};

inline constexpr std::uint8_t kSealedFlag = 1;
inline constexpr std::uint32_t kSealedOverhead = 56;  // nonce 24, hash 16, tag 16

struct BlockHeader {  // little-endian, stored and sent as it lies here
  std::uint64_t first_granule;
  std::uint64_t epoch;
  std::uint32_t granules;     // 1..16; for zero 1..2^32-1
  std::uint32_t stored_size;  // bytes that follow; below the plain size for zstd
  std::uint32_t disk;
  std::uint8_t encoding;
  std::uint8_t flags;        // kSealedFlag or zero; what is sent has zero
  std::uint8_t reserved[2];  // zero
  std::uint64_t hash_low;
  std::uint64_t hash_high;

  std::size_t plain_size() const { return std::size_t{granules} * limits::kGranuleSize; }
  std::uint64_t end_granule() const { return first_granule + granules; }
  Hash128 hash() const { return {hash_low, hash_high}; }
  bool sealed() const { return (flags & kSealedFlag) != 0; }
};
static_assert(sizeof(BlockHeader) == limits::kBlockHeaderSize && alignof(BlockHeader) == 8);
static_assert(offsetof(BlockHeader, hash_low) == 32, "the first 32 bytes are what the hash's seed covers");

// XXH3-128 of `stored`, seeded with XXH3-64 of {machine id, first 32 bytes of the header}.
Hash128 block_hash(const MachineId& machine, const BlockHeader& header, std::span<const std::byte> stored);

// Walks a blocks payload. Every field is checked before it is believed; `verify` also checks the hash.
class BlockReader {
 public:
  // What is sent has no sealed blocks, what is stored may have.
  enum class Kind : bool { sent, stored };
  explicit BlockReader(std::span<const std::byte> payload, Kind kind = Kind::sent) : rest_(payload), kind_(kind) {}

  struct Block {
    BlockHeader header;                 // a copy: the payload need not be aligned
    std::span<const std::byte> stored;  // within the payload
    std::size_t offset;                 // of the header within the payload
  };
  // False at the end. An error when the payload is malformed: truncated, bad length, unknown encoding, reserved bits,
  // a block of data that crosses a region boundary (limits::kRegionGranules), a range beyond kDiskSizeMax.
  Result<bool> next(Block& block);

 private:
  std::span<const std::byte> rest_;
  Kind kind_;
  std::size_t offset_ = 0;
};

// What a whole payload claims, once every block is checked against machine, disk, epoch, disk size and its hash.
struct BlocksSummary {
  std::uint32_t blocks = 0;
  std::uint64_t plain_bytes = 0;  // zeroes included
  Hash128 sum;                    // of the blocks' hashes
};
Result<BlocksSummary> check_blocks(std::span<const std::byte> payload, const MachineId& machine, DiskId disk,
                                   EpochNumber epoch, std::uint64_t disk_size);

// Decodes one checked block. `plain` has exactly header.plain_size() bytes (a zero block fills them).
// Never writes beyond it, whatever the stored bytes are. Keeps a zstd context: one decoder per thread.
class BlockDecoder {
 public:
  BlockDecoder();
  ~BlockDecoder();
  BlockDecoder(BlockDecoder&&) noexcept;
  Status decode(const BlockHeader& header, std::span<const std::byte> stored, std::span<std::byte> plain);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Encodes granules into a payload. zstd when it saves at least a sixteenth, raw otherwise, zero when all bytes are
// zero (zero blocks that follow each other on the disk are merged into one). After several blocks in a row that saved
// too little only some are tried, until one of them saves enough. Keeps a zstd context: one per thread.
class BlockEncoder {
 public:
  explicit BlockEncoder(const MachineId& machine, int zstd_level = 1);  // level 0: never compress
  ~BlockEncoder();
  BlockEncoder(BlockEncoder&&) noexcept;

  void start(DiskId disk, EpochNumber epoch);
  void set_level(int zstd_level);  // of the blocks to come; not for an encoder that never compresses
  // Appends one block. `plain` is 1..16 whole granules, within one region. The caller starts a new payload when
  // payload().size() + kBlockHeaderSize + kBlockPlainSizeMax would pass the size it aims for.
  void add(std::uint64_t first_granule, std::span<const std::byte> plain);
  void add_zeroes(std::uint64_t first_granule, std::uint64_t granules);
  const std::vector<std::byte>& payload() const;
  const BlocksSummary& summary() const;  // of the payload so far
  // Hands the payload out and starts an empty one of the same disk and epoch.
  std::vector<std::byte> take();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

bool all_zero(std::span<const std::byte> bytes);

// The digest of an epoch, chained: covers everything a machine ever committed, in order of epochs. The blocks of one
// epoch enter as an order-free sum, so that it can be resumed from a stored sum after a cut.
struct EpochContent {
  std::uint64_t blocks = 0;
  Hash128 sum;
  void add(const BlocksSummary& payload) {
    blocks += payload.blocks;
    sum += payload.sum;
  }
  bool operator==(const EpochContent&) const = default;
};
Hash128 epoch_digest(const Hash128& previous, EpochNumber number, std::int64_t cut_time_us, std::uint32_t consistency,
                     const EpochContent& content);

}  // namespace tidemark::wire
