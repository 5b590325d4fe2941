#include "bench/load/content.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace tidemark::bench {
namespace {

std::vector<std::byte> sectors(const Content& content, std::uint32_t machine, std::uint32_t disk, std::uint64_t first,
                               std::uint32_t version, std::size_t count) {
  std::vector<std::byte> bytes(count * kSectorSize, std::byte{0xaa});
  content.fill(machine, disk, first, version, bytes);
  return bytes;
}

TEST(Content, IsTheSameHoweverItIsCut) {
  const Content content{.seed = 3, .compressible = 0.4, .zero_share = 0.3};
  const auto whole = sectors(content, 1, 2, 100, 7, 400);
  for (std::size_t i = 0; i < 400; ++i) {
    const auto one = sectors(content, 1, 2, 100 + i, 7, 1);
    ASSERT_TRUE(std::ranges::equal(one, std::span(whole).subspan(i * kSectorSize, kSectorSize))) << i;
  }
}

TEST(Content, DiffersByEverythingItIsDerivedFrom) {
  const Content content{.seed = 3};
  const auto base = sectors(content, 1, 2, 100, 7, 1);
  EXPECT_NE(base, sectors(Content{.seed = 4}, 1, 2, 100, 7, 1));
  EXPECT_NE(base, sectors(content, 2, 2, 100, 7, 1));
  EXPECT_NE(base, sectors(content, 1, 3, 100, 7, 1));
  EXPECT_NE(base, sectors(content, 1, 2, 101, 7, 1));
  EXPECT_NE(base, sectors(content, 1, 2, 100, 8, 1));
}

TEST(Content, VersionZeroIsZero) {
  EXPECT_EQ(sectors(Content{}, 1, 0, 5, 0, 3), std::vector<std::byte>(3 * kSectorSize));
}

TEST(Content, HasTheSharesOfZeroesThatWereAskedFor) {
  const auto zero = [](std::byte byte) { return byte == std::byte{}; };
  const auto half = sectors(Content{.seed = 1, .compressible = 0.5}, 0, 0, 0, 1, 64);
  EXPECT_NEAR(static_cast<double>(std::ranges::count_if(half, zero)) / static_cast<double>(half.size()), 0.5, 0.01);
  const Content sparse{.seed = 1, .zero_share = 0.25};
  int empty = 0;
  for (std::uint64_t stretch = 0; stretch < 4000; ++stretch)
    empty += std::ranges::all_of(sectors(sparse, 0, 0, stretch * 128, 1, 1), zero) ? 1 : 0;
  EXPECT_NEAR(empty / 4000.0, 0.25, 0.03);
}

}  // namespace
}  // namespace tidemark::bench
