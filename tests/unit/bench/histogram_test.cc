#include "bench/load/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/random.h"

namespace tidemark::bench {
namespace {

TEST(Histogram, BucketsFollowEachOtherWithoutGap) {
  std::uint64_t expected = 0;
  for (std::size_t i = 0; i + 1 < Histogram().buckets().size(); ++i) {
    const std::uint64_t end = Histogram::upper_end(i);
    ASSERT_EQ(Histogram::bucket_of(expected), i);
    ASSERT_EQ(Histogram::bucket_of(end), i);
    ASSERT_EQ(Histogram::bucket_of(end + 1), i + 1);
    expected = end + 1;
  }
}

TEST(Histogram, PercentilesAreWithinABucketOfTheTruth) {
  Random random(5);
  std::vector<std::uint64_t> values;
  Histogram histogram;
  for (int i = 0; i < 20'000; ++i) {
    values.push_back(random.below(std::uint64_t{1} << (1 + random.below(30))));
    histogram.add(values.back());
  }
  std::ranges::sort(values);
  for (const double share : {0.01, 0.5, 0.9, 0.99, 0.999}) {
    const double truth = static_cast<double>(values[static_cast<std::size_t>(share * 20'000) - 1]);
    EXPECT_GE(static_cast<double>(histogram.percentile(share)), truth);
    EXPECT_LE(static_cast<double>(histogram.percentile(share)), truth * 1.02 + 1);
  }
  EXPECT_GE(histogram.max(), values.back());
}

TEST(Histogram, OfAMomentIsADifference) {
  Histogram before;
  before.add(10);
  Histogram after = before;
  after.add(5000);
  after.add(5000);
  const Histogram between = after.minus(before);
  EXPECT_EQ(between.count(), 2u);
  EXPECT_EQ(between.percentile(0.01), between.max());
  EXPECT_NEAR(between.mean(), 5000, 1);
  EXPECT_EQ(Histogram().percentile(0.99), 0u);
}

TEST(Histogram, WhatIsBeyondItCountsInTheLastBucket) {
  Histogram histogram;
  histogram.add(UINT64_MAX / 2);
  EXPECT_EQ(histogram.buckets().back(), 1u);
}

}  // namespace
}  // namespace tidemark::bench
