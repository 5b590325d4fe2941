#include "storage/log_format.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "base/hex.h"
#include "log_fixture.h"

namespace tidemark::storage {
namespace {

using namespace log_fixture;

// The bytes of the fenced block that follows `heading` in docs/log_format.md; a line is "offset  hex digits  comment".
std::vector<std::byte> documented(const std::string& heading) {
  const std::string path = TIDEMARK_SOURCE_DIR "/docs/log_format.md";
  std::ifstream document(path);
  EXPECT_TRUE(document) << path;
  std::string line;
  while (std::getline(document, line) && line != heading) {
  }
  EXPECT_TRUE(document) << "no heading " << heading;
  while (std::getline(document, line) && line != "```") {
  }
  std::vector<std::byte> bytes;
  while (std::getline(document, line) && line != "```") {
    std::istringstream words(line);
    std::string offset, digits;
    words >> offset >> digits;
    EXPECT_EQ(std::stoull(offset, nullptr, 16), bytes.size()) << line;
    std::vector<std::byte> part(digits.size() / 2);
    EXPECT_TRUE(from_hex(digits, part)) << line;
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  return bytes;
}

// The log that the document's example shows: partition 7, salt 0x5eed5a17, one control record and one zero block.
TEST(LogFormat, TheDocumentsExampleIsWhatTheLogWrites) {
  const auto disk = new_disk(1);
  Life life(*disk);
  ASSERT_TRUE(life.log->append(RecordType::epoch_begin, machine(0), DiskId(0), bytes_of("hello")));
  wire::BlockEncoder encoder(machine(0), 0);
  encoder.start(DiskId(2), EpochNumber(9));
  encoder.add_zeroes(100, 7);
  ASSERT_TRUE(life.log->append(RecordType::blocks, machine(0), DiskId(2), encoder.take()));
  life.settle();
  auto file = disk->files().open(segment_path(kDirectory, SegmentId(1)), OpenMode::read, true);
  ASSERT_TRUE(file);
  AlignedBuffer bytes(8_KiB);
  ASSERT_EQ((*file)->read_at(0, bytes.span()).value(), 8_KiB);
  const auto segment = documented("### Example: a segment header");
  const auto commit = documented("### Example: a commit");
  EXPECT_EQ(to_hex(bytes.span().first(128)), to_hex(segment));
  ASSERT_GE(commit.size(), 245U);
  EXPECT_EQ(to_hex(bytes.span().subspan(4096, commit.size())), to_hex(commit));
  const auto rest = bytes.span().subspan(4096 + commit.size());
  EXPECT_TRUE(wire::all_zero(rest));
  EXPECT_TRUE(wire::all_zero(bytes.span().subspan(128, 4096 - 128)));
}

struct ParseCommit : ::testing::Test {
  ParseCommit() {
    const auto disk = new_disk(1);
    Life life(*disk);
    Random random(3);
    EXPECT_TRUE(life.log->append(RecordType::epoch_begin, machine(0), DiskId(0), bytes_of("hello")));
    const auto payload = blocks_payload(random, machine(0), DiskId(3), EpochNumber(1), 2);
    EXPECT_TRUE(life.log->append(RecordType::blocks, machine(0), DiskId(3), bytes_of(payload)));
    life.settle();
    info = life.commits.at(0);
    auto file = disk->files().open(segment_path(kDirectory, info.segment), OpenMode::read, false);
    bytes.resize(info.size);
    EXPECT_TRUE((*file)->read_at(info.offset, bytes));
    expected = {kPartition, kSalt, info.segment, Incarnation(1), info.offset, CommitExpectation::Chain{Lsn(1), 0}};
  }
  CommitHeader header() const {
    CommitHeader header;
    std::memcpy(&header, bytes.data(), sizeof header);
    return header;
  }
  Result<ParsedCommit> with(CommitHeader header) {
    seal(header, kSalt);
    auto changed = bytes;
    std::memcpy(changed.data(), &header, sizeof header);
    CommitInfo parsed;
    return parse_commit(changed, expected, parsed);
  }

  std::vector<std::byte> bytes;
  CommitInfo info;
  CommitExpectation expected;
};

TEST_F(ParseCommit, MakesWhatTheLogReported) {
  CommitInfo parsed;
  const auto result = parse_commit(bytes, expected, parsed);
  ASSERT_TRUE(result) << result.error().message();
  EXPECT_EQ(parsed, info);
  EXPECT_TRUE(result->damaged.empty());
}

TEST_F(ParseCommit, RefusesWhatIsNotAtItsPlace) {
  const auto refused = [&](CommitExpectation changed) {
    CommitInfo parsed;
    const auto result = parse_commit(bytes, changed, parsed);
    return !result && result.error().code == Code::corrupt;
  };
  CommitExpectation changed = expected;
  changed.partition = PartitionId(8);
  EXPECT_TRUE(refused(changed));
  changed = expected;
  changed.salt ^= 1;
  EXPECT_TRUE(refused(changed));
  changed = expected;
  changed.segment = SegmentId(2);
  EXPECT_TRUE(refused(changed));
  changed = expected;
  changed.incarnation = Incarnation(2);
  EXPECT_TRUE(refused(changed));
  changed = expected;
  changed.offset += 4096;
  EXPECT_TRUE(refused(changed));
  changed = expected;
  changed.chain->next_lsn = Lsn(2);
  EXPECT_TRUE(refused(changed));
  changed = expected;
  changed.chain->previous_checksum = 1;
  EXPECT_TRUE(refused(changed));
  changed.chain.reset();
  EXPECT_FALSE(refused(changed)) << "beyond a break the chain is not known";
}

TEST_F(ParseCommit, RefusesHeadersThatContradictThemselvesThoughSealed) {
  CommitHeader changed = header();
  changed.record_count = 3;
  EXPECT_FALSE(with(changed));
  changed = header();
  changed.payload_size = 0xffffffff;
  EXPECT_FALSE(with(changed));
  changed = header();
  changed.payload_size -= 1;
  EXPECT_FALSE(with(changed));
  changed = header();
  changed.size += 4096;
  EXPECT_FALSE(with(changed));
  changed = header();
  changed.durable_lsn = changed.first_lsn;
  EXPECT_FALSE(with(changed));
  changed = header();
  changed.headers_hash_high ^= 1;
  EXPECT_FALSE(with(changed));
  changed = header();
  changed.version = 2;
  EXPECT_EQ(with(changed).error().code, Code::unsupported);
  EXPECT_TRUE(with(header()));
}

TEST_F(ParseCommit, AnyTruncationIsRefused) {
  for (std::size_t size = 0; size < bytes.size(); size += size < 300 ? 1 : 97) {
    CommitInfo parsed;
    EXPECT_FALSE(parse_commit(std::span(bytes).first(size), expected, parsed)) << size;
  }
}

TEST_F(ParseCommit, EveryFlippedByteIsFoundOrPadding) {
  std::size_t unseen = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    bytes[at] ^= std::byte{0x10};
    CommitInfo parsed;
    const auto result = parse_commit(bytes, expected, parsed);
    if (result && result->damaged.empty()) {
      EXPECT_EQ(parsed, info);
      ++unseen;
    }
    bytes[at] ^= std::byte{0x10};
  }
  const std::size_t payload = header().payload_size, records = header().record_count;
  EXPECT_EQ(unseen, bytes.size() - 128 - payload - records * 32) << "only padding";
}

}  // namespace
}  // namespace tidemark::storage
