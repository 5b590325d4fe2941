#include "bench/load/plan.h"

#include <gtest/gtest.h>

#include <set>

#include "base/limits.h"
#include "bench/load/verify.h"

namespace tidemark::bench {
namespace {

std::vector<PlannedWrite> step_of_plan(const Plan& plan, std::uint32_t machine, std::uint32_t step) {
  std::vector<PlannedWrite> writes;
  auto cursor = plan.begin(machine, step);
  for (PlannedWrite write; plan.next(cursor, write);) writes.push_back(write);
  return writes;
}

std::shared_ptr<const Trace> small_trace() {
  Trace trace;
  for (const std::uint64_t second : {0, 0, 3, 9}) trace.writes.push_back({second * 1'000'000, 0, 250 + second, 17});
  trace.duration_us = 10'000'000;
  trace.disk_granules = {1000};
  return std::make_shared<const Trace>(std::move(trace));
}

TEST(Plan, EveryProfileWritesBlocksThatAServerTakes) {
  for (const auto profile : {Profile::bulk, Profile::random4k, Profile::oltp, Profile::burst, Profile::replay}) {
    PlanShape shape{.profile = profile,
                    .machines = 3,
                    .disks = 2,
                    .disk_size = (5 << 20) + 4096,
                    .block_size = 12288,
                    .trace = small_trace()};
    const auto plan = Plan::make(shape);
    ASSERT_TRUE(plan) << plan.error().message();
    for (std::uint32_t step = 1; step <= 12; ++step) {
      const auto writes = step_of_plan(*plan, 1, step);
      EXPECT_FALSE(writes.empty()) << to_string(profile);
      for (const PlannedWrite& write : writes) {
        EXPECT_LT(write.disk, plan->shape().disks);
        EXPECT_GE(write.granules, 1u);
        EXPECT_LE(write.granules, limits::kBlockGranulesMax);
        EXPECT_EQ(write.first_granule / limits::kRegionGranules,
                  (write.first_granule + write.granules - 1) / limits::kRegionGranules);
        EXPECT_LE((write.first_granule + write.granules) * limits::kGranuleSize, plan->shape().disk_size);
      }
    }
    EXPECT_TRUE(step_of_plan(*plan, 1, 0).empty());
  }
}

TEST(Plan, BulkCoversEveryGranuleOnce) {
  const auto plan = Plan::make({.profile = Profile::bulk, .disks = 2, .disk_size = (3 << 20) + 8192});
  std::set<std::pair<std::uint32_t, std::uint64_t>> seen;
  for (const auto& write : step_of_plan(*plan, 0, 1))
    for (std::uint32_t i = 0; i < write.granules; ++i)
      EXPECT_TRUE(seen.insert({write.disk, write.first_granule + i}).second);
  EXPECT_EQ(seen.size(), 2 * plan->shape().disk_size / limits::kGranuleSize);
}

TEST(Plan, StepsFollowFromTheSeed) {
  const auto places = [](std::uint64_t seed, std::uint32_t machine, std::uint32_t step) {
    const auto plan = Plan::make({.profile = Profile::random4k, .machines = 2, .seed = seed});
    std::vector<std::uint64_t> first;
    for (const auto& write : step_of_plan(*plan, machine, step)) first.push_back(write.first_granule);
    return first;
  };
  EXPECT_EQ(places(1, 0, 1), places(1, 0, 1));
  EXPECT_NE(places(1, 0, 1), places(2, 0, 1));
  EXPECT_NE(places(1, 0, 1), places(1, 1, 1));
  EXPECT_NE(places(1, 0, 1), places(1, 0, 2));
}

TEST(Plan, AReplayKeepsTheTracesPausesAndBeginsAgain) {
  const auto plan = Plan::make({.profile = Profile::replay, .machines = 1, .trace = small_trace()});
  EXPECT_EQ(plan->shape().disk_size, 1000 * limits::kGranuleSize);
  EXPECT_EQ(plan->due_epochs(0, 1), 0u);
  EXPECT_EQ(plan->due_epochs(0, 2), 3u);
  EXPECT_EQ(plan->due_epochs(0, 3), 9u);
  EXPECT_EQ(plan->due_epochs(0, 4), 10u);  // ten seconds later, from its begin
  // Two writes of 17 granules, each cut at the region's end and at the largest block.
  const auto writes = step_of_plan(*plan, 0, 1);
  EXPECT_EQ(writes.size(), 4u);
  EXPECT_EQ(writes[0].granules, 6u);
  EXPECT_EQ(writes[1].granules, 11u);
}

TEST(Plan, MachinesReplayFromOtherMoments) {
  const auto plan = Plan::make({.profile = Profile::replay, .machines = 2, .trace = small_trace()});
  EXPECT_EQ(step_of_plan(*plan, 0, 1).front().first_granule, 250u);
  EXPECT_EQ(step_of_plan(*plan, 1, 1).front().first_granule, 259u);  // from the fifth second on
  EXPECT_EQ(plan->due_epochs(1, 2), 1u);
}

TEST(Plan, RefusesWhatCannotBe) {
  EXPECT_FALSE(Plan::make({.disks = 0}));
  EXPECT_FALSE(Plan::make({.disk_size = 4095}));
  EXPECT_FALSE(Plan::make({.disk_size = 2 * limits::kDiskSizeMax}));
  EXPECT_FALSE(Plan::make({.block_size = 100}));
  EXPECT_FALSE(Plan::make({.profile = Profile::replay}));
}

TEST(Verify, KnowsTheStepOfAnEpoch) {
  EXPECT_EQ(step_of({}, 4), 0u);
  const std::vector<StepMark> marks{{2, 1}, {7, 5}};
  EXPECT_EQ(step_of(marks, 1), 0u);  // the machine as it was enrolled
  EXPECT_EQ(step_of(marks, 2), 1u);
  EXPECT_EQ(step_of(marks, 5), 4u);
  EXPECT_EQ(step_of(marks, 7), 5u);
  EXPECT_EQ(step_of(marks, 9), 7u);
}

}  // namespace
}  // namespace tidemark::bench
