#include "storage/superblock.h"

#include <gtest/gtest.h>

#include "base/checksum.h"
#include "storage/sim_disk.h"

namespace tidemark::storage {
namespace {

const Superblock kExample{.partition = PartitionId(3), .salt = 0xdeadbeef, .server_id = "5f2c0a", .master_keys = {}};

std::string with_checksum(std::string text) {
  char line[32];
  std::snprintf(line, sizeof line, "crc32c = %08x\n", crc32c(std::as_bytes(std::span(text))));
  return text + line;
}

TEST(Superblock, IsTheTextOfTheDocument) {
  EXPECT_EQ(encode_superblock(kExample),
            with_checksum("tidemark partition\nformat = 1\npartition = 3\nserver = 5f2c0a\nsalt = deadbeef\n"));
  const auto read = decode_superblock(encode_superblock(kExample), "p");
  ASSERT_TRUE(read);
  EXPECT_EQ(*read, kExample);
}

TEST(Superblock, EveryFlippedBitIsFound) {
  const std::string good = encode_superblock(kExample);
  for (std::size_t i = 0; i < good.size() * 8; ++i) {
    std::string bad = good;
    bad[i / 8] = static_cast<char>(bad[i / 8] ^ (1 << (i % 8)));
    const auto read = decode_superblock(bad, "p");
    // A digit of the checksum may change its case and mean the same.
    if (read) {
      EXPECT_EQ(*read, kExample) << "bit " << i;
    }
  }
  for (std::size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(decode_superblock(good.substr(0, length), "p")) << length;
  }
}

TEST(Superblock, NewerFormatIsRefusedWithWhatToDo) {
  const auto read =
      decode_superblock(with_checksum("tidemark partition\nformat = 3\nsomething = new\n"), "/srv/p0/partition");
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Code::unsupported);
  EXPECT_EQ(read.error().object, "/srv/p0/partition");
  EXPECT_FALSE(read.error().remedy.empty());
}

TEST(Superblock, SurvivesAPowerCutOnceWritten) {
  SimDisk disk(1);
  ASSERT_TRUE(disk.files().make_directory("/p"));
  ASSERT_TRUE(disk.files().sync_directory("/"));
  ASSERT_TRUE(write_superblock(disk.files(), "/p", kExample));
  const auto after = disk.crash();
  const auto read = read_superblock(after->files(), "/p");
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, kExample);
}

}  // namespace
}  // namespace tidemark::storage
