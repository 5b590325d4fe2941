// The bug of agent/free_space.h: what is free in the file system's memory is left out before its log says so.
#include <gtest/gtest.h>

#include "base/planted.h"
#include "tests/unit/agent/crash_rig.h"

namespace tidemark::agent {
namespace {

class PlantedFreeSpace : public testing::TestWithParam<std::array<const char*, 3>> {
 protected:
  void TearDown() override { planted_bug = Planted::none; }
};

TEST_P(PlantedFreeSpace, WithoutASyncAFileComesBackEmptied) {
  CrashRig rig(GetParam()[0], GetParam()[1], GetParam()[2]);
  if (!rig.why_not().empty()) GTEST_SKIP() << rig.why_not();
  planted_bug = Planted::free_space_unsynced;
  std::string wrong;
  std::uint64_t unused = 0;
  int rounds = 0;
  while (wrong.empty() && rounds++ < 20) wrong = rig.crash(unused);
  // A file that is there and not what it was, or a log that tells of blocks which are not there.
  EXPECT_FALSE(wrong.empty()) << rounds << " rounds";
}

std::string file_system_name(const testing::TestParamInfo<std::array<const char*, 3>>& kind) {
  constexpr std::array kNames{"ext4", "xfs", "xfs_rmap"};
  return kNames.at(kind.index);
}

INSTANTIATE_TEST_SUITE_P(Kinds, PlantedFreeSpace,
                         testing::Values(std::array{"mkfs.ext4 -q -F", "ext4", "data=writeback"},
                                         std::array{"mkfs.xfs -q -f --unsupported -m rmapbt=0", "xfs", "rw"},
                                         std::array{"mkfs.xfs -q -f --unsupported -m rmapbt=1", "xfs", "rw"}),
                         file_system_name);

}  // namespace
}  // namespace tidemark::agent
