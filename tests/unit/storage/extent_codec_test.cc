#include "storage/extent_codec.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace tidemark::storage {
namespace {

DeltaExtent raw(std::uint32_t first, std::uint32_t count, std::uint32_t offset) {
  return {.first = first,
          .count = count,
          .encoding = wire::Encoding::raw,
          .offset = offset,
          .stored_size = count * static_cast<std::uint32_t>(limits::kGranuleSize)};
}

TEST(ExtentCodec, WorkedExampleOfTheDocument) {
  const Delta delta{
      .epoch = EpochNumber(7),
      .segment = SegmentId(3),
      .extents = {raw(0x10, 1, 0x2080),
                  {.first = 0x11, .count = 1, .encoding = wire::Encoding::zstd, .offset = 0x30b0, .stored_size = 300},
                  {.first = 0x80, .count = 128, .encoding = wire::Encoding::zero}}};
  std::string bytes;
  encode_delta(delta, bytes);
  const std::string expected = {0x07, 0x03,                    // epoch, segment
                                0x08, 0x10,   '\x80', '\x41',  // raw, as many as before: 1
                                0x1d, '\xac', 0x02,            // zstd, all implied but the size
                                0x02, '\x80', 0x7f};           // zeroes
  EXPECT_EQ(bytes, expected);
  Delta read;
  ASSERT_TRUE(decode_delta(bytes, read));
  EXPECT_EQ(read, delta);
}

TEST(ExtentCodec, BulkRegionTakesOneByteABlock) {
  Delta delta{.epoch = EpochNumber(1), .segment = SegmentId(1), .extents = {}};
  for (std::uint32_t i = 0; i < 16; ++i) delta.extents.push_back(raw(i * 16, 16, 4096 + i * (65536 + 48)));
  std::string bytes;
  encode_delta(delta, bytes);
  EXPECT_LE(bytes.size(), 2u + 4u + 16u);
}

TEST(ExtentCodec, RandomDeltasSurviveTheRoundTrip) {
  Random random(20261121);
  std::string bytes;
  Delta read;
  for (int round = 0; round < 5000; ++round) {
    Delta delta{.epoch = EpochNumber(random.next() >> random.below(64)),
                .segment = SegmentId(random.next() >> random.below(64)),
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
        offset = extent.offset + 48 + extent.stored_size;
      }
      delta.extents.push_back(extent);
    }
    encode_delta(delta, bytes);
    ASSERT_TRUE(decode_delta(bytes, read)) << "round " << round;
    ASSERT_EQ(read, delta) << "round " << round;
    // Cut off anywhere, it is refused or a shorter list; never more than was there.
    const std::string_view cut(bytes.data(), random.below(bytes.size()));
    if (decode_delta(cut, read)) {
      ASSERT_LE(read.extents.size(), delta.extents.size());
    }
    bytes[random.below(bytes.size())] ^= static_cast<char>(1 << random.below(8));
    if (decode_delta(bytes, read)) {
      for (const DeltaExtent& extent : read.extents) ASSERT_LE(extent.first + extent.count, 256u);
    }
  }
}

TEST(ExtentCodec, RefusesWhatItNeverMakes) {
  Delta read;
  const auto refused = [&](std::string bytes) {
    const auto status = decode_delta(bytes, read);
    return !status && status.error().code == Code::corrupt;
  };
  EXPECT_TRUE(refused(""));
  EXPECT_TRUE(refused(std::string{1, 1}));                            // no extent
  EXPECT_TRUE(refused(std::string{1, 1, 0x20}));                      // unknown flag
  EXPECT_TRUE(refused(std::string{1, 1, 0x03, 0, 0}));                // unknown encoding
  EXPECT_TRUE(refused(std::string{1, 1, 0x02, '\xff', 0x01}));        // leaves its region
  EXPECT_TRUE(refused(std::string{1, 1, 0x00, 0, 16, 0}));            // 17 granules of data
  EXPECT_TRUE(refused(std::string{1, 1, 0x09, 0, 0, '\x80', 0x20}));  // compressed to its plain size
  EXPECT_TRUE(refused(std::string(11, '\xff')));                      // endless varint
}

}  // namespace
}  // namespace tidemark::storage
