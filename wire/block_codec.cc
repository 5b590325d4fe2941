// Encoding and decoding of blocks: the one place that knows zstd.
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"
#include "wire/block.h"
#include "wire/endian.h"

namespace tidemark::wire {
namespace {

struct FreeDecoder {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};
struct FreeEncoder {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};

std::unexpected<Error> undecodable(const BlockHeader& header, const char* why) {
  return fail(Code::corrupt, "block of granule " + std::to_string(header.first_granule),
              std::string("its content does not decode: ") + why);
}

}  // namespace

struct BlockDecoder::Impl {
  std::unique_ptr<ZSTD_DCtx, FreeDecoder> context{ZSTD_createDCtx()};
};

BlockDecoder::BlockDecoder() : impl_(std::make_unique<Impl>()) { TIDEMARK_CHECK(impl_->context != nullptr); }
BlockDecoder::~BlockDecoder() = default;
BlockDecoder::BlockDecoder(BlockDecoder&&) noexcept = default;

Status BlockDecoder::decode(const BlockHeader& header, std::span<const std::byte> stored, std::span<std::byte> plain) {
  if (stored.size() != header.stored_size || plain.size() != header.plain_size())
    return undecodable(header, "sizes differ from its header");
  switch (static_cast<Encoding>(header.encoding)) {
    case Encoding::zero:
      if (!stored.empty()) return undecodable(header, "zeroes with stored bytes");
      if (!plain.empty()) std::memset(plain.data(), 0, plain.size());
      return {};
    case Encoding::raw:
      if (stored.size() != plain.size()) return undecodable(header, "raw bytes of another size");
      if (!plain.empty()) std::memcpy(plain.data(), stored.data(), plain.size());
      return {};
    case Encoding::zstd: {
      // Exactly one frame of today's format that states its size. The library alone would also take skippable frames,
      // several frames in a row, and formats of its past, which allocate.
      if (stored.size() < sizeof(std::uint32_t) || get_little<std::uint32_t>(stored.data()) != ZSTD_MAGICNUMBER)
        return undecodable(header, "not a zstd frame");
      if (ZSTD_getFrameContentSize(stored.data(), stored.size()) != plain.size())
        return undecodable(header, "the zstd frame states another size");
      if (ZSTD_findFrameCompressedSize(stored.data(), stored.size()) != stored.size())
        return undecodable(header, "the zstd frame has another length");
      const std::size_t size =
          ZSTD_decompressDCtx(impl_->context.get(), plain.data(), plain.size(), stored.data(), stored.size());
      if (ZSTD_isError(size) != 0) return undecodable(header, ZSTD_getErrorName(size));
      if (size != plain.size()) return undecodable(header, "too few bytes came out");
      return {};
    }
  }
  return undecodable(header, "unknown encoding");
}

struct BlockEncoder::Impl {
  MachineId machine;
  int level = 1;
  std::unique_ptr<ZSTD_CCtx, FreeEncoder> context;
  DiskId disk;
  EpochNumber epoch;
  std::vector<std::byte> payload;
  BlocksSummary summary;
  std::size_t last_zeroes = SIZE_MAX;  // offset of the last block's header when it is one of zeroes
  std::array<std::byte, limits::kBlockPlainSizeMax> compressed;
  unsigned futile = 0;       // blocks in a row that saved too little
  unsigned passed_over = 0;  // counts, while they are many

  void append(std::uint64_t first_granule, std::uint32_t granules, Encoding encoding,
              std::span<const std::byte> stored) {
    BlockHeader header{};
    header.first_granule = first_granule;
    header.epoch = epoch.value();
    header.granules = granules;
    header.stored_size = static_cast<std::uint32_t>(stored.size());
    header.disk = disk.value();
    header.encoding = static_cast<std::uint8_t>(encoding);
    const Hash128 hash = block_hash(machine, header, stored);
    header.hash_low = hash.low;
    header.hash_high = hash.high;
    last_zeroes = encoding == Encoding::zero ? payload.size() : SIZE_MAX;
    const auto* bytes = reinterpret_cast<const std::byte*>(&header);
    payload.insert(payload.end(), bytes, bytes + sizeof header);
    payload.insert(payload.end(), stored.begin(), stored.end());
    ++summary.blocks;
    summary.plain_bytes += header.plain_size();
    summary.sum += hash;
  }

