#include "storage/cold_segment.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "base/checksum.h"
#include "base/random.h"
#include "base/units.h"
#include "storage/cold_manifest.h"
#include "storage/sim_disk.h"

namespace tidemark::storage {
namespace {

constexpr std::uint32_t kSalt = 0x5eed;
constexpr PartitionId kPartition{3};
const std::string kCold = "/cold";

class ColdSegmentTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(files().make_directory(kCold)); }

  std::unique_ptr<ColdWriter> writer(std::uint64_t number) {
    auto made = ColdWriter::create(files(), kCold, cold_segment(number), kPartition, kSalt);
    EXPECT_TRUE(made) << made.error().message();
    return made ? std::move(*made) : nullptr;
  }
  // Adds a block of random bytes, and the extent that names it.
  void add(ColdWriter& to, std::uint32_t region, std::uint32_t first, std::uint32_t stored_size) {
    std::vector<std::byte> block(limits::kBlockHeaderSize + stored_size);
    random_.fill(block);
    const auto at = to.add_block(block);
    ASSERT_TRUE(at);
    list(to, region,
         {.first = first, .count = 2, .encoding = wire::Encoding::zstd, .offset = *at, .stored_size = stored_size});
    blocks_[*at] = std::move(block);
  }
  void list(ColdWriter& to, std::uint32_t region, const DeltaExtent& extent) {
    const ColdExtent listed{.volume = VolumeId(7),
                            .region = region,
                            .lsn = Lsn(1000 + extents_.size()),
                            .epoch = EpochNumber(9),
                            .extent = extent};
    to.add_extent(listed.volume, listed.region, listed.lsn, listed.epoch, listed.extent);
    extents_.push_back(listed);
  }
  void write(std::uint64_t number, std::uint32_t count) {
    auto to = writer(number);
    ASSERT_TRUE(to);
    for (std::uint32_t i = 0; i < count; ++i) add(*to, i / 8, i % 8 * 2, 100 + i * 37);
    list(*to, count, {.first = 0, .count = 256, .encoding = wire::Encoding::zero});
    const Status finished = to->finish();
    ASSERT_TRUE(finished) << finished.error().message();
  }
  Result<std::vector<ColdExtent>> read(std::uint64_t number, std::uint64_t as, PartitionId partition = kPartition,
                                       std::uint32_t salt = kSalt) {
    const auto file = files().open(cold_path(kCold, cold_segment(number)), OpenMode::read, false);
    EXPECT_TRUE(file);
    return read_cold_table(**file, cold_segment(as), partition, salt);
  }
  Result<std::vector<ColdExtent>> read(std::uint64_t number) { return read(number, number); }
  std::vector<std::byte> bytes_of(std::uint64_t number) {
    auto bytes = read_whole_file(files(), cold_path(kCold, cold_segment(number)), 64_MiB);
    EXPECT_TRUE(bytes);
    return bytes.value_or(std::vector<std::byte>());
  }
  FileSystem& files() { return disk_->files(); }

  std::unique_ptr<SimDisk> disk_ = std::make_unique<SimDisk>(11);
  Random random_{12};
  std::vector<ColdExtent> extents_;
  std::map<std::uint32_t, std::vector<std::byte>> blocks_;  // by offset
};

TEST_F(ColdSegmentTest, TableAndBlocksComeBackAfterAPowerCut) {
  write(0xa7, 500);  // more than the writer's buffer
  disk_ = disk_->crash();
  EXPECT_EQ(cold_path(kCold, cold_segment(0xa7)), "/cold/00000000000000a7.segment");
  const auto listed = list_cold_segments(files(), kCold);
  ASSERT_TRUE(listed);
  EXPECT_EQ(*listed, std::vector{cold_segment(0xa7)});
  const auto table = read(0xa7);
  ASSERT_TRUE(table) << table.error().message();
  EXPECT_EQ(*table, extents_);
  const auto bytes = bytes_of(0xa7);
  for (const auto& [offset, block] : blocks_) {
    ASSERT_LE(offset + block.size(), bytes.size());
    ASSERT_EQ(std::memcmp(bytes.data() + offset, block.data(), block.size()), 0) << "block at " << offset;
  }
}

