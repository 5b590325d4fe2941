#include "wire/frame.h"

#include <gtest/gtest.h>

#include <array>

#include "base/checksum.h"
#include "base/hex.h"
#include "wire/endian.h"

namespace tidemark::wire {
namespace {

using Bytes = std::array<std::byte, limits::kFrameHeaderSize>;

Bytes encoded(const FrameHeader& header) {
  Bytes bytes;
  encode(header, bytes);
  return bytes;
}

void seal(Bytes& bytes) { put_little(bytes.data() + 28, crc32c(std::span(bytes).first<28>())); }

const FrameHeader kExample{FrameType::blocks, 70'000, DiskId(3), 0x0102030405060708};

TEST(Frame, EveryTypeComesBackAsItWas) {
  for (int type = 1; type <= 24; ++type) {
    FrameHeader header{static_cast<FrameType>(type), 17, DiskId(0), 99};
    const auto decoded = decode_frame_header(encoded(header));
    ASSERT_TRUE(decoded) << decoded.error().message();
    EXPECT_EQ(*decoded, header);
    EXPECT_NE(to_string(header.type), "unknown");
  }
}

TEST(Frame, EverySingleFlippedBitIsFound) {
  const Bytes good = encoded(kExample);
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    Bytes bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto decoded = decode_frame_header(bad);
    ASSERT_FALSE(decoded) << "bit " << bit;
    EXPECT_EQ(decoded.error().code, Code::protocol);
  }
}

TEST(Frame, SizesUpToTheLimitOfTheTypeAndNoFurther) {
  const auto decodes = [](FrameType type, std::size_t size) {
    return decode_frame_header(encoded({type, static_cast<std::uint32_t>(size), DiskId(0), 0})).has_value();
  };
  EXPECT_TRUE(decodes(FrameType::blocks, limits::kFramePayloadMax));
  EXPECT_FALSE(decodes(FrameType::blocks, limits::kFramePayloadMax + 1));
  EXPECT_TRUE(decodes(FrameType::hello, limits::kControlPayloadMax));
  EXPECT_FALSE(decodes(FrameType::hello, limits::kControlPayloadMax + 1));
  EXPECT_FALSE(decodes(FrameType::blocks, UINT32_MAX));
}

TEST(Frame, AVersionOfTheFutureIsNamedWithARemedy) {
  Bytes bytes = encoded(kExample);
  bytes[5] = std::byte{2};
  seal(bytes);
  const auto decoded = decode_frame_header(bytes);
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code, Code::unsupported);
  EXPECT_NE(decoded.error().remedy.find("upgrade"), std::string::npos);
}

TEST(Frame, UnknownTypesReservedBitsAndDisksOfControlFramesAreRefused) {
  for (const std::size_t at : {std::size_t{6}, std::size_t{7}, std::size_t{24}, std::size_t{27}}) {
    Bytes bytes = encoded(kExample);
    bytes[at] = std::byte{1};
    seal(bytes);
    EXPECT_FALSE(decode_frame_header(bytes)) << at;
  }
  for (const int type : {0, 26, 255}) {
    Bytes bytes = encoded(kExample);
    bytes[4] = static_cast<std::byte>(type);
    seal(bytes);
    EXPECT_FALSE(decode_frame_header(bytes)) << type;
  }
  EXPECT_FALSE(decode_frame_header(encoded({FrameType::ping, 0, DiskId(1), 0})));
}

}  // namespace
}  // namespace tidemark::wire
