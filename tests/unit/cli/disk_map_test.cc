#include "cli/disk_map.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/random.h"
#include "base/units.h"

namespace tidemark::cli {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

Result<std::vector<Extent>> extents_of(std::string_view text, std::uint64_t size, std::size_t piece = 7) {
  DiskMap map(size);
  for (std::size_t at = 0; at < text.size(); at += piece) {
    const Status fed = map.feed(bytes_of(text.substr(at, piece)));
    if (!fed) return std::unexpected(fed.error());
  }
  return std::move(map).finish();
}

TEST(DiskMap, CoversTheDiskWhateverTheMapLeavesOut) {
  const auto extents = extents_of(R"({"size": 8388608, "ranges": [{"offset": 0, "length": 4096, "zero": false},
      {"offset": 4096, "length": 1048576, "zero": true}, {"zero": true, "offset": 1052672, "length": 4096},
      {"offset": 4194304, "length": 1048576, "zero": true}]})",
                                  8_MiB);
  const std::vector<Extent> expected = {
      {0, 4096, false}, {4096, 1052672, true}, {1056768, 3137536, false}, {4_MiB, 1_MiB, true}, {5_MiB, 3_MiB, false}};
  EXPECT_EQ(extents.value(), expected);
  EXPECT_EQ(extents_of(R"({"size": 4096, "ranges": []})", 4096).value(), (std::vector<Extent>{{0, 4096, false}}));
}

TEST(DiskMap, ZeroesNotWorthARequestAreFetched) {
  EXPECT_EQ(extents_of(R"({"ranges":[{"offset":0,"length":4096,"zero":true}]})", 1_MiB).value(),
            (std::vector<Extent>{{0, 1_MiB, false}}));
}

TEST(DiskMap, RefusesWhatIsCutShortOrMakesNoSense) {
  for (const char* text :
       {"", R"({"size": 4096, "ranges": [)", R"({"ranges": [{"offset": 0, "length": 4096, "zero": true})",
        R"({"ranges": [{"offset": 0, "length": 8192, "zero": true}]})",
        R"({"ranges": [{"offset": 18446744073709551615, "length": 2, "zero": true}]})",
        R"({"ranges": [{"offset": 0, "length": 4096}, {"offset": 0, "length": 4096}]})",
        R"({"ranges": [{"offset": -1, "length": 1}]})", R"({"ranges": [{"length": 1}]})", R"(]})", R"({}{})"})
    EXPECT_FALSE(extents_of(text, 4096)) << text;
}

TEST(DiskMap, StaysSmallAndStillCoversTheDisk) {
  constexpr std::uint64_t kCount = 20'000;
  const std::uint64_t seed = 11;
  Random random(seed);
  DiskMap map(kCount * 4_MiB, 1000);
  ASSERT_TRUE(map.feed(bytes_of("{\"ranges\": [")));
  for (std::uint64_t i = 0; i < kCount; ++i) {
    const std::uint64_t length = 4096 * (1 + random.below(512));
    const std::string range =
        (i == 0 ? "" : ",") + nlohmann::json{{"offset", i * 4_MiB}, {"length", length}, {"zero", true}}.dump();
    ASSERT_TRUE(map.feed(bytes_of(range)));
  }
  ASSERT_TRUE(map.feed(bytes_of("]}")));
  const auto extents = std::move(map).finish();
  ASSERT_TRUE(extents) << "seed " << seed;
  EXPECT_LE(extents->size(), 2 * 1000u + 1);
  EXPECT_GT(extents->size(), 400u) << "the longest are worth keeping";
  std::uint64_t position = 0;
  for (const Extent& extent : *extents) {
    EXPECT_EQ(extent.offset, position);
    position += extent.length;
  }
  EXPECT_EQ(position, kCount * 4_MiB);
}

}  // namespace
}  // namespace tidemark::cli
