#include "tests/unit/wire/session_property.h"

#include <cstdlib>

namespace tidemark::wire {
namespace {

// TIDEMARK_SEED=n repeats one history.
TEST(SessionProperty, TheStoreHoldsWhatWasSentWhateverHappensToTheConnection) {
  const char* wanted = std::getenv("TIDEMARK_SEED");
  const std::uint64_t first = wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : 1;
  const std::uint64_t last = wanted != nullptr ? first : 60;
  rig::PropertyResult all;
  for (std::uint64_t seed = first; seed <= last; ++seed) {
    const auto result = rig::PropertyRun(seed).run(3000);
    ASSERT_EQ(result.violation, "") << "seed " << seed;
    all.epochs += result.epochs;
    all.sessions += result.sessions;
    all.resumed += result.resumed;
    all.aborted += result.aborted;
    all.alarms += result.alarms;
    all.restores += result.restores;
    all.busy += result.busy;
  }
  std::printf(
      "seeds %lu to %lu: %zu epochs, %zu sessions, %zu resumed, %zu aborted, %zu restores, %zu alarms, %zu busy\n",
      first, last, all.epochs, all.sessions, all.resumed, all.aborted, all.restores, all.alarms, all.busy);
  if (wanted != nullptr) return;
  // The rare paths were walked.
  EXPECT_GT(all.epochs, 0u);
  EXPECT_GT(all.resumed, 0u);
  EXPECT_GT(all.aborted, 0u);
  EXPECT_GT(all.alarms, 0u);
  EXPECT_GT(all.busy, 0u);
}

}  // namespace
}  // namespace tidemark::wire
