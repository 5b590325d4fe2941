// The checker, seen from outside: which points are verified, what damage is found where, which points it concerns, and
// how a new epoch makes it good.
#include "storage/checker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "base/random.h"
#include "storage/cold_segment.h"
#include "storage/integrity_file.h"
#include "storage/ladder.h"
#include "storage/partition.h"
#include "tests/sim/store_rig.h"
#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::machine_id;
using sim::StoreRig;
using sim::Token;
using namespace std::chrono_literals;

constexpr std::uint64_t kDiskSize = 3 << 20;
constexpr std::uint64_t kDiskGranules = kDiskSize / limits::kGranuleSize;
constexpr WallMicros kHour = 3'600'000'000;

PartitionOptions options_for(WallMicros settle_after_us) {
  PartitionOptions options;
  options.segment_size = 256 << 10;
  options.reserve_segments = 1;
  options.free_space_min = 0;
  options.index = {.cache_bytes = 4 << 20, .write_buffer_bytes = 4 << 20};
  options.index_flush_bytes = 1;  // after every commit
  options.settler.settle_after_us = settle_after_us;
  options.settler.fold_every_us = 0;
  options.settler.cold_segment_size = 128 << 10;
  options.checker.scrub_interval_us = 0;
  return options;
}

class CheckerTest : public ::testing::Test {
 protected:
  void SetUp() override { start(options_for(kHour)); }
  void start(PartitionOptions options) {
    rig_ = std::make_unique<StoreRig>(42, std::move(options));
    good(rig_->create());
    good(rig_->open());
    points_.clear();
    current_.resize(kDiskSize);
    std::ranges::fill(current_.granules, Token{0});
    pb::MachineRecord record;
    record.set_machine(machine_to_bytes(machine_));
    record.set_name("web1");
    good(store().put_machine(record, {}));
    pb::DiskRecord disk;
    disk.set_identity("a");
    disk.set_name("vda");
    disk.set_size(kDiskSize);
    ASSERT_TRUE(store().open_disk(machine_, disk));
  }
  static void good(const Status& status) { ASSERT_TRUE(status) << status.error().message(); }
  Partition& store() { return rig_->store(); }

