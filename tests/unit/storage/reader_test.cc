#include "storage/reader.h"

#include <gtest/gtest.h>

#include "storage/block_cache.h"
#include "storage/disk_reader.h"
#include "storage/disk_view.h"
#include "storage/segment_keeper.h"
#include "storage/sim_disk.h"
#include "tests/sim/store_rig.h"
#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::machine_id;
using fixtures::machine_record;
using fixtures::TemporaryDirectory;

// A segment laid out by hand: the reader needs no log.
class ReaderTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kDiskSize = (5 << 20) + 1536;

  void SetUp() override {
    ASSERT_TRUE(disk_.files().make_directory("/log"));
    auto index = Index::open(directory_.path() + "/index", {.cache_bytes = 1 << 20, .write_buffer_bytes = 1 << 20});
    ASSERT_TRUE(index);
    context_ = std::make_shared<ReadContext>(std::move(*index), disk_.files(), "");
    auto file = disk_.files().open(segment_path("/log", SegmentId(1)), OpenMode::create, true);
    ASSERT_TRUE(file);
    file_ = std::move(*file);
    ASSERT_TRUE(file_->allocate(4 << 20));
    content_.resize(kDiskSize);
    segment_.resize(4 << 20);
  }

  // One epoch with these blocks; its content is remembered.
  void write(std::uint64_t number, const std::vector<std::pair<std::uint64_t, std::uint32_t>>& runs) {
    wire::BlockEncoder encoder(machine_, 1);
    encoder.start(DiskId(0), EpochNumber(number));
    std::vector<std::byte> plain;
    for (const auto& [first, count] : runs) {
      plain.resize(count * limits::kGranuleSize);
      for (std::uint32_t i = 0; i < count; ++i) {
        content_.granules[first + i] = raw_ ? random_.next() & ~1ULL : random_.next();
        sim::granule_of(content_.granules[first + i],
                        std::span(plain).subspan(i * limits::kGranuleSize, limits::kGranuleSize));
      }
      encoder.add(first, plain);
    }
    const auto payload = encoder.take();
    CommitInfo commit;
    commit.segment = SegmentId(1);
    commit.first_lsn = Lsn(next_lsn_);
    const auto control = [&](RecordType type, const google::protobuf::MessageLite& message) {
      RecordInfo& record = commit.records.emplace_back();
      record.lsn = Lsn(next_lsn_++);
      record.type = type;
      record.machine = machine_;
      record.control = message.SerializeAsString();
    };
    if (next_lsn_ == 1) control(RecordType::machine, machine_record(1, 1, kDiskSize, 1));
    pb::EpochBeginRecord begin;
    begin.set_number(number);
    begin.set_kind(2);
    control(RecordType::epoch_begin, begin);
    RecordInfo& record = commit.records.emplace_back();
    record.lsn = Lsn(next_lsn_++);
    record.type = RecordType::blocks;
    record.machine = machine_;
    record.epoch = EpochNumber(number);
    wire::BlockReader blocks(payload);
    for (wire::BlockReader::Block block; blocks.next(block).value();) {
      commit.blocks.push_back({.first_granule = block.header.first_granule,
                               .granules = block.header.granules,
                               .stored_size = block.header.stored_size,
                               .offset = static_cast<std::uint32_t>(end_ + block.offset),
                               .encoding = static_cast<wire::Encoding>(block.header.encoding)});
    }
    record.block_count = static_cast<std::uint32_t>(commit.blocks.size());
    last_blocks_ = commit.blocks;
    std::memcpy(segment_.data() + end_, payload.data(), payload.size());
    end_ += payload.size();
    AlignedBuffer all(segment_.size());
    std::memcpy(all.data(), segment_.data(), segment_.size());
    ASSERT_TRUE(file_->write_at(0, all.span()));
    pb::EpochCommitRecord end;
    end.set_number(number);
    end.set_consistency(2);
    control(RecordType::epoch_commit, end);
    commit.last_lsn = Lsn(next_lsn_ - 1);
    const auto applied = context_->index->apply(std::span(&commit, 1));
    ASSERT_TRUE(applied) << applied.error().message();
    as_of_ = commit.last_lsn;
  }

  std::unique_ptr<Reader> reader(std::uint64_t epoch = 1) {
    EXPECT_TRUE(context_->uses.begin(machine_, EpochNumber(epoch)));
    return make_reader(
        context_,
        {.machine_name = "web1",
         .disk = DiskId(0),
         .epoch = EpochNumber(epoch),
         .disk_size = kDiskSize,
         .layers = {{.machine = machine_, .volume = VolumeId(1), .epoch = EpochNumber(epoch), .as_of = as_of_}}});
  }
  std::shared_ptr<const DiskView> view(std::shared_ptr<BlockCache> cache) {
    EXPECT_TRUE(context_->uses.begin(machine_, EpochNumber(1)));
    return std::make_shared<const DiskView>(
        context_,
        ReadTarget{.machine_name = "web1",
                   .disk = DiskId(0),
                   .epoch = EpochNumber(1),
                   .disk_size = kDiskSize,
                   .layers = {{.machine = machine_, .volume = VolumeId(1), .epoch = EpochNumber(1), .as_of = as_of_}}},
        std::move(cache));
  }
  std::vector<std::byte> expected(std::uint64_t offset, std::uint64_t length) const {
    std::vector<std::byte> all(content_.granules.size() * limits::kGranuleSize);
    for (std::size_t i = 0; i < content_.granules.size(); ++i) {
      sim::granule_of(content_.granules[i], std::span(all).subspan(i * limits::kGranuleSize, limits::kGranuleSize));
    }
    return {all.begin() + static_cast<std::ptrdiff_t>(offset),
            all.begin() + static_cast<std::ptrdiff_t>(offset + length)};
  }

  const MachineId machine_ = machine_id(1);
  TemporaryDirectory directory_;
  SimDisk disk_{5};
  Random random_{77};
  std::shared_ptr<ReadContext> context_;
  std::unique_ptr<File> file_;
  std::vector<std::byte> segment_;
  std::vector<BlockPlace> last_blocks_;
  sim::DiskContent content_;
  bool raw_ = false;  // nothing compresses
  std::uint64_t end_ = 5000;
  std::uint64_t next_lsn_ = 1;
  Lsn as_of_;
};

