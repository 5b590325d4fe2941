#include "wire/block.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <cstring>
#include <functional>

#include "base/random.h"

namespace tidemark::wire {
namespace {

constexpr std::size_t kGranule = limits::kGranuleSize;
constexpr std::uint64_t kSeed = 20261120;

MachineId machine_of(int n) {
  std::array<std::byte, 16> bytes{};
  bytes[0] = static_cast<std::byte>(n);
  return MachineId(bytes);
}
const MachineId kMachine = machine_of(1);

std::vector<std::byte> noise(std::size_t granules, std::uint64_t seed = kSeed) {
  std::vector<std::byte> bytes(granules * kGranule);
  Random random(seed);
  random.fill(bytes);
  return bytes;
}

std::vector<std::byte> text(std::size_t granules) {
  std::vector<std::byte> bytes(granules * kGranule);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>("tidemark "[i % 9]);
  return bytes;
}

std::vector<BlockReader::Block> blocks_of(std::span<const std::byte> payload) {
  std::vector<BlockReader::Block> blocks;
  BlockReader reader(payload);
  for (BlockReader::Block block;;) {
    const auto more = reader.next(block);
    EXPECT_TRUE(more) << more.error().message();
    if (!more || !*more) return blocks;
    blocks.push_back(block);
  }
}

// A payload of one block whose header a test has bent, with a hash that fits the bent header.
std::vector<std::byte> bent(std::span<const std::byte> payload, const std::function<void(BlockHeader&)>& bend,
                            const MachineId& machine = kMachine) {
  std::vector<std::byte> bytes(payload.begin(), payload.end());
  BlockHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  bend(header);
  const Hash128 hash = block_hash(machine, header, std::span<const std::byte>(bytes).subspan(sizeof header));
  header.hash_low = hash.low;
  header.hash_high = hash.high;
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

BlockEncoder encoder(int level = 1) {
  BlockEncoder made(kMachine, level);
  made.start(DiskId(2), EpochNumber(7));
  return made;
}

Result<BlocksSummary> check(std::span<const std::byte> payload, std::uint64_t disk_size = 1_GiB) {
  return check_blocks(payload, kMachine, DiskId(2), EpochNumber(7), disk_size);
}

TEST(BlockEncoder, ChoosesTheEncodingByContentAndItAllComesBack) {
  auto made = encoder();
  const auto random = noise(16), words = text(5);
  const std::vector<std::byte> zeroes(3 * kGranule);
  made.add(0, random);
  made.add(16, words);
  made.add(40, zeroes);
  const auto blocks = blocks_of(made.payload());
  ASSERT_EQ(blocks.size(), 3u);
  EXPECT_EQ(blocks[0].header.encoding, static_cast<int>(Encoding::raw));
  EXPECT_EQ(blocks[1].header.encoding, static_cast<int>(Encoding::zstd));
  EXPECT_EQ(blocks[2].header.encoding, static_cast<int>(Encoding::zero));
  BlockDecoder decoder;
  const std::vector<std::byte>* plains[] = {&random, &words, &zeroes};
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    std::vector<std::byte> plain(blocks[i].header.plain_size(), std::byte{0xee});
    ASSERT_TRUE(decoder.decode(blocks[i].header, blocks[i].stored, plain));
    EXPECT_EQ(plain, *plains[i]);
  }
  const auto summary = check(made.payload());
  ASSERT_TRUE(summary) << summary.error().message();
  EXPECT_EQ(summary->blocks, 3u);
  EXPECT_EQ(summary->plain_bytes, 24 * kGranule);
  EXPECT_EQ(summary->sum, made.summary().sum);
}

TEST(BlockEncoder, StoresRawUnlessASixteenthIsSaved) {
  auto made = encoder();
  auto plain = noise(16);
  std::memset(plain.data(), 0, plain.size() / 20);  // saves a little less than asked
  made.add(0, plain);
  std::memset(plain.data(), 0, plain.size() / 10);
  made.add(16, plain);
  const auto blocks = blocks_of(made.payload());
  EXPECT_EQ(blocks[0].header.encoding, static_cast<int>(Encoding::raw));
  EXPECT_EQ(blocks[1].header.encoding, static_cast<int>(Encoding::zstd));
  EXPECT_LE(blocks[1].header.stored_size, plain.size() - plain.size() / 16);
}

TEST(BlockEncoder, AfterManyThatSaveNothingOnlySomeAreTriedUntilOneSaves) {
  auto made = encoder();
  const auto random = noise(1), words = text(1);
  std::uint64_t granule = 0;
  const auto compresses = [&](const std::vector<std::byte>& plain) {
    made.start(DiskId(2), EpochNumber(7));
    made.add(granule++, plain);
    return blocks_of(made.payload())[0].header.encoding == static_cast<int>(Encoding::zstd);
  };
  for (int i = 0; i < 7; ++i) EXPECT_FALSE(compresses(random));
  EXPECT_TRUE(compresses(words)) << "seven are not many";
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(compresses(random));
  int tries = 1;
  while (!compresses(words)) ++tries;
  EXPECT_LE(tries, 8);
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(compresses(words));
}

TEST(BlockEncoder, LevelZeroNeverCompresses) {
  auto made = encoder(0);
  made.add(0, text(16));
  EXPECT_EQ(blocks_of(made.payload())[0].header.encoding, static_cast<int>(Encoding::raw));
}

TEST(BlockEncoder, NeighbouringZeroesBecomeOneBlock) {
  auto made = encoder();
  const std::vector<std::byte> zeroes(16 * kGranule);
  made.add(16, zeroes);
  made.add(32, zeroes);
  made.add_zeroes(48, 1'000'000);
  made.add_zeroes(2'000'000, 5);
  const auto blocks = blocks_of(made.payload());
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_EQ(blocks[0].header.first_granule, 16u);
  EXPECT_EQ(blocks[0].header.granules, 1'000'032u);
  const auto summary = check(made.payload(), 100_GiB);
  ASSERT_TRUE(summary) << summary.error().message();
  EXPECT_EQ(summary->sum, made.summary().sum);
  EXPECT_EQ(made.summary().blocks, 2u);
  EXPECT_EQ(made.summary().plain_bytes, 1'000'037 * kGranule);
}

TEST(BlockEncoder, ZeroesPastThirtyTwoBitsOfGranulesAreSplit) {
  auto made = encoder();
  const std::uint64_t all = limits::kDiskSizeMax / kGranule;
  made.add_zeroes(0, all);
  std::uint64_t next = 0;
  for (const auto& block : blocks_of(made.payload())) {
    EXPECT_EQ(block.header.first_granule, next);
    next = block.header.end_granule();
  }
  EXPECT_EQ(next, all);
  EXPECT_TRUE(check(made.payload(), limits::kDiskSizeMax));
}

TEST(BlockEncoder, TakeHandsOutAndStartsAnew) {
  auto made = encoder();
  made.add_zeroes(0, 4);
  const auto first = made.take();
  EXPECT_TRUE(made.payload().empty());
  EXPECT_EQ(made.summary().blocks, 0u);
  made.add_zeroes(4, 4);  // must not merge with what was handed out
  EXPECT_EQ(blocks_of(made.payload())[0].header.granules, 4u);
  EXPECT_TRUE(check(first));
}

TEST(CheckBlocks, EverySingleFlippedBitIsFound) {
  auto made = encoder();
  made.add(3, text(1));
  made.add_zeroes(9, 1);
  const auto good = made.take();
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    auto bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_FALSE(check(bad)) << "bit " << bit;
  }
}

TEST(CheckBlocks, EveryTruncationIsFound) {
  auto made = encoder();
  made.add(3, text(1));
  const auto good = made.take();
  for (std::size_t size = 0; size < good.size(); ++size) ASSERT_FALSE(check(std::span(good).first(size))) << size;
}

TEST(CheckBlocks, BlocksOfAnotherMachineDiskOrEpochAreRefused) {
  auto made = encoder();
  made.add(0, noise(2));
  EXPECT_TRUE(check(made.payload()));
  EXPECT_FALSE(check_blocks(made.payload(), machine_of(2), DiskId(2), EpochNumber(7), 1_GiB));
  EXPECT_FALSE(check_blocks(made.payload(), kMachine, DiskId(3), EpochNumber(7), 1_GiB));
  EXPECT_FALSE(check_blocks(made.payload(), kMachine, DiskId(2), EpochNumber(8), 1_GiB));
}

TEST(CheckBlocks, TheLastGranuleMayPassTheDiskByLessThanAGranule) {
  auto made = encoder();
  made.add(0, noise(2));
  EXPECT_TRUE(check(made.payload(), 2 * kGranule));
  EXPECT_TRUE(check(made.payload(), kGranule + 1));
  EXPECT_FALSE(check(made.payload(), kGranule));
  EXPECT_FALSE(check(made.payload(), 0));
}

TEST(CheckBlocks, LiesInTheHeaderAreRefusedEvenWithAFittingHash) {
  auto made = encoder();
  made.add(250, noise(2));
  const auto raw = made.take();
  made.add_zeroes(0, 2);
  const auto zero = made.take();
  const auto refused = [](const std::vector<std::byte>& from, const std::function<void(BlockHeader&)>& bend) {
    return !check(bent(from, bend), limits::kDiskSizeMax);
  };
  EXPECT_FALSE(refused(raw, [](BlockHeader&) {}));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.granules = 0; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.granules = 17; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.granules = 1; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.first_granule = 255; })) << "crosses a region";
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.first_granule = UINT64_MAX; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.first_granule = limits::kDiskSizeMax / kGranule - 1; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.encoding = 1; })) << "zstd that saves nothing";
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.encoding = 2; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.encoding = 3; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.reserved[1] = 1; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.flags = kSealedFlag; }));
  EXPECT_TRUE(refused(raw, [](BlockHeader& h) { h.stored_size = UINT32_MAX; }));
  EXPECT_TRUE(refused(zero, [](BlockHeader& h) { h.granules = 0; }));
  EXPECT_TRUE(refused(zero, [](BlockHeader& h) { h.encoding = 0; }));
  EXPECT_TRUE(refused(zero, [](BlockHeader& h) { h.encoding = 1; }));
  EXPECT_TRUE(refused(zero, [](BlockHeader& h) {
    h.first_granule = limits::kDiskSizeMax / kGranule - 1;
    h.granules = UINT32_MAX;
  }));
}

