// Sources on real loop devices, the kernel's counters, mounts.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstring>
#include <fstream>

#include "agent/block_device.h"
#include "agent/mounts.h"
#include "agent/source.h"
#include "agent/text_file.h"
#include "base/aligned_buffer.h"
#include "tests/unit/agent/loop_device.h"

namespace tidemark::agent {
namespace {

Consistency verdict(Witness& witness, bool frozen = false) { return decide({witness.testify(frozen)}).consistency; }

TEST(DeviceSource, ReadsALoopDevice) {
  const TempDir dir;
  LoopDevice loop(dir, "disk", (1 << 20) + 512);
  SKIP_WITHOUT_LOOP(loop);
  ASSERT_EQ(::pwrite(loop.fd(), "hello", 5, 4096), 5);
  ASSERT_EQ(::pwrite(loop.fd(), "tail", 4, 1 << 20), 4);
  ASSERT_EQ(::fsync(loop.fd()), 0);
  auto source = open_source(loop.path());
  ASSERT_TRUE(source) << source.error().message();
  EXPECT_EQ((*source)->size(), (1U << 20) + 512);
  EXPECT_EQ((*source)->identity(), "loop:" + loop.file().string());
  EXPECT_EQ((*source)->kind(), BlockSource::Kind::disk);
  AlignedBuffer buffer(1 << 20);
  ASSERT_TRUE((*source)->read_at(0, buffer.span()));
  EXPECT_EQ(std::memcmp(buffer.data() + 4096, "hello", 5), 0);
  ASSERT_TRUE((*source)->read_at(1 << 20, buffer.span()));
  EXPECT_EQ(std::memcmp(buffer.data(), "tail", 4), 0);
  EXPECT_EQ(buffer.data()[512], std::byte{0});
}

TEST(DeviceSource, RestingDeviceIsProvenAndAnyWriteIsSeen) {
  const TempDir dir;
  LoopDevice loop(dir, "disk", 4 << 20);
  SKIP_WITHOUT_LOOP(loop);
  auto source = std::move(*open_source(loop.path()));
  {
    auto witness = std::move(*source->watch());
    EXPECT_EQ(verdict(*witness), Consistency::filesystem);
    EXPECT_EQ(verdict(*witness), Consistency::filesystem) << "asking changes nothing";
  }
  {
    auto witness = std::move(*source->watch());
    ASSERT_EQ(::pwrite(loop.fd(), "x", 1, 0), 1);  // buffered: it may not have reached the device yet
    EXPECT_EQ(verdict(*witness), Consistency::fuzzy);
  }
  {
    auto witness = std::move(*source->watch());
    std::ofstream(loop.file(), std::ios::in | std::ios::out) << "past the device";
    const DiskEvidence evidence = witness->testify(false);
    EXPECT_FALSE(evidence.unchanged);
    EXPECT_NE(evidence.detail.find("backing file"), std::string::npos);
  }
}

TEST(DeviceSource, NoticesAnotherSizeAndLoss) {
  const TempDir dir;
  LoopDevice loop(dir, "disk", 4 << 20);
  SKIP_WITHOUT_LOOP(loop);
  auto source = std::move(*open_source(loop.path()));
  EXPECT_TRUE(source->check());
  ASSERT_TRUE(loop.set_size(8 << 20));
  EXPECT_EQ(source->check().error().code, Code::invalid_argument);
  ASSERT_TRUE(loop.set_size(2 << 20));
  EXPECT_EQ(source->check().error().code, Code::invalid_argument);
}

TEST(DeviceSource, MountedDeviceIsCrashConsistentAtRestAndFuzzyUnderWrites) {
  const TempDir dir;
  LoopDevice loop(dir, "disk", 64 << 20);
  SKIP_WITHOUT_LOOP(loop);
  if (!loop.mount_ext4(dir / "mnt")) GTEST_SKIP() << "no ext4 can be mounted here";
  std::ofstream(dir / "mnt/file") << std::string(100'000, 'x');
  auto source = std::move(*open_source(loop.path()));
  EXPECT_EQ(*source->writable_mounts(), std::vector<std::string>{(dir / "mnt").string()});
  // A file system just written to settles by itself: its journal is written back in a while.
  Consistency seen = Consistency::fuzzy;
  for (int attempt = 0; attempt < 200 && seen == Consistency::fuzzy; ++attempt) {
    auto witness = std::move(*source->watch());
    seen = verdict(*witness);
    ::usleep(20'000);
  }
  EXPECT_EQ(seen, Consistency::crash);
  auto witness = std::move(*source->watch());
  {
    const FileDescriptor fd(::open((dir / "mnt/file").c_str(), O_WRONLY));
    ASSERT_EQ(::write(fd.get(), "y", 1), 1);
    ASSERT_EQ(::fsync(fd.get()), 0);
  }
  const Decision decision = decide({witness->testify(false)});
  EXPECT_EQ(decision.consistency, Consistency::fuzzy);
  EXPECT_TRUE(decision.freeze_would_help);
}

TEST(BlockDevice, CountersOfAFakeSysfs) {
  const TempDir sys;
  sys.write("class/block/vdx/queue/iostats", "1\n");
  sys.write("class/block/vdx/stat", " 1 2 3 4 10 6 77 8 0 10 11 3 13 99 15 16 17\n");
  sys.write("class/block/vdx/inflight", " 5 2\n");
  const OsPaths os{sys.path(), "/proc"};
  const auto counters = read_write_counters(os, "vdx");
  ASSERT_TRUE(counters) << counters.error().message();
  EXPECT_EQ(counters->writes, 10U);
  EXPECT_EQ(counters->sectors_written, 77U);
  EXPECT_EQ(counters->discards, 3U);
  EXPECT_EQ(counters->sectors_discarded, 99U);
  EXPECT_EQ(counters->writes_in_flight, 2U);
  sys.write("class/block/vdx/queue/iostats", "0\n");
  EXPECT_EQ(read_write_counters(os, "vdx").error().code, Code::unsupported);
  sys.write("class/block/vdx/queue/iostats", "1\n");
  sys.write("class/block/vdx/stat", " 1 2 3 4 10 6 77 8 0 10 11\n");
  EXPECT_EQ(read_write_counters(os, "vdx").error().code, Code::unsupported);
}

TEST(BlockDevice, IdentityTreeAndDisksOfAFakeSysfs) {
  const TempDir sys;
  sys.write("block/vdx/dev", "254:16\n");
  sys.write("block/vdx/serial", "  S-1 \n");
  sys.write("block/vdx/size", "2048\n");
  sys.write("block/vdx/removable", "0\n");
  sys.write("block/vdx/vdx1/dev", "254:17\n");
  sys.write("block/vdx/vdx1/partition", "1\n");
  sys.write("block/vdx/vdx1/holders/dm-0/x", "");
  sys.write("block/dm-0/dev", "253:0\n");
  sys.write("block/dm-0/size", "2048\n");
  sys.write("block/dm-0/slaves/vdx1/x", "");
  sys.write("block/dm-0/dm/uuid", "LVM-abc\n");
  sys.write("block/sr0/size", "2048\n");
  sys.write("block/usb/size", "2048\n");
  sys.write("block/usb/removable", "1\n");
  sys.write("block/empty/size", "0\n");
  std::filesystem::create_directories(sys / "dev/block");
  std::filesystem::create_directories(sys / "class/block");
  std::filesystem::create_symlink(sys / "block/vdx", sys / "dev/block/254:16");
  std::filesystem::create_symlink(sys / "block/vdx/vdx1", sys / "dev/block/254:17");
  std::filesystem::create_symlink(sys / "block/dm-0", sys / "dev/block/253:0");
  std::filesystem::create_symlink(sys / "block/dm-0", sys / "class/block/dm-0");
  const OsPaths os{sys.path(), "/proc"};

  const auto disk = describe_block_device(os, makedev(254, 16), "/dev/vdx");
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(disk->identity, "serial:S-1");
  EXPECT_EQ(disk->tree, (std::set<dev_t>{makedev(254, 16), makedev(254, 17), makedev(253, 0)}));
  const auto partition = describe_block_device(os, makedev(254, 17), "/dev/vdx1");
  EXPECT_EQ(partition->identity, "serial:S-1-part1");
  EXPECT_EQ(partition->disk_name, "vdx");
  EXPECT_EQ(describe_block_device(os, makedev(253, 0), "/dev/dm-0")->identity, "dm:LVM-abc");
  EXPECT_EQ(describe_block_device(os, makedev(1, 1), "/dev/none").error().code, Code::not_found);
  EXPECT_EQ(*list_whole_disks(os), std::vector<std::string>{"/dev/vdx"});
}

TEST(Mounts, ParsesWhatTheKernelPrints) {
  const auto mounts = parse_mountinfo(
      "36 35 254:1 / / rw,relatime master:1 - ext4 /dev/vda1 rw,errors=continue\n"
      "37 36 254:1 /home /mnt/with\\040blank\\134slash rw - ext4 /dev/vda1 rw\n"
      "38 36 0:44 / /data rw shared:2 master:3 - btrfs /dev/vdb ro,ssd\n"
      "nonsense\n");
  ASSERT_EQ(mounts.size(), 3U);
  EXPECT_EQ(mounts[0].device, makedev(254, 1));
  EXPECT_FALSE(mounts[0].read_only);
  EXPECT_EQ(mounts[1].mountpoint, "/mnt/with blank\\slash");
  EXPECT_TRUE(mounts[2].read_only);
  EXPECT_EQ(mounts_of(mounts, {makedev(254, 1)}).size(), 1U) << "one file system is listed once";
}

}  // namespace
}  // namespace tidemark::agent
