#include "cli/mount.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tidemark::cli {
namespace {

using testing::HasSubstr;

Volume volume(std::uint32_t partition, const std::string& type, const std::string& label = {}) {
  return {.partition = partition, .offset = partition * 1'048'576ull, .size = 1 << 30, .type = type, .label = label};
}

TEST(Mount, PartitionsAreReadFromWhatPartxSays) {
  const auto volumes = parse_partitions(" 1   2048 204800\n 2 206848   4096\n");
  ASSERT_EQ(volumes.size(), 2u);
  EXPECT_EQ(volumes[0].partition, 1u);
  EXPECT_EQ(volumes[0].offset, 1'048'576u);
  EXPECT_EQ(volumes[0].size, 104'857'600u);
  EXPECT_EQ(volumes[1].partition, 2u);
  EXPECT_EQ(volumes[1].offset, 206848u * 512);
  EXPECT_TRUE(parse_partitions("").empty());
}

TEST(Mount, TheOnlyFileSystemIsChosen) {
  EXPECT_EQ(choose_volume({volume(0, "ext4")}, 0, "web1/vda")->partition, 0u);
  EXPECT_EQ(
      choose_volume({volume(1, ""), volume(2, "swap"), volume(3, "xfs"), volume(4, "LVM2_member")}, 0, "d")->partition,
      3u);
  EXPECT_EQ(choose_volume({volume(1, "vfat", "EFI"), volume(2, "ext4")}, 2, "d")->partition, 2u);
}

TEST(Mount, WhatCannotBeChosenIsListed) {
  const auto several = choose_volume({volume(1, "vfat", "EFI"), volume(2, "ext4")}, 0, "web1/vda");
  ASSERT_FALSE(several);
  EXPECT_EQ(several.error().code, Code::invalid_argument);
  EXPECT_THAT(several.error().remedy, HasSubstr("--partition N: 1 (vfat EFI, 1 GiB), 2 (ext4, 1 GiB)"));
  const auto none = choose_volume({volume(0, "LVM2_member")}, 0, "web1/vda");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Code::unsupported);
  EXPECT_THAT(none.error().what, HasSubstr("the whole disk (LVM2_member"));
  const auto absent = choose_volume({volume(1, "ext4")}, 7, "web1/vda");
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, Code::not_found);
  EXPECT_EQ(choose_volume({volume(1, "swap")}, 1, "web1/vda").error().code, Code::unsupported);
}

TEST(Mount, NothingOfAPointIsRunOrWritten) {
  EXPECT_EQ(mount_options("ext4"), "ro,nosuid,nodev");
  EXPECT_EQ(mount_options("xfs"), "ro,nosuid,nodev,nouuid");
}

}  // namespace
}  // namespace tidemark::cli
