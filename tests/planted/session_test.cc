// An agent that goes on quietly although the server knows less than it once acknowledged must be found by the check
// that finds nothing without the bug.
#include <gtest/gtest.h>

#include "base/planted.h"
#include "tests/unit/wire/session_property.h"

namespace tidemark::wire {
namespace {

// The first violation among the seeds, or nothing.
std::string violation() {
  for (std::uint64_t seed = 1; seed <= 20; ++seed)
    if (const auto result = rig::PropertyRun(seed).run(2000); !result.violation.empty())
      return "seed " + std::to_string(seed) + ": " + result.violation;
  return {};
}

TEST(PlantedSession, AQuietResumeBelowWhatWasAcknowledgedIsFound) {
  EXPECT_EQ(violation(), "");
  planted_bug = Planted::quiet_resume;
  const std::string found = violation();
  planted_bug = Planted::none;
  EXPECT_NE(found.find("was acknowledged, is gone, and nobody was told"), std::string::npos) << found;
}

}  // namespace
}  // namespace tidemark::wire