TEST(BlockDecoder, NeverWritesBeyondWhatTheHeaderStates) {
  auto made = encoder();
  made.add(0, text(16));
  const auto payload = made.take();
  auto block = blocks_of(payload)[0];
  block.header.granules = 2;  // the content is longer
  std::vector<std::byte> plain(3 * kGranule, std::byte{0xee});
  BlockDecoder decoder;
  EXPECT_FALSE(decoder.decode(block.header, block.stored, std::span(plain).first(2 * kGranule)));
  EXPECT_TRUE(std::all_of(plain.begin() + 2 * kGranule, plain.end(), [](std::byte b) { return b == std::byte{0xee}; }));
  block.header.granules = 16;
  plain.resize(16 * kGranule);
  EXPECT_TRUE(decoder.decode(block.header, block.stored, plain)) << "a failure must not spoil the context";
}

TEST(BlockDecoder, TakesOneZstdFrameOfTheRightSizeAndNothingElse) {
  const auto plain = text(2);
  std::vector<std::byte> frame(ZSTD_compressBound(plain.size()));
  frame.resize(ZSTD_compress(frame.data(), frame.size(), plain.data(), plain.size(), 1));
  BlockDecoder decoder;
  std::vector<std::byte> out(plain.size());
  const auto decodes = [&](const std::vector<std::byte>& stored) {
    BlockHeader header{};
    header.granules = 2;
    header.encoding = static_cast<std::uint8_t>(Encoding::zstd);
    header.stored_size = static_cast<std::uint32_t>(stored.size());
    return decoder.decode(header, stored, out).has_value();
  };
  EXPECT_TRUE(decodes(frame));
  auto longer = frame;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(decodes(longer));
  auto twice = frame;
  twice.insert(twice.end(), frame.begin(), frame.end());
  EXPECT_FALSE(decodes(twice));
  std::vector<std::byte> skippable = {std::byte{0x50}, std::byte{0x2a}, std::byte{0x4d}, std::byte{0x18},
                                      std::byte{0},    std::byte{0},    std::byte{0},    std::byte{0}};
  skippable.insert(skippable.end(), frame.begin(), frame.end());
  EXPECT_FALSE(decodes(skippable));
  EXPECT_FALSE(decodes({}));
  EXPECT_FALSE(decodes(std::vector<std::byte>(frame.begin(), frame.end() - 1)));
}

