#include "bench/load/arguments.h"

#include <gtest/gtest.h>

#include "bench/load/server_watch.h"

namespace tidemark::bench {
namespace {

TEST(Arguments, SpeedsAreFactorsOrFlat) {
  EXPECT_EQ(parse_speed("1x")->value(), 1);
  EXPECT_EQ(parse_speed("2.5x")->value(), 2.5);
  EXPECT_EQ(parse_speed("20")->value(), 20);
  EXPECT_FALSE(parse_speed("flat")->has_value());
  for (const char* wrong : {"", "x", "0x", "-1x", "fast", "1e9", "1xx", "nan"})
    EXPECT_FALSE(parse_speed(wrong)) << wrong;
}

TEST(Arguments, ARateBecomesAnIntervalOfEachMachine) {
  LoadArguments arguments;
  arguments.profile = "random4k";
  arguments.machines = 100;
  arguments.blocks_per_epoch = 32;
  arguments.rate = 6400;
  EXPECT_EQ(prepare(arguments)->options.epoch_interval, std::chrono::milliseconds(500));
  arguments.interval_ms = 100;
  EXPECT_FALSE(prepare(arguments));  // two paces
  arguments.interval_ms = 0;
  arguments.rate = 1e9;
  EXPECT_FALSE(prepare(arguments));  // an epoch every 3 us
}

TEST(Arguments, CompressionIsOnWhenThereIsSomethingToCompress) {
  LoadArguments arguments;
  EXPECT_EQ(prepare(arguments)->options.zstd_level, 0);
  arguments.compressible = 0.5;
  EXPECT_EQ(prepare(arguments)->options.zstd_level, 1);
  arguments.zstd_level = 0;
  EXPECT_EQ(prepare(arguments)->options.zstd_level, 0);
}

TEST(Arguments, AReplayWithoutATraceSaysThatItIsSynthetic) {
  LoadArguments arguments;
  arguments.profile = "replay";
  const auto prepared = prepare(arguments);
  ASSERT_TRUE(prepared);
  EXPECT_NE(prepared->note.find("synthetic"), std::string::npos);
}

TEST(ServerWatch, SumsMetricsOverLabelsAndKeepsTheBucketsOfHistograms) {
  const Metrics metrics = parse_metrics(
      "# HELP a What\n# TYPE a counter\na{shard=\"0\"} 2\na{shard=\"1\"} 3.5\nb 7\n"
      "h_bucket{le=\"0.5\"} 4\nh_bucket{le=\"+Inf\"} 6\nbroken\nc{x=\"y\"} word\n");
  EXPECT_EQ(metrics, (Metrics{{"a", 5.5}, {"b", 7}, {"h_bucket{le=0.5}", 4}, {"h_bucket{le=+Inf}", 6}}));
}

}  // namespace
}  // namespace tidemark::bench