TEST_F(ColdSegmentTest, AnyFlippedBitOfHeaderTableOrFooterIsFound) {
  write(1, 5);
  const std::string path = cold_path(kCold, cold_segment(1));
  const std::uint64_t size = bytes_of(1).size();
  const std::uint64_t footer = size - limits::kIoAlignment, table = footer - limits::kIoAlignment;
  const auto check = [&](std::uint64_t from, std::uint64_t length) {
    for (std::uint64_t byte = from; byte < from + length; ++byte) {
      for (unsigned bit = 0; bit < 8; ++bit) {
        ASSERT_TRUE(disk_->flip_bit(path, byte, bit));
        const auto got = read(1);
        ASSERT_FALSE(got) << "byte " << byte << " bit " << bit;
        ASSERT_EQ(got.error().code, Code::corrupt);
        ASSERT_NE(got.error().message().find(path), std::string::npos) << "it names the file";
        ASSERT_TRUE(disk_->flip_bit(path, byte, bit));
      }
    }
  };
  check(0, sizeof(ColdHeader));
  check(table, extents_.size() * sizeof(ColdEntry));
  check(footer, sizeof(ColdFooter));
  EXPECT_TRUE(read(1)) << "all bits are back";
}

TEST_F(ColdSegmentTest, ThatOfAnotherPlaceIsRefused) {
  write(1, 5);
  EXPECT_EQ(read(1, 2).error().code, Code::corrupt);
  EXPECT_EQ(read(1, 1, PartitionId(4)).error().code, Code::corrupt);
  EXPECT_EQ(read(1, 1, kPartition, kSalt + 1).error().code, Code::corrupt);
}

TEST_F(ColdSegmentTest, ThatOfANewerVersionIsUnsupported) {
  write(1, 5);
  ColdHeader header;
  std::memcpy(&header, bytes_of(1).data(), sizeof header);
  ++header.version;
  header.crc = crc32c(std::as_bytes(std::span(&header, 1)).first(sizeof header - sizeof header.crc), kSalt);
  ASSERT_TRUE(disk_->overwrite(cold_path(kCold, cold_segment(1)), 0, std::as_bytes(std::span(&header, 1))));
  EXPECT_EQ(read(1).error().code, Code::unsupported);
}

TEST_F(ColdSegmentTest, ACutOffFileIsRefusedAtAnyLength) {
  write(1, 200);
  const auto whole = bytes_of(1);
  const std::string cut = cold_path(kCold, cold_segment(2));
  for (std::uint64_t length = 0; length < whole.size(); length += length % 4096 == 0 ? 1 : 4095) {
    ASSERT_TRUE(write_file_atomically(files(), cut, std::span(whole).first(length)));
    const auto got = read(2, 1);
    ASSERT_FALSE(got) << "of length " << length;
    ASSERT_EQ(got.error().code, Code::corrupt);
  }
  ASSERT_TRUE(write_file_atomically(files(), cut, whole));
  EXPECT_TRUE(read(2, 1)) << "whole it is read";
}

TEST_F(ColdSegmentTest, AnUnfinishedOneLeavesNothingThatCounts) {
  {  // The writer ends early.
    auto to = writer(1);
    add(*to, 0, 0, 3_MiB);
  }
  EXPECT_TRUE(files().list(kCold)->empty());
  {  // Its sync fails.
    auto to = writer(2);
    add(*to, 0, 0, 500);
    disk_->set_faults({.sync_error = 1.0});
    EXPECT_FALSE(to->finish());
    disk_->set_faults({});
  }
  EXPECT_TRUE(files().list(kCold)->empty());
  // The power goes before it is done.
  auto to = writer(3);
  add(*to, 0, 0, 3_MiB);
  ASSERT_TRUE(files().sync_directory(kCold));
  auto after = disk_->crash();
  to.reset();
  disk_ = std::move(after);
  EXPECT_EQ(files().list(kCold)->size(), 1u);
  const auto listed = list_cold_segments(files(), kCold);
  ASSERT_TRUE(listed);
  EXPECT_TRUE(listed->empty());
  EXPECT_TRUE(files().list(kCold)->empty()) << "it is removed";
}