TEST(AllZero, FindsASingleByteAnywhere) {
  for (const std::size_t size : {0u, 1u, 15u, 16u, 17u, 4096u}) {
    std::vector<std::byte> bytes(size);
    EXPECT_TRUE(all_zero(bytes));
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] = std::byte{1};
      EXPECT_FALSE(all_zero(bytes)) << size << ' ' << i;
      bytes[i] = std::byte{0};
    }
  }
}

TEST(EpochDigest, DependsOnEverythingButNotOnTheOrderOfBlocks) {
  auto made = encoder();
  made.add(0, noise(1, 1));
  const auto one = made.summary();
  made.take();
  made.add(1, noise(1, 2));
  const auto two = made.summary();
  EpochContent forth, back;
  forth.add(one), forth.add(two);
  back.add(two), back.add(one);
  const Hash128 previous{1, 2};
  const auto digest = epoch_digest(previous, EpochNumber(7), 5, 2, forth);
  EXPECT_EQ(digest, epoch_digest(previous, EpochNumber(7), 5, 2, back));
  EXPECT_NE(digest, epoch_digest({1, 3}, EpochNumber(7), 5, 2, forth));
  EXPECT_NE(digest, epoch_digest(previous, EpochNumber(8), 5, 2, forth));
  EXPECT_NE(digest, epoch_digest(previous, EpochNumber(7), 6, 2, forth));
  EXPECT_NE(digest, epoch_digest(previous, EpochNumber(7), 5, 3, forth));
  EpochContent other = forth;
  ++other.blocks;
  EXPECT_NE(digest, epoch_digest(previous, EpochNumber(7), 5, 2, other));
}

}  // namespace
}  // namespace tidemark::wire
