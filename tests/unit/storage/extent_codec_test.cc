#include "storage/extent_codec.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "storage/segment_kind.h"

namespace tidemark::storage {
namespace {

DeltaExtent raw(std::uint32_t first, std::uint32_t count, std::uint32_t offset) {
  return {.first = first,
          .count = count,
          .encoding = wire::Encoding::raw,
          .offset = offset,
          .stored_size = count * static_cast<std::uint32_t>(limits::kGranuleSize)};
}

std::string encoded(const Delta& delta) {
  std::string bytes;
  append_delta(delta, delta.lsn, bytes);
  return bytes;
}

Status decode(std::string_view bytes, Lsn lsn, Delta& to) { return take_delta(bytes, lsn, to); }

TEST(ExtentCodec, WorkedExampleOfTheDocument) {
  const Delta delta{
      .lsn = Lsn(40),
      .epoch = EpochNumber(7),
      .segment = SegmentId(3),
      .extents = {raw(0x10, 1, 0x2080),
                  {.first = 0x11, .count = 1, .encoding = wire::Encoding::zstd, .offset = 0x30b0, .stored_size = 300},
                  {.first = 0x80, .count = 128, .encoding = wire::Encoding::zero}}};
  const std::string expected = {0x00, 0x07,   0x06,            // the key's LSN, epoch, segment 3 of the log
                                0x08, 0x10,   '\x80', '\x41',  // raw, as many as before: 1
                                0x1d, '\xac', 0x02,            // zstd, all implied but the size
                                0x22, '\x80', 0x7f};           // zeroes, the last
  EXPECT_EQ(encoded(delta), expected);
  Delta read;
  ASSERT_TRUE(decode(encoded(delta), Lsn(40), read));
  EXPECT_EQ(read, delta);
}

TEST(ExtentCodec, SeveralDeltasUnderOneKeyKeepTheirOwnLsns) {
  const Delta newer{.lsn = Lsn(40), .epoch = EpochNumber(7), .segment = cold_segment(9), .extents = {raw(3, 1, 4096)}};
  const Delta older{.lsn = Lsn(31), .epoch = EpochNumber(5), .segment = SegmentId(2), .extents = {raw(4, 2, 8192)}};
  std::string bytes;
  append_delta(newer, Lsn(40), bytes);
  append_delta(older, Lsn(40), bytes);
  std::string_view rest = bytes;
  Delta read;
  ASSERT_TRUE(take_delta(rest, Lsn(40), read));
  EXPECT_EQ(read, newer);
  ASSERT_TRUE(take_delta(rest, Lsn(40), read));
  EXPECT_EQ(read, older);
  EXPECT_TRUE(rest.empty());
}

TEST(ExtentCodec, BulkRegionTakesOneByteABlock) {
  Delta delta{.lsn = Lsn(1), .epoch = EpochNumber(1), .segment = SegmentId(1), .extents = {}};
  for (std::uint32_t i = 0; i < 16; ++i) delta.extents.push_back(raw(i * 16, 16, 4096 + i * (65536 + 48)));
  EXPECT_LE(encoded(delta).size(), 3u + 4u + 16u);
}

TEST(ExtentCodec, RandomDeltasSurviveTheRoundTrip) {
  Random random(20261121);
  Delta read;
  for (int round = 0; round < 5000; ++round) {
    const std::uint64_t segment = (random.next() >> 2) >> random.below(62);
    Delta delta{.lsn = Lsn(random.next() >> random.below(64)),
                .epoch = EpochNumber(random.next() >> random.below(64)),
                .segment = random.chance(0.5) ? cold_segment(segment) : SegmentId(segment),
                .extents = {}};
    const std::size_t count = 1 + random.below(20);
    std::uint32_t offset = 0;
    for (std::size_t i = 0; i < count; ++i) {
      DeltaExtent extent;
      extent.encoding = static_cast<wire::Encoding>(random.below(3));
      const std::uint32_t most = extent.encoding == wire::Encoding::zero ? 256 : 16;
      extent.count = static_cast<std::uint32_t>(1 + random.below(most));
      extent.first = static_cast<std::uint32_t>(random.below(256 - extent.count + 1));
      if (extent.encoding != wire::Encoding::zero) {
        extent.offset = random.chance(0.5) ? offset : static_cast<std::uint32_t>(random.next());
        extent.stored_size = extent.count * 4096;
        if (extent.encoding == wire::Encoding::zstd) {
          extent.stored_size = static_cast<std::uint32_t>(1 + random.below(extent.stored_size - 1));
        }
        extent.sealed = random.chance(0.4);
        if (extent.sealed) extent.stored_size += wire::kSealedOverhead;
        offset = extent.offset + 48 + extent.stored_size;
      }
      delta.extents.push_back(extent);
    }
    std::string bytes = encoded(delta);
    ASSERT_TRUE(decode(bytes, delta.lsn, read)) << "round " << round;
    ASSERT_EQ(read, delta) << "round " << round;
    const std::string_view cut(bytes.data(), random.below(bytes.size()));
    ASSERT_FALSE(decode(cut, delta.lsn, read)) << "it is cut off";
    bytes[random.below(bytes.size())] ^= static_cast<char>(1 << random.below(8));
    if (decode(bytes, delta.lsn, read)) {
      for (const DeltaExtent& extent : read.extents) ASSERT_LE(extent.first + extent.count, 256u);
    }
  }
}

TEST(ExtentCodec, RefusesWhatItNeverMakes) {
  Delta read;
  const auto refused = [&](std::string bytes) {
    const auto status = decode(bytes, Lsn(5), read);
    return !status && status.error().code == Code::corrupt;
  };
  EXPECT_TRUE(refused(""));
  EXPECT_TRUE(refused(std::string{0, 1, 1}));                            // no extent
  EXPECT_TRUE(refused(std::string{6, 1, 1, 0x22, 0, 0}));                // an LSN below zero
  EXPECT_TRUE(refused(std::string{0, 1, 1, '\x80'}));                    // unknown flag
  EXPECT_TRUE(refused(std::string{0, 1, 1, 0x62, 0, 0}));                // zeroes that are sealed
  EXPECT_TRUE(refused(std::string{0, 1, 1, 0x23, 0, 0}));                // unknown encoding
  EXPECT_TRUE(refused(std::string{0, 1, 1, 0x22, '\xff', 0x01}));        // leaves its region
  EXPECT_TRUE(refused(std::string{0, 1, 1, 0x20, 0, 16, 0}));            // 17 granules of data
  EXPECT_TRUE(refused(std::string{0, 1, 1, 0x29, 0, 0, '\x80', 0x20}));  // compressed to its plain size
  EXPECT_TRUE(refused(std::string{0, 1, 1, 0x02, 0, 0}));                // more is to follow, and does not
  EXPECT_TRUE(refused(std::string(11, '\xff')));                         // endless varint
}

}  // namespace
}  // namespace tidemark::storage