TEST_F(ColdSegmentTest, ManifestKnowsWhatWasAddedAndNotRemoved) {
  ColdManifest manifest(files(), kCold);
  ASSERT_TRUE(manifest.load()) << "none is there: nothing";
  EXPECT_TRUE(manifest.segments().empty());
  ASSERT_TRUE(manifest.add(std::vector{cold_segment(1), cold_segment(2)}));
  ASSERT_TRUE(manifest.add(std::vector{cold_segment(5)}));
  ASSERT_TRUE(manifest.remove(std::vector{cold_segment(2), cold_segment(77)}));
  disk_->set_faults({.sync_error = 1.0});
  EXPECT_FALSE(manifest.add(std::vector{cold_segment(6)}));
  disk_->set_faults({});
  const std::set expected{cold_segment(1), cold_segment(5)};
  EXPECT_EQ(manifest.segments(), expected) << "what failed changed nothing";
  disk_ = disk_->crash();
  ColdManifest after(files(), kCold);
  ASSERT_TRUE(after.load());
  EXPECT_EQ(after.segments(), expected);
  const auto listed = list_cold_segments(files(), kCold);
  ASSERT_TRUE(listed);
  EXPECT_TRUE(listed->empty()) << "it is no segment itself";
}

// The renamed file may last although the directory could not be synced.
class UnsyncedDirectories final : public FileSystem {
 public:
  explicit UnsyncedDirectories(FileSystem& files) : files_(files) {}
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) override {
    return files_.open(path, mode, direct);
  }
  Status rename(const std::string& from, const std::string& to) override { return files_.rename(from, to); }
  Status remove(const std::string& path) override { return files_.remove(path); }
  Status make_directory(const std::string& path) override { return files_.make_directory(path); }
  Result<std::vector<std::string>> list(const std::string& directory) override { return files_.list(directory); }
  Status sync_directory(const std::string& path) override {
    if (fails) return fail(Code::io, path, "cannot sync", "");
    return files_.sync_directory(path);
  }
  Result<bool> exists(const std::string& path) override { return files_.exists(path); }
  Result<SpaceInfo> space(const std::string& path) override { return files_.space(path); }
  Result<std::unique_ptr<FileLock>> lock(const std::string& path) override { return files_.lock(path); }

  bool fails = false;

 private:
  FileSystem& files_;
};

TEST_F(ColdSegmentTest, AManifestThatMayHaveBeenWrittenIsWrittenAgainBeforeASegmentGoes) {
  UnsyncedDirectories unsynced(files());
  ColdManifest manifest(unsynced, kCold);
  ASSERT_TRUE(manifest.add(std::vector{cold_segment(1)}));
  unsynced.fails = true;
  EXPECT_FALSE(manifest.add(std::vector{cold_segment(2)}));
  EXPECT_FALSE(manifest.remove(std::vector{cold_segment(2)})) << "it is not known that the file does not list it";
  unsynced.fails = false;
  ASSERT_TRUE(manifest.remove(std::vector{cold_segment(2)}));
  ColdManifest after(files(), kCold);
  ASSERT_TRUE(after.load());
  EXPECT_EQ(after.segments(), std::set{cold_segment(1)});
}

TEST_F(ColdSegmentTest, AnyFlippedBitOrMissingEndOfTheManifestIsFound) {
  ColdManifest manifest(files(), kCold);
  ASSERT_TRUE(manifest.add(std::vector{cold_segment(1), cold_segment(2)}));
  const std::string path = kCold + "/manifest";
  const auto whole = read_whole_file(files(), path, 4096);
  ASSERT_TRUE(whole);
  for (std::uint64_t byte = 0; byte < whole->size(); ++byte) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      ASSERT_TRUE(disk_->flip_bit(path, byte, bit));
      EXPECT_EQ(ColdManifest(files(), kCold).load().error().code, Code::corrupt) << "byte " << byte << " bit " << bit;
      ASSERT_TRUE(disk_->flip_bit(path, byte, bit));
    }
  }
  for (std::size_t length = 0; length < whole->size(); ++length) {
    ASSERT_TRUE(write_file_atomically(files(), path, std::span(*whole).first(length)));
    EXPECT_EQ(ColdManifest(files(), kCold).load().error().code, Code::corrupt) << "of length " << length;
  }
  // Of a newer version, with a checksum that fits.
  auto newer = *whole;
  newer[4] = std::byte{2};
  const std::uint32_t crc = crc32c(std::span(newer).first(newer.size() - sizeof crc));
  std::memcpy(newer.data() + newer.size() - sizeof crc, &crc, sizeof crc);
  ASSERT_TRUE(write_file_atomically(files(), path, newer));
  EXPECT_EQ(ColdManifest(files(), kCold).load().error().code, Code::unsupported);
}

}  // namespace
}  // namespace tidemark::storage
