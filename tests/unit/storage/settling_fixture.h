// A partition with a settler on a simulated disk, small enough that everything happens within a few epochs, and what
// its machines' disks should hold at each point.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "storage/cold_segment.h"
#include "storage/partition.h"
#include "tests/sim/store_rig.h"
#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage::fixtures {

using sim::Content;
using sim::StoreRig;
using sim::Token;
using namespace std::chrono_literals;

inline constexpr std::uint64_t kDiskSize = 3 << 20;
inline constexpr std::uint64_t kDiskGranules = kDiskSize / limits::kGranuleSize;

inline PartitionOptions settling_options() {
  PartitionOptions options;
  options.segment_size = 256 << 10;
  options.reserve_segments = 1;
  options.free_space_min = 0;
  options.index = {.cache_bytes = 4 << 20, .write_buffer_bytes = 4 << 20};
  options.index_flush_bytes = 1;  // after every commit
  options.settler.settle_after_us = 0;
  options.settler.log_garbage_max = -1;
  options.settler.fold_every_us = 0;
  options.settler.cold_segment_size = 128 << 10;
  return options;
}

class SettlingFixture : public ::testing::Test {
 protected:
  void SetUp() override { start(settling_options()); }
  void start(PartitionOptions options) {
    rig_ = std::make_unique<StoreRig>(42, std::move(options));
    good(rig_->create());
    good(rig_->open());
  }
  static void good(const Status& status) { ASSERT_TRUE(status) << status.error().message(); }

  MachineId add_machine(unsigned number) {
    pb::MachineRecord record;
    record.set_machine(machine_to_bytes(machine_id(number)));
    record.set_name("web" + std::to_string(number));
    good(store().put_machine(record, {}));
    pb::DiskRecord disk;
    disk.set_identity("a");
    disk.set_name("vda");
    disk.set_size(kDiskSize);
    EXPECT_TRUE(store().open_disk(machine_id(number), disk));
    return machine_id(number);
  }
  void begin(const MachineId& machine, std::uint64_t number, std::uint32_t kind = 2) {
    pb::EpochBeginRecord record;
    record.set_number(number);
    record.set_kind(kind);
    auto* disk = record.add_disks();
    disk->set_disk(0);
    disk->set_size(kDiskSize);
    good(store().begin_epoch(machine, record));
    current_[machine].resize(kDiskSize);
  }
  void commit(const MachineId& machine, std::uint64_t number) {
    pb::EpochCommitRecord record;
    record.set_number(number);
    record.set_time_us(static_cast<std::int64_t>(number) * 1000);
    record.set_consistency(2);
    record.set_digest(hash_to_bytes({number, ~number}));
    good(store().commit_epoch(machine, record));
    rig_->pump(true);
    points_[machine][number] = current_[machine];
  }
  // One record, with a block for each of these runs of granules; zeroes now and then.
  struct Run {
    std::uint64_t first, count;
  };
  void write(const MachineId& machine, std::uint64_t number, const std::vector<Run>& runs) {
    wire::BlockEncoder encoder(machine);
    encoder.start(DiskId(0), EpochNumber(number));
    for (const auto& [first, count] : runs) {
      std::vector<std::byte> plain(count * limits::kGranuleSize);
      for (std::uint64_t i = 0; i < count; ++i) {
        const Token token = random_.chance(0.1) ? 0 : random_.next();
        current_[machine].granules[first + i] = token;
        sim::granule_of(token, std::span(plain).subspan(i * limits::kGranuleSize, limits::kGranuleSize));
      }
      encoder.add(first, plain);
    }
    good(store().append_blocks(machine, DiskId(0), encoder.take()));
  }
  // Of about 100 KiB.
  void epoch(const MachineId& machine, std::uint64_t number) {
    begin(machine, number);
    for (int i = 0; i < 8; ++i) {
      const std::uint64_t count = 1 + random_.below(8);
      // Within one region; and mostly the same granules again and again.
      const std::uint64_t region = random_.below(kDiskGranules / limits::kRegionGranules);
      write(machine, number, {{region * limits::kRegionGranules + random_.below(40), count}});
    }
    commit(machine, number);
  }
  void epochs(const MachineId& machine, std::uint64_t from, std::uint64_t to) {
    for (std::uint64_t number = from; number <= to; ++number) epoch(machine, number);
  }
  // Until nothing is left to do: each turn may leave records to append, and segments to give back.
  void settle() {
    for (int turn = 0; turn < 12; ++turn) {
      store().on_idle();
      rig_->pump(true);
    }
    const auto error = store().stats().settler.error;
    EXPECT_FALSE(error) << error->message();
  }
  void drop(const MachineId& machine, const std::vector<std::uint64_t>& numbers) {
    std::vector<EpochNumber> dropped;
    for (const std::uint64_t number : numbers) {
      dropped.emplace_back(number);
      points_[machine].erase(number);
    }
    store().drop_points(machine, dropped);
    settle();
  }
  // All points of the model are there, byte for byte, and no others.
  void expect_points(const char* when) {
    SCOPED_TRACE(when);
    for (const auto& [machine, points] : points_) {
      const auto there = store().epochs(machine, 0, true, 0ms);
      ASSERT_TRUE(there) << there.error().message();
      std::set<std::uint64_t> numbers;
      for (const pb::EpochEntry& entry : *there) numbers.insert(entry.number());
      if (store().find(machine)->record.has_clone()) {
        EXPECT_EQ(numbers.erase(0), 1u);
      }
      std::set<std::uint64_t> expected;
      for (const auto& [number, content] : points) {
        expected.insert(number);
        std::optional<Error> error;
        const auto difference = sim::compare_disk(store(), machine, 0, EpochNumber(number), content, random_, error);
        ASSERT_FALSE(difference) << *difference;
        ASSERT_FALSE(error) << "epoch " << number << ": " << error->message();
      }
      EXPECT_EQ(numbers, expected);
    }
  }
  void lose_index_and_open() {
    rig_->lose_index();
    good(rig_->open());
    EXPECT_FALSE(rig_->opened().index_rebuilt.empty());
  }
  std::vector<std::string> cold_files() {
    std::vector<std::string> paths;
    const auto segments = list_cold_segments(rig_->files(), "/p0/cold");
    EXPECT_TRUE(segments);
    if (segments) {
      for (const SegmentId segment : *segments) paths.push_back(cold_path("/p0/cold", segment));
    }
    return paths;
  }
  Code code_of_reading(const MachineId& machine, std::uint64_t number) {
    const auto reader = store().read(machine, DiskId(0), EpochNumber(number), 0ms);
    return reader ? Code::ok : reader.error().code;
  }
  Partition& store() { return rig_->store(); }

  std::unique_ptr<StoreRig> rig_;
  Random random_{4711};
  std::map<MachineId, sim::DiskContent> current_;
  std::map<MachineId, std::map<std::uint64_t, sim::DiskContent>> points_;
};

}  // namespace tidemark::storage::fixtures
