#include "storage/block_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "base/units.h"

namespace tidemark::storage {
namespace {

BlockCache::Place place(std::uint64_t n, std::uint64_t store = 1) {
  return {.store = store, .segment = SegmentId(n / 1000 + 1), .offset = static_cast<std::uint32_t>(n % 1000) * 65536};
}

BlockCache::Block block(std::uint64_t content, std::size_t size = 64_KiB) {
  auto made = std::make_shared<AlignedBuffer>(size);
  std::memcpy(made->data(), &content, sizeof content);
  return made;
}

std::uint64_t content(const BlockCache::Block& block) {
  std::uint64_t value = 0;
  std::memcpy(&value, block->data(), sizeof value);
  return value;
}

TEST(BlockCache, GivesWhatStandsAtThePlaceAndNothingOfAnother) {
  BlockCache cache(64_MiB);
  cache.put(place(1), block(11));
  ASSERT_NE(cache.find(place(1)), nullptr);
  EXPECT_EQ(content(cache.find(place(1))), 11u);
  EXPECT_EQ(cache.find(place(2)), nullptr);
  EXPECT_EQ(cache.find(place(1, 2)), nullptr) << "of another opening of a partition";
  EXPECT_TRUE(cache.has(place(1)));
  const auto stats = cache.stats();
  EXPECT_EQ(stats.hits, 2u);
  EXPECT_EQ(stats.misses, 2u);
  EXPECT_EQ(stats.bytes, 64_KiB);
}

TEST(BlockCache, HoldsNoMoreThanItMayAndWhatWasUsedLastStays) {
  BlockCache cache(16_MiB);
  for (std::uint64_t i = 0; i < 1000; ++i) {
    cache.put(place(i), block(i));
    ASSERT_NE(cache.find(place(0)), nullptr) << "it was used before each of them";
    ASSERT_LE(cache.stats().bytes, 16_MiB);
  }
  std::uint64_t there = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    if (const auto found = cache.find(place(i))) {
      EXPECT_EQ(content(found), i);
      ++there;
    }
  }
  EXPECT_EQ(there * 64_KiB, cache.stats().bytes);
}

TEST(BlockCache, WhatDoesNotFitIsPassedBy) {
  BlockCache none(0);
  none.put(place(1), block(1));
  EXPECT_EQ(none.find(place(1)), nullptr);
  EXPECT_EQ(none.stats().bytes, 0u);
}

TEST(BlockCache, ABlockThatIsReadStaysWhateverBecomesOfItsPlace) {
  BlockCache cache(2_MiB);  // two blocks a part
  cache.put(place(1), block(1));
  const auto held = cache.find(place(1));
  for (std::uint64_t i = 2; i < 500; ++i) cache.put(place(i), block(i));
  EXPECT_FALSE(cache.has(place(1)));
  EXPECT_EQ(content(held), 1u);
}

TEST(BlockCache, FromManyThreads) {
  BlockCache cache(4_MiB);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&cache, t] {
      for (std::uint64_t i = 0; i < 20'000; ++i) {
        const std::uint64_t n = (i * 7919 + t * 31) % 300;
        if (const auto found = cache.find(place(n)))
          EXPECT_EQ(content(found), n);
        else
          cache.put(place(n), block(n, 4_KiB));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(cache.stats().bytes, 4_MiB);
}

}  // namespace
}  // namespace tidemark::storage
