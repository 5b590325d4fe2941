#include "bench/load/series.h"

#include <gtest/gtest.h>

namespace tidemark::bench {
namespace {

TEST(Series, HoldsRatesBetweenSamples) {
  Series series;
  FleetSample sample;
  series.add(0, sample, {}, ServerUsage{1.0, 1 << 20});
  sample.counters.plain_bytes_durable = 8 << 20;
  sample.counters.ack_us.add(2000);
  series.add(2, sample, {}, ServerUsage{2.0, 3 << 20});
  ASSERT_EQ(series.points().size(), 1u);
  EXPECT_DOUBLE_EQ(series.points()[0].mib_per_s, 4);
  EXPECT_DOUBLE_EQ(series.points()[0].server_cpu, 0.5);
  EXPECT_DOUBLE_EQ(series.points()[0].server_mib, 3);
  EXPECT_NEAR(series.points()[0].ack_p99_ms, 2, 0.05);
}

TEST(Series, StaysBoundedAndLosesNoBytes) {
  Series series;
  FleetSample sample;
  series.add(0, sample, {}, std::nullopt);
  constexpr int kSamples = 5000;
  for (int i = 1; i <= kSamples; ++i) {
    sample.counters.plain_bytes_durable += 1 << 20;
    series.add(i, sample, {}, std::nullopt);
    ASSERT_LE(series.points().size(), Series::kPointsMax);
  }
  double mib = 0;
  for (const SeriesPoint& point : series.points()) mib += point.mib_per_s * point.length;
  EXPECT_NEAR(mib, kSamples, 0.01);
}

}  // namespace
}  // namespace tidemark::bench