TEST_F(ReaderTest, AnyRangeReadsAsItWasWritten) {
  write(1, {{0, 16}, {16, 16}, {250, 6}, {256, 16}, {1000, 3}, {1280, 1}});
  write(2, {{8, 12}, {1001, 1}});
  auto r = reader();
  for (int round = 0; round < 300; ++round) {
    const std::uint64_t offset = random_.below(kDiskSize);
    const std::uint64_t length = random_.below(std::min<std::uint64_t>(kDiskSize - offset, 1 << random_.below(22)) + 1);
    std::vector<std::byte> got(length);
    ASSERT_TRUE(r->read(offset, got));
    ASSERT_EQ(got, expected(offset, length)) << offset << " " << length;
  }
  // In order, in odd pieces.
  std::vector<std::byte> got(7001);
  for (std::uint64_t at = 0; at < kDiskSize; at += got.size()) {
    got.resize(std::min<std::uint64_t>(7001, kDiskSize - at));
    ASSERT_TRUE(r->read(at, got));
    ASSERT_EQ(got, expected(at, got.size())) << at;
  }
}

TEST_F(ReaderTest, MapTellsDataFromHoles) {
  write(1, {{0, 16}, {16, 16}, {300, 4}});
  auto r = reader();
  const auto ranges = r->map(0, kDiskSize);
  ASSERT_TRUE(ranges);
  ASSERT_EQ(ranges->size(), 4u);
  EXPECT_EQ((*ranges)[0].length, 32 * 4096u);
  EXPECT_FALSE((*ranges)[0].zero);
  EXPECT_EQ((*ranges)[1].offset, 32 * 4096u);
  EXPECT_TRUE((*ranges)[1].zero);
  EXPECT_EQ((*ranges)[2].offset, 300 * 4096u);
  EXPECT_EQ((*ranges)[3].offset + (*ranges)[3].length, kDiskSize);
  const auto within = r->map(10, 100);
  ASSERT_EQ(within->size(), 1u);
  EXPECT_EQ((*within)[0].offset, 10u);
  EXPECT_EQ((*within)[0].length, 100u);
  EXPECT_TRUE(r->map(kDiskSize, 0)->empty());
  EXPECT_EQ(r->map(0, kDiskSize + 1).error().code, Code::invalid_argument);
  std::vector<std::byte> beyond(2);
  EXPECT_EQ(r->read(kDiskSize - 1, beyond).error().code, Code::invalid_argument);
}

