#include "storage/granule_hashes.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "base/units.h"

namespace tidemark::storage {
namespace {

StoredPlace place(std::uint64_t n, std::uint64_t store = 1) {
  return {.store = store, .segment = SegmentId(n / 100 + 1), .offset = static_cast<std::uint32_t>(n % 100 * 65584)};
}

std::vector<std::byte> plain(std::uint64_t n, std::size_t granules) {
  std::vector<std::byte> bytes(granules * limits::kGranuleSize, static_cast<std::byte>(n));
  for (std::size_t i = 0; i < granules; ++i) bytes[i * limits::kGranuleSize] = static_cast<std::byte>(i);
  return bytes;
}

TEST(GranuleHashes, KnowsEachGranuleOfABlock) {
  GranuleHashes hashes(1_MiB);
  EXPECT_FALSE(hashes.find(place(1)));
  hashes.put(place(1), plain(1, 5));
  const auto found = hashes.find(place(1));
  ASSERT_TRUE(found);
  const auto bytes = plain(1, 5);
  for (std::size_t i = 0; i < 5; ++i)
    EXPECT_EQ((*found)[i], GranuleHashes::of(std::span(bytes).subspan(i * limits::kGranuleSize, limits::kGranuleSize)));
  EXPECT_NE((*found)[0], (*found)[1]);
  EXPECT_FALSE(hashes.find(place(1, 2))) << "of another opening";
  EXPECT_FALSE(hashes.find(place(2)));
}

TEST(GranuleHashes, OldOnesGoAndNoneIsMistakenForAnother) {
  GranuleHashes hashes(64_KiB);
  std::vector<std::uint64_t> first(5000);
  for (std::uint64_t n = 0; n < first.size(); ++n) {
    hashes.put(place(n), plain(n, 1));
    first[n] = GranuleHashes::of(plain(n, 1));
  }
  std::size_t there = 0;
  for (std::uint64_t n = 0; n < first.size(); ++n) {
    if (const auto found = hashes.find(place(n))) {
      EXPECT_EQ((*found)[0], first[n]);
      ++there;
    }
  }
  EXPECT_GT(there, 200u);
  EXPECT_LT(there, 500u);
}

TEST(GranuleHashes, WithoutMemoryItKnowsNothing) {
  GranuleHashes hashes(0);
  hashes.put(place(1), plain(1, 1));
  EXPECT_FALSE(hashes.find(place(1)));
}

TEST(GranuleHashes, FromManyThreads) {
  GranuleHashes hashes(128_KiB);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&hashes, t] {
      for (std::uint64_t i = 0; i < 3000; ++i) {
        const std::uint64_t n = (i * 7 + t) % 200;
        if (const auto found = hashes.find(place(n)))
          EXPECT_EQ((*found)[0], GranuleHashes::of(plain(n, 1)));
        else
          hashes.put(place(n), plain(n, 1));
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace tidemark::storage