  void begin(std::uint64_t number, std::uint32_t kind = 2) {
    pb::EpochBeginRecord record;
    record.set_number(number);
    record.set_kind(kind);
    auto* disk = record.add_disks();
    disk->set_disk(0);
    disk->set_size(kDiskSize);
    good(store().begin_epoch(machine_, record));
  }
  void commit(std::uint64_t number) {
    pb::EpochCommitRecord record;
    record.set_number(number);
    record.set_time_us(static_cast<std::int64_t>(number) * 1000);
    record.set_consistency(2);
    record.set_digest(hash_to_bytes({number, ~number}));
    good(store().commit_epoch(machine_, record));
    rig_->pump(true);
    points_[number] = current_;
  }
  // One block.
  void write(std::uint64_t number, std::uint64_t first, std::uint64_t count) {
    wire::BlockEncoder encoder(machine_);
    encoder.start(DiskId(0), EpochNumber(number));
    std::vector<std::byte> plain(count * limits::kGranuleSize);
    for (std::uint64_t i = 0; i < count; ++i) {
      const Token token = (random_.next() & ~Token{1}) | 2;  // one that does not compress
      current_.granules[first + i] = token;
      sim::granule_of(token, std::span(plain).subspan(i * limits::kGranuleSize, limits::kGranuleSize));
    }
    encoder.add(first, plain);
    good(store().append_blocks(machine_, DiskId(0), encoder.take()));
  }
  void epoch(std::uint64_t number, std::uint64_t first, std::uint64_t count) {
    begin(number);
    write(number, first, count);
    commit(number);
  }
  void idle(int turns = 3) {
    for (int turn = 0; turn < turns; ++turn) {
      store().on_idle();
      rig_->pump(true);
    }
    const auto error = store().checker().stats().error;
    EXPECT_FALSE(error) << error->message();
  }
  void scrub() {
    const std::uint64_t before = store().checker().stats().scrubs;
    store().checker().start_scrub();
    idle();
    EXPECT_EQ(store().checker().stats().scrubs, before + 1);
  }
  // Flips a bit in the stored bytes of the block of this epoch at this granule, wherever it stands.
  bool rot(std::uint64_t number, std::uint64_t first) {
    bool found = false;
    for (const std::string directory : {"/p0/log", "/p0/cold"}) {
      const auto names = rig_->files().list(directory);
      if (!names) continue;
      for (const std::string& name : *names) {
        if (!name.ends_with(".segment")) continue;
        const std::string path = directory + "/" + name;
        const auto bytes = read_whole_file(rig_->files(), path, 1 << 20);
        if (!bytes) continue;
        for (std::size_t at = 4096; at + sizeof(wire::BlockHeader) + 16 < bytes->size(); ++at) {
          wire::BlockHeader header;
          std::memcpy(&header, bytes->data() + at, sizeof header);
          if (header.first_granule != first || header.epoch != number || header.granules == 0 ||
              header.granules > limits::kBlockGranulesMax || header.stored_size == 0 || header.disk != 0 ||
              header.encoding > 1) {
            continue;
          }
          EXPECT_TRUE(rig_->disk().flip_bit(path, at + sizeof header + 9, 3));
          found = true;
        }
      }
    }
    return found;
  }
  std::set<std::uint64_t> verified() {
    std::set<std::uint64_t> numbers;
    const auto epochs = store().epochs(machine_, 0, true, 0ms);
    EXPECT_TRUE(epochs);
    if (!epochs) return numbers;
    for (const pb::EpochEntry& entry : *epochs) {
      if (entry.verified()) numbers.insert(entry.number());
    }
    return numbers;
  }
  // What pruning goes by.
  Guards guards() {
    Guards guards;
    const auto epochs = store().epochs(machine_, 0, true, 0ms);
    EXPECT_TRUE(epochs);
    if (epochs) guard_newest_verified(guards, *epochs);
    return guards;
  }
  static std::set<std::uint64_t> range(std::uint64_t from, std::uint64_t to) {
    std::set<std::uint64_t> numbers;
    for (std::uint64_t i = from; i <= to; ++i) numbers.insert(i);
    return numbers;
  }
  bool readable(std::uint64_t number) {
    std::optional<Error> error;
    const auto difference =
        sim::compare_disk(store(), machine_, 0, EpochNumber(number), points_[number], random_, error);
    EXPECT_FALSE(difference) << *difference;
    return !error;
  }
  MachineDamage damage_of_machine() {
    const auto machines = store().checker().machines();
    const auto found = machines.find(machine_);
    return found == machines.end() ? MachineDamage() : found->second;
  }

  const MachineId machine_ = machine_id(1);
  std::unique_ptr<StoreRig> rig_;
  Random random_{4711};
  sim::DiskContent current_;
  std::map<std::uint64_t, sim::DiskContent> points_;
};

TEST_F(CheckerTest, PointsAreVerifiedOnceTheirBlocksWereReadBackAndStaySoAcrossRestarts) {
  for (std::uint64_t number = 1; number <= 12; ++number) epoch(number, number * 8, 8);
  EXPECT_TRUE(verified().empty()) << "nothing was read yet";
  idle();
  EXPECT_EQ(verified(), range(1, 12));
  const auto stats = store().checker().stats();
  EXPECT_EQ(stats.verified_blocks, 12u);
  EXPECT_GT(stats.verified_bytes, 0u);
  good(rig_->close());
  good(rig_->open());
  EXPECT_EQ(verified(), range(1, 12));
  EXPECT_EQ(store().checker().stats().verified_blocks, 0u) << "nothing had to be read again";
  epoch(13, 5, 1);
  EXPECT_EQ(verified(), range(1, 12));
  idle();
  EXPECT_EQ(verified(), range(1, 13));
  // Nothing is lost with the index: what was read back is not a matter of it.
  good(rig_->close());
  rig_->lose_index();
  good(rig_->open());
  EXPECT_EQ(verified(), range(1, 13));
  // A crash repeats what was not written down, and no more is believed than was.
  epoch(14, 6, 1);
  idle();
  rig_->cut_power();
  good(rig_->open());
  EXPECT_FALSE(verified().contains(14));
  idle();
  EXPECT_EQ(verified(), range(1, 14));
  EXPECT_TRUE(store().checker().damage().empty());
}