TEST_F(ReaderTest, EveryFlippedBitOfABlockIsFoundAndNamed) {
  write(1, {{20, 1}, {40, 2}});
  const BlockPlace& block = last_blocks_[1];
  std::vector<std::byte> got(2 * 4096);
  const std::uint64_t size = limits::kBlockHeaderSize + block.stored_size;
  for (std::uint64_t byte = 0; byte < size; byte += byte < 64 ? 1 : 97) {
    const auto bit = static_cast<unsigned>(random_.below(8));
    ASSERT_TRUE(disk_.flip_bit(segment_path("/log", SegmentId(1)), block.offset + byte, bit));
    const auto read = reader()->read(40 * 4096, got);
    ASSERT_FALSE(read) << "byte " << byte << " bit " << bit;
    EXPECT_EQ(read.error().code, Code::corrupt);
    for (const char* part : {"web1", "disk 0", "163840", "172032", "segment 1", "epoch 1"}) {
      EXPECT_NE(read.error().message().find(part), std::string::npos) << part << ": " << read.error().message();
    }
    ASSERT_TRUE(reader()->read(20 * 4096, std::span(got).first(4096))) << "its neighbour is sound";
    ASSERT_TRUE(disk_.flip_bit(segment_path("/log", SegmentId(1)), block.offset + byte, bit));
  }
  ASSERT_TRUE(reader()->read(40 * 4096, got));
  EXPECT_EQ(got, expected(40 * 4096, got.size()));
  EXPECT_GT(context_->damaged_reads.load(), 0u);
}

TEST_F(ReaderTest, AnotherEpochsOrMachinesBlockIsNotTaken) {
  write(1, {{20, 1}});
  const BlockPlace first = last_blocks_[0];
  write(2, {{20, 1}});
  const BlockPlace second = last_blocks_[0];
  // The first version, sound in itself, lies where the second should be.
  const std::size_t size = limits::kBlockHeaderSize + std::min(first.stored_size, second.stored_size);
  ASSERT_TRUE(disk_.overwrite(segment_path("/log", SegmentId(1)), second.offset,
                              std::span(segment_).subspan(first.offset, size)));
  std::vector<std::byte> got(4096);
  const auto read = reader(2)->read(20 * 4096, got);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Code::corrupt);
}

TEST_F(ReaderTest, AReadErrorOfTheDiskIsPassedOn) {
  write(1, {{20, 1}});
  std::vector<std::byte> got(4096);
  disk_.set_faults({.read_error = 1.0});
  EXPECT_EQ(reader()->read(20 * 4096, got).error().code, Code::io);
  disk_.set_faults({});
  EXPECT_TRUE(reader()->read(20 * 4096, got));
}

// Small caches on purpose: what was read once is mostly known by its hashes alone.
TEST_F(ReaderTest, ThroughACacheAnyRangeReadsAsItWasWritten) {
  for (const bool raw : {true, false}) {
    raw_ = raw;
    write(raw ? 1 : 3, {{0, 16}, {16, 16}, {250, 6}, {256, 16}, {512, 16}, {1000, 3}, {1280, 1}});
    write(raw ? 2 : 4, {{8, 3}, {258, 1}, {1001, 1}});
    const auto cache = std::make_shared<BlockCache>(2_MiB);
    const auto v = view(cache);
    ReadScratch scratch;
    for (int round = 0; round < 600; ++round) {
      const std::uint64_t offset = round % 2 == 0 ? random_.below(600 * 4096) : random_.below(kDiskSize);
      const std::uint64_t length =
          random_.below(std::min<std::uint64_t>(kDiskSize - offset, 1 << random_.below(20)) + 1);
      std::vector<std::byte> got(length);
      if (round % 10 == 0) {
        ASSERT_TRUE(v->prefetch(offset, length, scratch));
      }
      ASSERT_TRUE(v->read(offset, got, scratch));
      ASSERT_EQ(got, expected(offset, length)) << offset << " " << length;
    }
  }
}

