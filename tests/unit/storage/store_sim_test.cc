// The store against a plain model, on a simulated disk. TIDEMARK_SIM_SEEDS sets how many histories, TIDEMARK_SIM_SEED
// the first; a failure prints the seed that repeats it.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <cstdio>

#include "tests/sim/store_model.h"

namespace tidemark::sim {
namespace {

class StoreSim : public ::testing::Test {
 protected:
  // Thousands of failures on purpose: what the store says of each is of no use here.
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
  void TearDown() override { spdlog::set_level(spdlog::level::info); }
};

TEST_F(StoreSim, RandomHistoriesLoseNothingAndServeNothingWrong) {
  const Seeds seeds = seeds_from_environment(1, 60);
  StoreRun all;
  for (std::uint64_t seed = seeds.first; seed < seeds.first + seeds.count; ++seed) {
    const StoreRun run = run_store_history(seed);
    all.add(run);
    ASSERT_FALSE(run.failure) << "seed " << seed << ": " << *run.failure << "\nrepeat with TIDEMARK_SIM_SEED=" << seed
                              << " TIDEMARK_SIM_SEEDS=1\n"
                              << run.summary();
  }
  std::printf("seeds=%llu..%llu %s\n", static_cast<unsigned long long>(seeds.first),
              static_cast<unsigned long long>(seeds.first + seeds.count - 1), all.summary().c_str());
  if (seeds.count >= 60) {
    // The rare paths were walked, or the test proves little.
    EXPECT_GT(all.crashes, seeds.count);
    EXPECT_GT(all.epochs_checked, 10 * seeds.count);
    EXPECT_GT(all.damage_found, seeds.count / 4);
    EXPECT_GT(all.segments_kept, seeds.count / 4);
  }
}

// Each once found a bug that the first ones do not: an index that could not be rebuilt after segments were recycled,
// and what a failed write had left behind, taken up after two power cuts in a row.
TEST_F(StoreSim, HistoriesThatOnceFailed) {
  for (const std::uint64_t seed : {8, 14, 1007, 1085}) {
    const StoreRun run = run_store_history(seed);
    EXPECT_FALSE(run.failure) << "seed " << seed << ": " << *run.failure;
  }
}

TEST_F(StoreSim, EveryCrashPointOfASmallHistory) {
  const StoreRun whole = run_small_history(7, std::nullopt);
  ASSERT_FALSE(whole.failure) << *whole.failure;
  ASSERT_EQ(whole.epochs_acked, 3u);
  StoreRun all;
  for (std::uint64_t operation = 0; operation < whole.disk_operations; ++operation) {
    const StoreRun run = run_small_history(7, operation);
    all.add(run);
    ASSERT_FALSE(run.failure) << "operation " << operation << ": " << *run.failure;
  }
  std::printf("seed=7 %s\n", all.summary().c_str());
  EXPECT_GT(all.crashes, 30u);
}

}  // namespace
}  // namespace tidemark::sim
