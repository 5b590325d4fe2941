// Is the checker any good? The same histories as in tests/unit/storage/store_sim_test.cc, with one bug planted at a
// time: each must be found.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <cstdio>

#include "base/planted.h"
#include "tests/sim/store_model.h"

namespace tidemark::sim {
namespace {

class PlantedStore : public ::testing::Test {
 protected:
  // How many histories it takes until the checker objects; 0: it never did.
  static std::uint64_t histories_until_found(Planted bug, std::uint64_t histories_max) {
    planted_bug = bug;
    for (std::uint64_t seed = 1; seed <= histories_max; ++seed) {
      const StoreRun run = run_store_history(seed);
      if (run.failure) {
        std::printf("found at seed %llu: %s\n", static_cast<unsigned long long>(seed), run.failure->c_str());
        return seed;
      }
    }
    return 0;
  }
  void SetUp() override { spdlog::set_level(spdlog::level::off); }
  void TearDown() override {
    planted_bug = Planted::none;
    spdlog::set_level(spdlog::level::info);
  }
};

constexpr std::uint64_t kHistoriesMax = 60;

TEST_F(PlantedStore, NothingIsFoundWhereNothingIsPlanted) { EXPECT_EQ(histories_until_found(Planted::none, 15), 0u); }

TEST_F(PlantedStore, AckBeforeDurableIsFound) {
  EXPECT_NE(histories_until_found(Planted::ack_before_durable, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, UncheckedBlocksAreFound) {
  EXPECT_NE(histories_until_found(Planted::skip_block_checksum, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, RotTakenForATornTailIsFound) {
  EXPECT_NE(histories_until_found(Planted::rot_taken_for_torn, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, AbortedEpochThatShowsThroughIsFound) {
  EXPECT_NE(histories_until_found(Planted::aborted_shows_through, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, AFoldThatForgetsPointsIsFound) {
  EXPECT_NE(histories_until_found(Planted::fold_forgets_points, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, AColdSegmentThatIsNotSyncedIsFound) {
  EXPECT_NE(histories_until_found(Planted::settled_unsynced, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, AMarkAheadOfItsDataIsFound) {
  EXPECT_NE(histories_until_found(Planted::mark_ahead_of_data, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, AMoveThatReadersDoNotLearnOfIsFound) {
  EXPECT_NE(histories_until_found(Planted::moved_unseen, 400), 0u);
}

TEST_F(PlantedStore, AFoldThatTakesOpenDataIsFound) {
  EXPECT_NE(histories_until_found(Planted::fold_takes_open_data, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, AStaleIncarnationIsFound) {
  EXPECT_NE(histories_until_found(Planted::stale_incarnation, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, APointThatIsDroppedUnderACloneIsFound) {
  EXPECT_NE(histories_until_found(Planted::drops_what_is_in_use, 400), 0u);
}

TEST_F(PlantedStore, PruningThatIgnoresPinsIsFound) {
  EXPECT_NE(histories_until_found(Planted::prune_ignores_pins, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, ALiveCountThatIsOffByOneIsFound) {
  EXPECT_NE(histories_until_found(Planted::live_count_off_by_one, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, NoncesThatBeginAnewAreFound) {
  EXPECT_NE(histories_until_found(Planted::nonces_begin_anew, kHistoriesMax), 0u);
}

TEST_F(PlantedStore, AChainThatIsCutWhereNeighboursWentIsFound) {
  EXPECT_NE(histories_until_found(Planted::released_run_unlinked, 400), 0u);
}

}  // namespace
}  // namespace tidemark::sim