TEST_F(ReaderTest, APartOfABlockThatIsKnownIsCheckedAsWell) {
  raw_ = true;
  write(1, {{32, 16}});
  const BlockPlace block = last_blocks_.at(0);
  ASSERT_EQ(block.encoding, wire::Encoding::raw);
  const auto cache = std::make_shared<BlockCache>(256_KiB);  // room for hashes, for no block
  const auto v = view(cache);
  ReadScratch scratch;
  std::vector<std::byte> got(4096);
  const auto read = [&](std::uint64_t granule) { return v->read(granule * 4096, got, scratch); };
  ASSERT_TRUE(read(40));
  ASSERT_EQ(cache->stats().bytes, 0u);
  const auto place_of = [&](std::uint64_t granule) {
    return block.offset + limits::kBlockHeaderSize + (granule - 32) * 4096;
  };
  const std::string path = segment_path("/log", SegmentId(1));
  // What stands elsewhere in the block is not looked at again, what is handed out is.
  ASSERT_TRUE(disk_.flip_bit(path, place_of(33) + 77, 3));
  ASSERT_TRUE(read(40));
  EXPECT_EQ(got, expected(40 * 4096, 4096));
  for (std::uint64_t byte = 0; byte < 4096; byte += 111) {
    ASSERT_TRUE(disk_.flip_bit(path, place_of(40) + byte, 5));
    EXPECT_EQ(read(40).error().code, Code::corrupt);
    ASSERT_TRUE(read(41));
    EXPECT_EQ(got, expected(41 * 4096, 4096));
    ASSERT_TRUE(disk_.flip_bit(path, place_of(40) + byte, 5));
  }
  EXPECT_EQ(read(33).error().code, Code::corrupt);
  std::vector<std::byte> whole(16 * 4096);
  EXPECT_EQ(v->read(32 * 4096, whole, scratch).error().code, Code::corrupt) << "the whole block is read as a whole";
}

// --- without blocking ---

class AsyncReadTest : public ReaderTest {
 protected:
  void SetUp() override {
    ReaderTest::SetUp();
    raw_ = true;
    write(1, {{0, 16}, {32, 16}});
    queue_ = disk_.make_queue();
    view_ = view(std::make_shared<BlockCache>(64_KiB));  // room for no block
  }
  // What it says when nothing is under way any more; nothing: it is not for here.
  std::optional<Status> read(std::uint64_t offset, std::span<std::byte> to, std::vector<ByteRange>* zeroes = nullptr) {
    bool told = false;
    const auto begun = async_.begin(view_, {.offset = offset, .to = to, .zeroes = zeroes}, scratch_, *queue_,
                                    [&told] { told = true; });
    if (begun == AsyncRead::Begun::no) return std::nullopt;
    EXPECT_EQ(async_.under_way(), begun == AsyncRead::Begun::reading);
    while (async_.under_way()) queue_->wait();
    EXPECT_EQ(told, begun == AsyncRead::Begun::reading);
    return async_.outcome();
  }
  void ask_index() {
    std::vector<std::byte> got(4096);
    ASSERT_TRUE(view_->read(0, got, scratch_));
  }

  std::unique_ptr<SimQueue> queue_;
  std::shared_ptr<const DiskView> view_;
  ReadScratch scratch_;
  AsyncRead async_;
  std::vector<std::byte> got_ = std::vector<std::byte>(8 * 4096);
};

TEST_F(AsyncReadTest, ReadsWhatTheIndexHasToldOfAndNothingElse) {
  EXPECT_FALSE(read(0, got_)) << "the index was not asked yet";
  ask_index();
  for (const std::uint64_t granule : {0, 5, 8, 32, 40}) {
    const auto outcome = read(granule * 4096, got_);
    ASSERT_TRUE(outcome && *outcome);
    EXPECT_EQ(got_, expected(granule * 4096, got_.size()));
  }
  EXPECT_FALSE(read(300 * 4096, got_)) << "another region";
  EXPECT_FALSE(read(100, got_)) << "not whole granules";
  EXPECT_FALSE(read(kDiskSize / 4096 * 4096, got_)) << "beyond the end";
  std::vector<std::byte> large(AsyncRead::kSizeMax + 4096);
  EXPECT_FALSE(read(0, large));
}

TEST_F(AsyncReadTest, ZeroesAreToldOfAndNeedNoRead) {
  ask_index();
  std::vector<ByteRange> zeroes;
  const auto operations = disk_.operations();
  const auto outcome = read(20 * 4096, got_, &zeroes);
  ASSERT_TRUE(outcome && *outcome);
  EXPECT_EQ(disk_.operations(), operations);
  ASSERT_EQ(zeroes.size(), 1u);
  EXPECT_EQ(zeroes[0].offset, 20u * 4096);
  EXPECT_EQ(zeroes[0].length, got_.size());
  ASSERT_TRUE(read(12 * 4096, got_));
  EXPECT_EQ(got_, expected(12 * 4096, got_.size()));
}

