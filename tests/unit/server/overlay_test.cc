#include "server/overlay.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>

#include "base/limits.h"

namespace tidemark::server {
namespace {

constexpr std::uint64_t kGranule = limits::kGranuleSize;

class OverlayTest : public testing::Test {
 protected:
  // A run whose granules begin with consecutive bytes from `value` on.
  void put(std::uint64_t first, std::uint64_t granules, std::uint8_t value, std::uint64_t epoch = 1) {
    auto chunk = std::make_shared<OverlayChunk>(total_, granules * kGranule);
    for (std::uint64_t i = 0; i < granules; ++i)
      chunk->span()[i * kGranule] = static_cast<std::byte>(value + static_cast<std::uint8_t>(i));
    overlay_.put(
        {.first = first, .granules = granules, .data = std::move(chunk), .offset = 0, .epoch = EpochNumber(epoch)});
  }
  void put_zeroes(std::uint64_t first, std::uint64_t granules, std::uint64_t epoch = 1) {
    overlay_.put({.first = first, .granules = granules, .data = nullptr, .offset = 0, .epoch = EpochNumber(epoch)});
  }
  static int at(const Overlay::Run& run, std::uint64_t granule) {
    if (run.data == nullptr) return 0;
    return std::to_integer<int>(run.data->span()[(run.offset + granule - run.first) * kGranule]);
  }

  const std::shared_ptr<std::atomic<std::uint64_t>> total_ = std::make_shared<std::atomic<std::uint64_t>>(0);
  Overlay overlay_;
};

TEST_F(OverlayTest, WhatIsFoundIsCutToWhatWasAskedFor) {
  put(10, 4, 40);
  EXPECT_TRUE(overlay_.find(0, 10).empty());
  EXPECT_TRUE(overlay_.find(14, 100).empty());
  const auto found = overlay_.find(11, 2);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].first, 11u);
  EXPECT_EQ(found[0].granules, 2u);
  EXPECT_EQ(at(found[0], 11), 41);
  EXPECT_EQ(at(found[0], 12), 42);
}

TEST_F(OverlayTest, TheLaterOneHidesAndWhatIsLeftOnEitherSideStays) {
  put(0, 10, 10);
  put_zeroes(4, 2);
  const auto found = overlay_.find(0, 10);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(at(found[0], 3), 13);
  EXPECT_EQ(found[1].data, nullptr);
  EXPECT_EQ(found[2].first, 6u);
  EXPECT_EQ(at(found[2], 6), 16);
}

TEST_F(OverlayTest, WhatTheViewShowsGoesAndItsMemoryWithTheLastPartThatShows) {
  put(0, 8, 1, 5);
  put(4, 1, 99, 6);
  EXPECT_EQ(*total_, 9 * kGranule);
  overlay_.drop_until(EpochNumber(5));
  const auto found = overlay_.find(0, 8);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].first, 4u);
  EXPECT_EQ(*total_, kGranule);
  overlay_.drop_until(EpochNumber(6));
  EXPECT_TRUE(overlay_.empty());
  EXPECT_EQ(*total_, kGranule) << "a reader still has it";
}

TEST_F(OverlayTest, AsAPlainArrayOfGranules) {
  constexpr std::uint64_t kSize = 64;
  std::mt19937 random(7);
  std::array<int, kSize> value;
  std::array<std::uint64_t, kSize> epoch{};
  value.fill(-1);
  for (std::uint64_t step = 1; step <= 4000; ++step) {
    const std::uint64_t first = random() % kSize, granules = 1 + random() % std::min<std::uint64_t>(8, kSize - first);
    switch (random() % 8) {
      case 0:
        overlay_.drop_until(EpochNumber(step - std::min<std::uint64_t>(step, 20)));
        for (std::uint64_t i = 0; i < kSize; ++i)
          if (epoch[i] + 20 <= step) value[i] = -1;
        break;
      case 1:
        put_zeroes(first, granules, step);
        for (std::uint64_t i = first; i < first + granules; ++i) value[i] = 0, epoch[i] = step;
        break;
      default: {
        const auto byte = static_cast<std::uint8_t>(1 + random() % 200);
        put(first, granules, byte, step);
        for (std::uint64_t i = 0; i < granules; ++i)
          value[first + i] = byte + static_cast<int>(i), epoch[first + i] = step;
      }
    }
    const std::uint64_t from = random() % kSize, count = 1 + random() % (kSize - from);
    std::array<int, kSize> seen;
    seen.fill(-1);
    std::uint64_t end = from;
    for (const auto& run : overlay_.find(from, count)) {
      ASSERT_GE(run.first, end) << "step " << step;
      end = run.first + run.granules;
      ASSERT_LE(end, from + count);
      for (std::uint64_t i = run.first; i < end; ++i) seen[i] = at(run, i);
    }
    for (std::uint64_t i = from; i < from + count; ++i) ASSERT_EQ(seen[i], value[i]) << "step " << step << ", " << i;
  }
}

}  // namespace
}  // namespace tidemark::server