TEST_F(CheckerTest, DamagedNewBlockIsFoundBeforeAnybodyNeedsItAndItsPointsAreNamed) {
  epoch(1, 10, 4);
  epoch(2, 20, 8);
  epoch(3, 24, 2);  // hides two of its granules
  epoch(4, 40, 4);
  ASSERT_TRUE(rot(2, 20));
  idle();
  const auto reports = store().checker().damage();
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].extent.machine, machine_);
  EXPECT_EQ(reports[0].extent.disk, DiskId(0));
  EXPECT_EQ(reports[0].extent.epoch, EpochNumber(2));
  EXPECT_EQ(reports[0].extent.first_granule, 20u);
  EXPECT_EQ(reports[0].extent.granules, 8u);
  EXPECT_NE(reports[0].extent.found_us, 0);
  EXPECT_TRUE(reports[0].located);
  EXPECT_EQ(reports[0].first, EpochNumber(2));
  EXPECT_EQ(reports[0].last, EpochNumber(4));
  EXPECT_EQ(reports[0].points, 3u);
  EXPECT_TRUE(reports[0].newest);
  EXPECT_EQ(verified(), range(1, 1));
  const MachineDamage damage = damage_of_machine();
  EXPECT_TRUE(damage.newest);
  EXPECT_EQ(damage.points, 3u);
  const std::vector<WantedRange> wanted = {{DiskId(0), 20 * limits::kGranuleSize, 4 * limits::kGranuleSize},
                                           {DiskId(0), 26 * limits::kGranuleSize, 2 * limits::kGranuleSize}};
  EXPECT_EQ(damage.wanted, wanted);
  EXPECT_EQ(store().checker().stats().damage_found, 1u);
  EXPECT_FALSE(readable(4));
  EXPECT_TRUE(readable(1));
  // Known across restarts.
  rig_->cut_power();
  good(rig_->open());
  ASSERT_EQ(store().checker().damage().size(), 1u);
  EXPECT_EQ(verified(), range(1, 1));
  idle();
  ASSERT_EQ(store().checker().damage().size(), 1u);
  EXPECT_EQ(damage_of_machine().wanted, wanted);
}

TEST_F(CheckerTest, WhatIsSentAgainHealsTheNewestStateAndOlderPointsStayListed) {
  epoch(1, 10, 4);
  epoch(2, 20, 8);
  epoch(3, 40, 4);
  idle();
  ASSERT_EQ(verified(), range(1, 3));
  ASSERT_TRUE(rot(2, 20));
  EXPECT_FALSE(readable(3));
  idle();
  EXPECT_EQ(verified(), range(1, 1)) << "what a reader found counts";
  epoch(4, 20, 3);
  idle();
  ASSERT_EQ(store().checker().damage().size(), 1u);
  EXPECT_TRUE(store().checker().damage()[0].newest) << "a part of it is not enough";
  EXPECT_EQ(verified(), range(1, 1));
  epoch(5, 23, 5);
  idle();
  auto reports = store().checker().damage();
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_FALSE(reports[0].newest);
  EXPECT_EQ(reports[0].first, EpochNumber(2));
  EXPECT_EQ(reports[0].last, EpochNumber(4));
  EXPECT_TRUE(damage_of_machine().wanted.empty());
  EXPECT_FALSE(damage_of_machine().newest);
  const std::set<std::uint64_t> sound = {1, 5};
  EXPECT_EQ(verified(), sound);
  EXPECT_TRUE(readable(5));
  EXPECT_FALSE(readable(4));
  epoch(6, 50, 1);
  idle();
  EXPECT_TRUE(verified().contains(6));
  // When the last point that shows it is gone, so is the entry.
  store().drop_points(machine_, {EpochNumber(2), EpochNumber(3), EpochNumber(4)});
  idle(8);
  EXPECT_TRUE(store().checker().damage().empty());
  EXPECT_TRUE(store().checker().machines().empty());
  const std::set<std::uint64_t> left = {1, 5, 6};
  EXPECT_EQ(verified(), left);
}