TEST_F(AsyncReadTest, DamageIsFoundAndAReadThatFailsIsForAnother) {
  ask_index();
  const std::string path = segment_path("/log", SegmentId(1));
  const std::uint64_t place = last_blocks_.at(1).offset + limits::kBlockHeaderSize + 4096;
  ASSERT_TRUE(disk_.flip_bit(path, place, 1));
  const auto damaged = read(33 * 4096, got_);
  ASSERT_TRUE(damaged);
  EXPECT_EQ(damaged->error().code, Code::corrupt);
  EXPECT_EQ(context_->damage.size(), 1u);
  ASSERT_TRUE(disk_.flip_bit(path, place, 1));
  disk_.set_faults({.read_error = 1.0});
  const auto failed = read(33 * 4096, got_);
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->error().code, Code::busy);
  disk_.set_faults({});
  const auto again = read(33 * 4096, got_);
  ASSERT_TRUE(again && *again);
  EXPECT_EQ(got_, expected(33 * 4096, got_.size()));
}

TEST_F(AsyncReadTest, WhatWasMovedIsLookedUpAgain) {
  ask_index();
  const auto before = read(0, got_);
  ASSERT_TRUE(before && *before);
  const auto version = context_->index->places().of(VolumeId(1));
  const RegionChange nothing{.machine = machine_, .volume = VolumeId(1), .region = 0, .remove = {}, .put = {}};
  ASSERT_TRUE(context_->index->change(std::span(&nothing, 1), {}));
  EXPECT_NE(context_->index->places().of(VolumeId(1)), version);
  EXPECT_EQ(context_->index->places().of(VolumeId(2)), version) << "of another volume nothing was moved";
  EXPECT_FALSE(read(0, got_));
  ask_index();
  const auto after = read(0, got_);
  ASSERT_TRUE(after && *after);
  EXPECT_EQ(got_, expected(0, got_.size()));
}

TEST_F(AsyncReadTest, ASegmentIsKeptForAReadThatIsUnderWay) {
  ask_index();
  ASSERT_EQ(async_.begin(view_, {.offset = 0, .to = got_}, scratch_, *queue_, [] {}), AsyncRead::Begun::reading);
  EXPECT_FALSE(context_->pins.may_release(SegmentId(1)));
  while (async_.under_way()) queue_->wait();
  EXPECT_TRUE(context_->pins.may_release(SegmentId(1)));
}

TEST(SegmentFiles, ASegmentThatIsMissingIsNotADiskThatIsMissing) {
  SimDisk disk(7);
  FileSystem& files = disk.files();
  for (const char* directory : {"/p0", "/p0/log", "/p0/cold"}) ASSERT_TRUE(files.make_directory(directory));
  SegmentFiles segments(files, "/p0");
  EXPECT_EQ(segments.open(SegmentId(1)).error().code, Code::unavailable);
  ASSERT_TRUE(write_file_atomically(files, "/p0/partition", {}));
  EXPECT_EQ(segments.open(SegmentId(1)).error().code, Code::not_found);
}

TEST(ReaderPins, ASegmentWaitsForReadersFromBefore) {
  ReaderPins pins;
  const auto before = pins.begin();
  EXPECT_FALSE(pins.may_release(SegmentId(1)));
  const auto after = pins.begin();
  EXPECT_FALSE(pins.may_release(SegmentId(1)));
  pins.end(before);
  EXPECT_TRUE(pins.may_release(SegmentId(1))) << "a later reader cannot reach it";
  EXPECT_FALSE(pins.may_release(SegmentId(2)));
  pins.end(after);
  EXPECT_TRUE(pins.may_release(SegmentId(2)));
}

TEST(ReaderPins, ASegmentGoesWhenEveryReadFromBeforeIsOver) {
  ReaderPins pins;
  {
    const ReaderPins::Scope before(pins);
    EXPECT_FALSE(pins.may_release(SegmentId(1)));
    const ReaderPins::Scope after(pins);  // cannot find a way into it any more
    EXPECT_FALSE(pins.may_release(SegmentId(1)));
  }
  const ReaderPins::Scope later(pins);
  EXPECT_TRUE(pins.may_release(SegmentId(1)));
}

}  // namespace
}  // namespace tidemark::storage
