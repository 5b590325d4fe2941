#include "base/checksum.h"

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "base/crypto.h"
#include "base/hex.h"
#include "base/ids.h"
#include "base/random.h"

namespace tidemark {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// The check value of the CRC catalogue, and two vectors of RFC 3720 appendix B.4.
TEST(Checksum, Crc32cAgreesWithPublishedVectors) {
  EXPECT_EQ(crc32c(bytes_of("123456789")), 0xe3069283u);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(Checksum, Crc32cGoesOnFromAnEarlierResult) {
  EXPECT_EQ(crc32c(bytes_of("6789"), crc32c(bytes_of("12345"))), crc32c(bytes_of("123456789")));
  EXPECT_NE(crc32c(bytes_of("123456789"), 1), crc32c(bytes_of("123456789")));
}

TEST(Checksum, AStreamOfPiecesHashesLikeTheWhole) {
  Random random(7);
  std::vector<std::byte> data(10'000);
  random.fill(data);
  Xxh3Stream stream;
  for (std::size_t at = 0; at < data.size();) {
    const std::size_t n = std::min<std::size_t>(data.size() - at, 1 + random.below(700));
    stream.update(std::span(data).subspan(at, n));
    at += n;
  }
  EXPECT_EQ(stream.digest(), xxh3_128(data));
  EXPECT_NE(xxh3_128(data, 1), xxh3_128(data));
}

TEST(Checksum, Sha256AgreesWithFips180) {
  EXPECT_EQ(to_hex(sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Checksum, Sha256InPiecesIsThatOfTheWhole) {
  Sha256Stream stream;
  stream.update(bytes_of("a"));
  stream.update({});
  stream.update(bytes_of("bc"));
  Sha256Stream moved = std::move(stream);
  EXPECT_EQ(moved.finish(), sha256("abc"));
  EXPECT_EQ(Sha256Stream().finish(), sha256(""));
}

TEST(Ids, AMachineIdSurvivesItsTextForm) {
  std::array<std::byte, 16> bytes;
  secure_random(bytes);
  const MachineId id(bytes);
  EXPECT_EQ(MachineId::parse(id.to_string()), id);
  EXPECT_FALSE(MachineId::parse("xyz"));
  EXPECT_FALSE(MachineId::parse(id.to_string() + "0"));
  EXPECT_FALSE(MachineId::parse("ABCDEF00000000000000000000000000"));
  EXPECT_TRUE(MachineId().is_nil());
  EXPECT_LT(partition_of(id, 3).value(), 3u);
}

}  // namespace
}  // namespace tidemark