TEST_F(CheckerTest, ScrubFindsRotInLogAndColdSegments) {
  start(options_for(0));
  for (std::uint64_t number = 1; number <= 20; ++number) epoch(number, number * 8, 8);
  idle(12);
  ASSERT_GT(store().stats().cold_segments, 0u);
  epoch(21, 300, 8);
  idle();
  ASSERT_EQ(verified(), range(1, 21));
  scrub();
  EXPECT_TRUE(store().checker().damage().empty());
  const ScrubStatus clean = store().checker().scrub();
  EXPECT_FALSE(clean.running);
  EXPECT_NE(clean.completed_us, 0);
  EXPECT_EQ(clean.completed_blocks, 21u);
  EXPECT_EQ(clean.completed_damaged, 0u);
  ASSERT_TRUE(rot(5, 40));
  ASSERT_TRUE(rot(21, 300));
  idle();
  EXPECT_TRUE(store().checker().damage().empty()) << "what was read back once is the scrub's business";
  scrub();
  const auto reports = store().checker().damage();
  ASSERT_EQ(reports.size(), 2u);
  EXPECT_EQ(reports[0].extent.first_granule, 40u);
  EXPECT_EQ(reports[0].extent.granules, 8u);
  EXPECT_TRUE(is_cold(reports[0].extent.segment));
  EXPECT_EQ(reports[0].first, EpochNumber(5));
  EXPECT_EQ(reports[0].last, EpochNumber(21));
  EXPECT_EQ(reports[1].extent.first_granule, 300u);
  EXPECT_EQ(reports[1].first, EpochNumber(21));
  EXPECT_EQ(store().checker().scrub().completed_damaged, 2u);
  EXPECT_EQ(verified(), range(1, 4));
  for (std::uint64_t number = 1; number <= 21; ++number) EXPECT_EQ(readable(number), number < 5) << number;
}

TEST_F(CheckerTest, MissingColdSegmentIsDamageOfEveryBlockInIt) {
  start(options_for(0));
  for (std::uint64_t number = 1; number <= 20; ++number) epoch(number, number * 8, 8);
  idle(12);
  const auto cold = list_cold_segments(rig_->files(), "/p0/cold");
  ASSERT_TRUE(cold);
  ASSERT_FALSE(cold->empty());
  good(rig_->close());
  const std::string path = cold_path("/p0/cold", cold->front());
  good(rig_->files().rename(path, path + ".elsewhere"));
  good(rig_->open());
  scrub();
  EXPECT_FALSE(store().checker().damage().empty());
  EXPECT_EQ(store().checker().damaged_segments().size(), 1u);
  EXPECT_EQ(store().checker().damaged_segments()[0].segment, cold->front());
  const auto affected = verified();
  EXPECT_FALSE(affected.contains(20));
  // When it is back, so is everything.
  good(rig_->close());
  good(rig_->files().rename(path + ".elsewhere", path));
  good(rig_->open());
  scrub();
  idle();
  EXPECT_TRUE(store().checker().damage().empty());
  EXPECT_TRUE(store().checker().damaged_segments().empty());
  EXPECT_EQ(verified(), range(1, 20));
}

TEST_F(CheckerTest, ScrubGoesOnWhereItWasAfterARestart) {
  for (std::uint64_t number = 1; number <= 30; ++number) epoch(number, number * 8, 8);
  // More blocks than a scrub looks at in one step.
  begin(31);
  for (std::uint64_t i = 0; i < 600; ++i) write(31, i, 1);
  commit(31);
  idle();
  ASSERT_EQ(verified(), range(1, 31));
  store().checker().start_scrub();
  ASSERT_TRUE(store().checker().step());
  ASSERT_TRUE(store().checker().step());
  const ScrubStatus before = store().checker().scrub();
  ASSERT_TRUE(before.running);
  ASSERT_GT(before.blocks, 0u);
  ASSERT_LT(before.blocks, 630u);
  good(rig_->close());
  good(rig_->open());
  const ScrubStatus after = store().checker().scrub();
  EXPECT_TRUE(after.running);
  EXPECT_EQ(after.blocks, before.blocks);
  EXPECT_EQ(after.started_us, before.started_us);
  idle();
  EXPECT_FALSE(store().checker().scrub().running);
  EXPECT_EQ(store().checker().scrub().completed_blocks, 630u) << "each block once";
}