  // Trying costs several times what the rest of the encoding does.
  bool worth_trying() {
    constexpr unsigned kFutileMax = 8, kOneIn = 8;
    return futile < kFutileMax || ++passed_over % kOneIn == 0;
  }

  // Takes the last block back when it is one of zeroes that ends where the next begins; the granules it covered.
  std::uint64_t take_back_zeroes(std::uint64_t next_granule) {
    if (last_zeroes == SIZE_MAX) return 0;
    BlockHeader header;
    std::memcpy(&header, payload.data() + last_zeroes, sizeof header);
    if (header.end_granule() != next_granule) return 0;
    payload.resize(last_zeroes);
    last_zeroes = SIZE_MAX;
    --summary.blocks;
    summary.plain_bytes -= header.plain_size();
    summary.sum += Hash128{0 - header.hash_low, 0 - header.hash_high};
    return header.granules;
  }
};

BlockEncoder::BlockEncoder(const MachineId& machine, int zstd_level) : impl_(std::make_unique<Impl>()) {
  impl_->machine = machine;
  impl_->level = zstd_level;
  if (zstd_level == 0) return;
  impl_->context.reset(ZSTD_createCCtx());
  TIDEMARK_CHECK(impl_->context != nullptr);
  set_level(zstd_level);
}
BlockEncoder::~BlockEncoder() = default;
BlockEncoder::BlockEncoder(BlockEncoder&&) noexcept = default;

void BlockEncoder::set_level(int zstd_level) {
  TIDEMARK_CHECK(impl_->context != nullptr);
  // A level that is out of the library's range is clamped by it.
  TIDEMARK_CHECK(ZSTD_isError(ZSTD_CCtx_setParameter(impl_->context.get(), ZSTD_c_compressionLevel, zstd_level)) == 0);
}

void BlockEncoder::start(DiskId disk, EpochNumber epoch) {
  impl_->disk = disk;
  impl_->epoch = epoch;
  impl_->payload.clear();
  impl_->summary = {};
  impl_->last_zeroes = SIZE_MAX;
}

void BlockEncoder::add(std::uint64_t first_granule, std::span<const std::byte> plain) {
  const std::size_t granules = plain.size() / limits::kGranuleSize;
  TIDEMARK_CHECK(granules >= 1 && granules <= limits::kBlockGranulesMax && plain.size() % limits::kGranuleSize == 0);
  TIDEMARK_CHECK(first_granule / limits::kRegionGranules == (first_granule + granules - 1) / limits::kRegionGranules);
  if (all_zero(plain)) {
    add_zeroes(first_granule, granules);
    return;
  }
  if (impl_->context != nullptr && impl_->worth_trying()) {
    // Room for a saving of a sixteenth and no more: the library gives up as soon as it will not fit.
    const std::size_t room = plain.size() - plain.size() / 16;
    const std::size_t size =
        ZSTD_compress2(impl_->context.get(), impl_->compressed.data(), room, plain.data(), plain.size());
    impl_->futile = ZSTD_isError(size) == 0 ? 0 : impl_->futile + 1;
    if (ZSTD_isError(size) == 0) {
      impl_->append(first_granule, static_cast<std::uint32_t>(granules), Encoding::zstd,
                    std::span(impl_->compressed).first(size));
      return;
    }
  }
  impl_->append(first_granule, static_cast<std::uint32_t>(granules), Encoding::raw, plain);
}

void BlockEncoder::add_zeroes(std::uint64_t first_granule, std::uint64_t granules) {
  constexpr std::uint64_t kGranulesPerBlock = UINT32_MAX;
  TIDEMARK_CHECK(granules <= limits::kDiskSizeMax / limits::kGranuleSize);
  const std::uint64_t before = impl_->take_back_zeroes(first_granule);
  first_granule -= before;
  granules += before;
  while (granules > 0) {
    const std::uint64_t part = std::min(granules, kGranulesPerBlock);
    impl_->append(first_granule, static_cast<std::uint32_t>(part), Encoding::zero, {});
    first_granule += part;
    granules -= part;
  }
}

const std::vector<std::byte>& BlockEncoder::payload() const { return impl_->payload; }
const BlocksSummary& BlockEncoder::summary() const { return impl_->summary; }

std::vector<std::byte> BlockEncoder::take() {
  std::vector<std::byte> payload = std::exchange(impl_->payload, {});
  start(impl_->disk, impl_->epoch);
  return payload;
}

}  // namespace tidemark::wire
