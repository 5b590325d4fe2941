#include "storage/extent_codec.h"

#include "base/check.h"
#include "storage/segment_kind.h"

namespace tidemark::storage {

namespace {

// The byte that opens an extent: the encoding, and what need not be said because the extent before implies it.
constexpr std::uint8_t kEncodingMask = 0x03;
constexpr std::uint8_t kFollowsGranule = 0x04;  // first granule: where the previous extent ended
constexpr std::uint8_t kSameCount = 0x08;       // count: the previous extent's
constexpr std::uint8_t kFollowsBlock = 0x10;    // offset: right behind the previous extent's stored bytes
constexpr std::uint8_t kLast = 0x20;            // of its delta
constexpr std::uint8_t kSealed = 0x40;  // the stored bytes are sealed: stated and implied sizes are those before
constexpr std::uint8_t kKnownBits = kEncodingMask | kFollowsGranule | kSameCount | kFollowsBlock | kLast | kSealed;

struct Expected {
  std::uint32_t first = 0;
  std::uint32_t count = 1;
  std::uint64_t offset = 0;

  void follow(const DeltaExtent& extent) {
    first = extent.first + extent.count;
    count = extent.count;
    // Zeroes have no stored bytes, but their header stands in the log all the same: what follows is one header on.
    offset = extent.encoding == wire::Encoding::zero
                 ? (offset == 0 ? 0 : offset + limits::kBlockHeaderSize)
                 : std::uint64_t{extent.offset} + limits::kBlockHeaderSize + extent.stored_size;
  }
};

std::uint32_t raw_size(std::uint32_t granules) { return granules * static_cast<std::uint32_t>(limits::kGranuleSize); }

std::unexpected<Error> bad(std::string what) { return fail(Code::corrupt, "index delta", std::move(what)); }

bool take_byte(std::string_view& from, std::uint8_t& value) {
  if (from.empty()) return false;
  value = static_cast<std::uint8_t>(from.front());
  from.remove_prefix(1);
  return true;
}

}  // namespace

void put_varint(std::string& to, std::uint64_t value) {
  while (value >= 0x80) {
    to.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  to.push_back(static_cast<char>(value));
}

bool take_varint(std::string_view& from, std::uint64_t& value) {
  value = 0;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    std::uint8_t byte;
    if (!take_byte(from, byte)) return false;
    if (shift == 63 && byte > 1) return false;
    value |= std::uint64_t{byte & 0x7fu} << shift;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

void append_delta(const Delta& delta, Lsn key_lsn, std::string& to) {
  TIDEMARK_CHECK(delta.lsn <= key_lsn && !delta.extents.empty());
  put_varint(to, key_lsn.value() - delta.lsn.value());
  put_varint(to, delta.epoch.value());
  put_varint(to, cold_number(delta.segment) << 1 | (is_cold(delta.segment) ? 1 : 0));
  Expected expected;
  for (const DeltaExtent& extent : delta.extents) {
    TIDEMARK_CHECK(extent.count > 0 && extent.first + extent.count <= limits::kRegionGranules);
    const bool zero = extent.encoding == wire::Encoding::zero;
    auto flags = static_cast<std::uint8_t>(extent.encoding);
    if (extent.first == expected.first) flags |= kFollowsGranule;
    if (extent.count == expected.count) flags |= kSameCount;
    if (!zero && extent.offset == expected.offset) flags |= kFollowsBlock;
    if (&extent == &delta.extents.back()) flags |= kLast;
    if (extent.sealed) flags |= kSealed;
    const std::uint32_t unsealed_size = extent.stored_size - (extent.sealed ? wire::kSealedOverhead : 0);
    to.push_back(static_cast<char>(flags));
    if ((flags & kFollowsGranule) == 0) to.push_back(static_cast<char>(extent.first));
    if ((flags & kSameCount) == 0) to.push_back(static_cast<char>(extent.count - 1));
    if (!zero) {
      if ((flags & kFollowsBlock) == 0) put_varint(to, extent.offset);
      if (extent.encoding == wire::Encoding::raw) {
        TIDEMARK_CHECK(unsealed_size == raw_size(extent.count));
      } else {
        put_varint(to, unsealed_size);
      }
    }
    expected.follow(extent);
  }
}

Status take_delta(std::string_view& bytes, Lsn key_lsn, Delta& to) {
  to.extents.clear();
  std::uint64_t number = 0;
  if (!take_varint(bytes, number)) return bad("its LSN is cut off");
  if (number > key_lsn.value()) return bad("an LSN before the first");
  to.lsn = Lsn(key_lsn.value() - number);
  if (!take_varint(bytes, number)) return bad("its epoch is cut off");
  to.epoch = EpochNumber(number);
  if (!take_varint(bytes, number)) return bad("its segment is cut off");
  to.segment = (number & 1) != 0 ? cold_segment(number >> 1) : SegmentId(number >> 1);
  Expected expected;
  for (bool last = false; !last;) {
    std::uint8_t flags = 0;
    if (!take_byte(bytes, flags)) return bad("its last extent is missing");
    last = (flags & kLast) != 0;
    if ((flags & ~kKnownBits) != 0) return bad("unknown flags in an extent");
    DeltaExtent extent;
    if ((flags & kEncodingMask) > static_cast<std::uint8_t>(wire::Encoding::zero)) return bad("unknown encoding");
    extent.encoding = static_cast<wire::Encoding>(flags & kEncodingMask);
    extent.first = expected.first;
    extent.count = expected.count;
    std::uint8_t byte = 0;
    if ((flags & kFollowsGranule) == 0) {
      if (!take_byte(bytes, byte)) return bad("an extent is cut off");
      extent.first = byte;
    }
    if ((flags & kSameCount) == 0) {
      if (!take_byte(bytes, byte)) return bad("an extent is cut off");
      extent.count = byte + 1u;
    }
    if (extent.first + extent.count > limits::kRegionGranules) return bad("an extent leaves its region");
    if (extent.encoding == wire::Encoding::zero) {
      if ((flags & kFollowsBlock) != 0) return bad("zeroes with a place");
      if ((flags & kSealed) != 0) return bad("zeroes that are sealed");
    } else {
      if (extent.count > limits::kBlockGranulesMax) return bad("a block of data larger than any can be");
      std::uint64_t offset = expected.offset;
      if ((flags & kFollowsBlock) == 0 && !take_varint(bytes, offset)) return bad("an extent is cut off");
      if (offset > UINT32_MAX) return bad("an offset beyond any segment");
      extent.offset = static_cast<std::uint32_t>(offset);
      std::uint64_t size = raw_size(extent.count);
      if (extent.encoding == wire::Encoding::zstd) {
        if (!take_varint(bytes, size)) return bad("an extent is cut off");
        if (size == 0 || size >= raw_size(extent.count)) return bad("a compressed block of an impossible size");
      }
      extent.sealed = (flags & kSealed) != 0;
      extent.stored_size = static_cast<std::uint32_t>(size) + (extent.sealed ? wire::kSealedOverhead : 0);
    }
    to.extents.push_back(extent);
    expected.follow(extent);
  }
  return {};
}

}  // namespace tidemark::storage