TEST_F(CheckerTest, ScrubCanBeStoppedAndComesByItselfWhenItIsDue) {
  auto options = options_for(kHour);
  options.checker.scrub_interval_us = 7 * 24 * kHour;
  start(options);
  epoch(1, 10, 4);
  idle();
  EXPECT_EQ(store().checker().stats().scrubs, 0u) << "a new store is not due";
  EXPECT_NE(store().checker().scrub().next_us, 0);
  store().checker().start_scrub();
  store().checker().stop_scrub();
  idle();
  EXPECT_FALSE(store().checker().scrub().running);
  EXPECT_EQ(store().checker().stats().scrubs, 0u);
  rig_->clock().advance(std::chrono::hours(24 * 8));
  idle();
  EXPECT_EQ(store().checker().stats().scrubs, 1u);
  idle();
  EXPECT_EQ(store().checker().stats().scrubs, 1u);
  rig_->clock().advance(std::chrono::hours(24 * 8));
  idle();
  EXPECT_EQ(store().checker().stats().scrubs, 2u);
}

// Segments are settled, compacted and used again while a scrub is under way, one step of each at a time.
TEST_F(CheckerTest, SettlingAndRecyclingUnderneathIsNotTakenForDamage) {
  start(options_for(0));
  std::uint64_t number = 1;
  for (int round = 0; round < 40; ++round) {
    begin(number);
    for (int i = 0; i < 12; ++i) write(number, random_.below(kDiskGranules / 8) * 8, 1 + random_.below(8));
    commit(number);
    ++number;
    store().checker().start_scrub();
    if (round % 3 == 0) store().checker().step();
    if (round % 4 == 1) {
      for (int turn = 0; turn < 4; ++turn) {
        store().on_idle();
        rig_->pump(true);
      }
    }
    if (round % 5 == 4) {
      std::vector<EpochNumber> drop;
      for (auto point = points_.begin(); point != points_.end() && point->first + 4 < number;) {
        drop.emplace_back(point->first);
        point = points_.erase(point);
      }
      store().drop_points(machine_, drop);
    }
    EXPECT_TRUE(store().checker().damage().empty());
  }
  idle(12);
  EXPECT_GT(store().checker().stats().scrubs, 2u);
  EXPECT_GT(store().stats().settler.blocks_moved, 0u);
  EXPECT_TRUE(store().checker().damage().empty());
  EXPECT_TRUE(store().checker().damaged_segments().empty());
  EXPECT_TRUE(verified().contains(number - 1));
  for (const auto& [point, content] : points_) EXPECT_TRUE(readable(point));
}

// Segments of the log are gone before the checker came to them: their blocks are checked where they went.
TEST_F(CheckerTest, WhatWasSettledBeforeItWasReadIsReadBackFromColdSegments) {
  start(options_for(0));
  for (std::uint64_t number = 1; number <= 30; ++number) epoch(number, number * 8, 8);
  idle(12);
  ASSERT_LT(store().stats().segments, 4u);
  good(rig_->close());
  good(rig_->files().remove("/p0/integrity"));
  good(rig_->open());
  EXPECT_TRUE(verified().empty());
  EXPECT_TRUE(guards().unread) << "none may go before it is known which one is the newest good one";
  ASSERT_TRUE(rot(3, 24));
  idle();
  EXPECT_EQ(verified(), range(1, 2));
  EXPECT_EQ(guards().newest_verified, EpochNumber(2));
  EXPECT_FALSE(guards().unread);
  ASSERT_EQ(store().checker().damage().size(), 1u);
  EXPECT_EQ(store().checker().damage()[0].first, EpochNumber(3));
}

