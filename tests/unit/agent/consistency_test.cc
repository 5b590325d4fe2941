#include "agent/consistency.h"

#include <gtest/gtest.h>

namespace tidemark::agent {
namespace {

DiskEvidence leased_file(const std::string& name = "/a.img") {
  DiskEvidence e;
  e.disk = name;
  e.is_file = true;
  e.lease_held = true;
  e.times_unchanged = true;
  return e;
}
DiskEvidence resting_device(const std::string& name = "/dev/a") {
  DiskEvidence e;
  e.disk = name;
  e.counted = e.unchanged = e.claimable = true;
  return e;
}
DiskEvidence mounted_device(bool unchanged) {
  DiskEvidence e = resting_device("/dev/m");
  e.claimable = false;
  e.mounted = true;
  e.unchanged = unchanged;
  return e;
}

TEST(Consistency, NothingReadProvesNothing) { EXPECT_EQ(decide({}).consistency, Consistency::fuzzy); }

TEST(Consistency, LeasedFileIsFilesystemConsistent) {
  const Decision d = decide({leased_file()});
  EXPECT_EQ(d.consistency, Consistency::filesystem);
  EXPECT_TRUE(d.reason.empty());
}

TEST(Consistency, FileWithoutLeasesCountsAsCrashConsistentWhenItsTimesStayAndNobodyWrites) {
  DiskEvidence e = leased_file();
  e.lease_held = false;
  EXPECT_EQ(decide({e}).consistency, Consistency::crash);
  e.writer_seen = true;
  EXPECT_EQ(decide({e}).consistency, Consistency::fuzzy);
  e.writer_seen = false;
  e.times_unchanged = false;
  EXPECT_EQ(decide({e}).consistency, Consistency::fuzzy);
}

TEST(Consistency, FileWithAWriterIsFuzzyEvenIfItsTimesStay) {
  DiskEvidence e = leased_file();
  e.lease_held = false;
  e.lease_refused = true;
  e.detail = "by qemu (12)";
  const Decision d = decide({e});
  EXPECT_EQ(d.consistency, Consistency::fuzzy);
  EXPECT_NE(d.reason.find("/a.img"), std::string::npos);
  EXPECT_NE(d.reason.find("qemu (12)"), std::string::npos);
  EXPECT_FALSE(d.remedy.empty());
  EXPECT_FALSE(d.freeze_would_help);
}

TEST(Consistency, RestingUnmountedDeviceIsFilesystemConsistent) {
  EXPECT_EQ(decide({resting_device()}).consistency, Consistency::filesystem);
}

TEST(Consistency, MountedDeviceAtRestIsCrashConsistent) {
  EXPECT_EQ(decide({mounted_device(true)}).consistency, Consistency::crash);
}

TEST(Consistency, MountedDeviceThatChangedIsFuzzyAndAFreezeWouldHelp) {
  const Decision d = decide({mounted_device(false)});
  EXPECT_EQ(d.consistency, Consistency::fuzzy);
  EXPECT_TRUE(d.freeze_would_help);
}

TEST(Consistency, FrozenDeviceIsFilesystemConsistentOnlyIfNothingWasWrittenAllTheSame) {
  DiskEvidence e = mounted_device(true);
  e.frozen = true;
  EXPECT_EQ(decide({e}).consistency, Consistency::filesystem);
  e.unchanged = false;
  const Decision d = decide({e});
  EXPECT_EQ(d.consistency, Consistency::fuzzy);
  EXPECT_FALSE(d.freeze_would_help);
}

TEST(Consistency, DeviceThatIsNotCountedIsFuzzyWhateverElseHolds) {
  DiskEvidence e = resting_device();
  e.counted = false;
  EXPECT_EQ(decide({e}).consistency, Consistency::fuzzy);
}

TEST(Consistency, UnmountedDeviceThatChangedIsNotHelpedByAFreeze) {
  DiskEvidence e = resting_device();
  e.unchanged = false;
  EXPECT_EQ(decide({e}).consistency, Consistency::fuzzy);
  EXPECT_FALSE(decide({e}).freeze_would_help);
}

TEST(Consistency, TheWeakestDiskDecidesForTheMachine) {
  EXPECT_EQ(decide({leased_file(), resting_device()}).consistency, Consistency::filesystem);
  EXPECT_EQ(decide({leased_file(), mounted_device(true), resting_device()}).consistency, Consistency::crash);
  EXPECT_EQ(decide({leased_file(), mounted_device(false), resting_device()}).consistency, Consistency::fuzzy);
}

TEST(Consistency, AFreezeHelpsOnlyWhenItMendsEveryDisk) {
  EXPECT_TRUE(decide({resting_device(), mounted_device(false), mounted_device(false)}).freeze_would_help);
  DiskEvidence written = leased_file("/w.img");
  written.lease_held = false;
  written.lease_refused = true;
  for (const auto& order : {std::vector{mounted_device(false), written}, std::vector{written, mounted_device(false)}}) {
    const Decision d = decide(order);
    EXPECT_FALSE(d.freeze_would_help);
    EXPECT_NE(d.reason.find("/w.img"), std::string::npos) << d.reason;
  }
}

// Every combination of evidence about a device: a point is claimed only where nothing was written.
TEST(Consistency, NoCombinationMakesAPointOfAChangedDevice) {
  for (int bits = 0; bits < 32; ++bits) {
    DiskEvidence e;
    e.disk = "/dev/x";
    e.counted = bits & 1;
    e.unchanged = bits & 2;
    e.claimable = bits & 4;
    e.mounted = bits & 8;
    e.frozen = bits & 16;
    const bool point = decide({e}).consistency != Consistency::fuzzy;
    EXPECT_EQ(point, e.counted && e.unchanged) << bits;
  }
}

}  // namespace
}  // namespace tidemark::agent