// The write of a commit that was acknowledged went astray: nothing but reading it back can tell.
TEST_F(CheckerTest, CommitThatIsNotThereIsFoundAndWhatItHeldIsNamed) {
  epoch(1, 10, 4);
  idle();
  ASSERT_EQ(verified(), range(1, 1));
  rig_->disk().set_faults({.lost_write = 1});
  begin(2);
  write(2, 20, 8);
  commit(2);
  rig_->disk().set_faults({});
  epoch(3, 30, 4);
  bool in_doubt = false;
  while (store().checker().step()) {
    in_doubt = in_doubt || verified().empty();
    ASSERT_EQ(guards().newest_verified, EpochNumber(1)) << "what was verified holds, while everything is read again";
  }
  EXPECT_TRUE(in_doubt);
  idle();
  EXPECT_EQ(store().checker().damaged_segments().size(), 1u);
  const auto reports = store().checker().damage();
  ASSERT_EQ(reports.size(), 1u) << "the scrub that follows goes by the index";
  EXPECT_EQ(reports[0].extent.epoch, EpochNumber(2));
  EXPECT_EQ(reports[0].extent.first_granule, 20u);
  EXPECT_TRUE(reports[0].newest);
  EXPECT_EQ(verified(), range(1, 1));
  epoch(4, 20, 8);
  idle();
  EXPECT_TRUE(verified().contains(4));
  EXPECT_FALSE(verified().contains(3));
}

TEST_F(CheckerTest, BlockOfAnOpenEpochIsListedAndOfAnAbortedOneIsNot) {
  epoch(1, 10, 4);
  begin(2);
  write(2, 20, 8);
  rig_->pump(true);
  ASSERT_TRUE(rot(2, 20));
  idle();
  auto reports = store().checker().damage();
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_TRUE(reports[0].open);
  EXPECT_EQ(reports[0].points, 0u);
  EXPECT_FALSE(damage_of_machine().newest);
  EXPECT_EQ(verified(), range(1, 1));
  commit(2);
  EXPECT_FALSE(verified().contains(2));
  idle();
  reports = store().checker().damage();
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_EQ(reports[0].first, EpochNumber(2));
  EXPECT_TRUE(reports[0].newest);
  begin(3);
  write(3, 20, 8);
  rig_->pump(true);
  ASSERT_TRUE(rot(3, 20));
  pb::EpochAbortRecord abort;
  abort.set_number(3);
  abort.set_reason("test");
  good(store().abort_epoch(machine_, abort));
  rig_->pump(true);
  idle();
  EXPECT_EQ(store().checker().damage().size(), 1u);
}

TEST_F(CheckerTest, ReadsThatFailOnceDoNotStayDamage) {
  for (std::uint64_t number = 1; number <= 4; ++number) epoch(number, number * 8, 4);
  idle();
  ASSERT_EQ(verified(), range(1, 4));
  rig_->disk().set_faults({.read_error = 1});
  store().checker().start_scrub();
  for (int turn = 0; turn < 3; ++turn) store().on_idle();
  rig_->disk().set_faults({});
  EXPECT_FALSE(store().checker().damage().empty());
  scrub();  // the one that had begun
  scrub();
  idle();
  EXPECT_TRUE(store().checker().damage().empty());
  EXPECT_EQ(verified(), range(1, 4));
}

TEST_F(CheckerTest, MoreDamageThanTheListHoldsLeavesNothingVerified) {
  DamageList list;
  for (std::uint32_t i = 0; i <= DamageList::kMax; ++i) {
    DamagedExtent extent;
    extent.machine = machine_;
    extent.segment = SegmentId(1);
    extent.offset = i;
    list.report(extent);
  }
  EXPECT_EQ(list.size(), DamageList::kMax);
  EXPECT_TRUE(list.unlisted().contains(machine_));
  list.begin_pass();
  EXPECT_TRUE(list.unlisted().contains(machine_)) << "until the pass is over";
  list.end_pass();
  EXPECT_TRUE(list.unlisted().empty());
}

TEST(IntegrityFile, AnyBytesAreRefusedUnlessTheyAreWhatWasWritten) {
  pb::IntegrityRecord record;
  record.mutable_checked()->set_lsn(77);
  record.set_cold_checked(5);
  const auto bytes = encode_integrity(record);
  const auto back = decode_integrity(bytes, "integrity");
  ASSERT_TRUE(back);
  EXPECT_EQ(back->checked().lsn(), 77u);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    auto damaged = bytes;
    damaged[i] ^= std::byte{4};
    EXPECT_FALSE(decode_integrity(damaged, "integrity")) << i;
    EXPECT_FALSE(decode_integrity(std::span(bytes).first(i), "integrity")) << i;
  }
}

}  // namespace
}  // namespace tidemark::storage
