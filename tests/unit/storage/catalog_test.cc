#include "storage/catalog.h"

#include <gtest/gtest.h>

#include "tests/unit/storage/index_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::CommitMaker;
using fixtures::machine_id;
using fixtures::machine_record;
using fixtures::TemporaryDirectory;

class Quiet final : public Catalog::Visitor {
 public:
  void epoch_durable(const MachineId&, EpochNumber epoch, const Hash128&) override { epochs.push_back(epoch.value()); }
  void blocks_durable(const MachineId&, std::uint64_t bytes) override { payload_bytes += bytes; }
  std::vector<std::uint64_t> epochs;
  std::uint64_t payload_bytes = 0;
};

class CatalogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    index_ =
        std::move(*Index::open(directory_.path() + "/index", {.cache_bytes = 1 << 20, .write_buffer_bytes = 1 << 20}));
    catalog_ = std::move(*Catalog::load(*index_));
  }
  void add(unsigned number) {
    const auto record = machine_record(number, 2, 1 << 20, number * 10);
    log_.machine(record);
    catalog_.appended_machine(machine_id(number), record);
  }
  void durable() {
    const CommitInfo commit = log_.take();
    ASSERT_TRUE(catalog_.durable(commit, events_));
    ASSERT_TRUE(index_->apply(std::span(&commit, 1)));
  }
  static pb::EpochBeginRecord begin(std::uint64_t number, std::uint32_t kind = 2) {
    pb::EpochBeginRecord record;
    record.set_number(number);
    record.set_kind(kind);
    auto* disk = record.add_disks();
    disk->set_disk(0);
    disk->set_size(1 << 20);
    return record;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Index> index_;
  Catalog catalog_;
  CommitMaker log_;
  Quiet events_;
};

TEST_F(CatalogTest, WhatIsToldFollowsWhatIsDurable) {
  const MachineId m = machine_id(1);
  add(1);
  catalog_.appended_begin(m, begin(1, kInitialEpoch),
                          log_.control(RecordType::epoch_begin, m, begin(1, kInitialEpoch)));
  EXPECT_EQ(catalog_.find(m)->begun_epoch, EpochNumber(1));
  EXPECT_FALSE(catalog_.find(m)->open_epoch);
  EXPECT_EQ(catalog_.find(m)->next_epoch, EpochNumber(2));
  durable();
  ASSERT_TRUE(catalog_.find(m)->open_epoch);
  log_.blocks(m, DiskId(0), {{3, 2}, {9, 4, wire::Encoding::zero}});
  durable();
  EXPECT_EQ(catalog_.find(m)->open_epoch->blocks(), 2u);
  EXPECT_EQ(catalog_.find(m)->open_epoch->positions(0).size(), 13u);
  EXPECT_EQ(events_.payload_bytes, 2 * 48 + 2 * 4096u);
  log_.commit_epoch(m, 1);
  catalog_.appended_commit(m);
  EXPECT_FALSE(catalog_.find(m)->open_epoch);
  EXPECT_EQ(catalog_.find(m)->durable_epoch, EpochNumber(0));
  durable();
  EXPECT_EQ(catalog_.find(m)->durable_epoch, EpochNumber(1));
  EXPECT_EQ(events_.epochs, std::vector<std::uint64_t>{1});
}

TEST_F(CatalogTest, LoadedFromTheIndexItIsTheSame) {
  const MachineId m = machine_id(1);
  add(1);
  add(2);
  for (const std::uint64_t number : {1, 2, 5}) {
    const Lsn lsn = log_.control(RecordType::epoch_begin, m, begin(number, kInitialEpoch));
    catalog_.appended_begin(m, begin(number, kInitialEpoch), lsn);
    log_.blocks(m, DiskId(0), {{number, 1}});
    if (number == 5) break;
    log_.commit_epoch(m, number, number == 1 ? 2 : kFuzzy, 1000);
    catalog_.appended_commit(m);
  }
  durable();
  const auto loaded = Catalog::load(*index_);
  ASSERT_TRUE(loaded);
  const MachineState& a = *catalog_.find(m);
  const MachineState& b = *loaded->find_by_name("m1");
  EXPECT_EQ(a.record.SerializeAsString(), b.record.SerializeAsString());
  EXPECT_EQ(a.durable_epoch, b.durable_epoch);
  EXPECT_EQ(a.durable_lsn, b.durable_lsn);
  EXPECT_EQ(a.newest_point, b.newest_point);
  EXPECT_EQ(b.newest_point, EpochNumber(1));
  EXPECT_EQ(a.next_epoch, b.next_epoch);
  EXPECT_EQ(a.begun_epoch, b.begun_epoch);
  ASSERT_TRUE(a.open_epoch && b.open_epoch);
  EXPECT_EQ(a.open_epoch->SerializeAsString(), b.open_epoch->SerializeAsString());
  int machines = 0;
  loaded->for_each_machine([&](const MachineState&) { ++machines; });
  EXPECT_EQ(machines, 2);
}

TEST_F(CatalogTest, RemovedMachineIsUnknownAndItsVolumesAreNotTakenAgain) {
  add(1);
  auto record = machine_record(1, 2, 1 << 20, 10);
  record.set_removed(true);
  catalog_.appended_machine(machine_id(1), record);
  EXPECT_EQ(catalog_.find(machine_id(1)), nullptr);
  EXPECT_EQ(catalog_.find_by_name("m1"), nullptr);
  EXPECT_EQ(catalog_.check_blocks(machine_id(1), DiskId(0)).error().code, Code::not_found);
  add(3);
  pb::DiskRecord disk;
  disk.set_identity("new");
  disk.set_size(4096);
  const auto change = catalog_.check_disk(machine_id(3), disk);
  ASSERT_TRUE(change);
  EXPECT_GT(change->disk.volume(), 31u);
}

TEST_F(CatalogTest, ImpossibleWishesAreRefused) {
  add(1);
  const auto code = [](const auto& result) { return result ? Code::ok : result.error().code; };
  pb::MachineRecord record;
  EXPECT_EQ(code(catalog_.check_machine(record)), Code::invalid_argument);
  record.set_machine(machine_to_bytes(machine_id(2)));
  EXPECT_EQ(code(catalog_.check_machine(record)), Code::invalid_argument) << "no name";
  record.set_name(std::string(limits::kNameLengthMax + 1, 'x'));
  EXPECT_EQ(code(catalog_.check_machine(record)), Code::invalid_argument);
  record.set_name("m1");
  EXPECT_EQ(code(catalog_.check_machine(record)), Code::already_exists);
  record.set_name("m2");
  EXPECT_EQ(code(catalog_.check_machine(record)), Code::ok);
  auto wrong = begin(1);
  wrong.mutable_disks(0)->set_disk(2);
  EXPECT_EQ(code(catalog_.check_begin(machine_id(1), wrong)), Code::protocol);
  wrong.mutable_disks(0)->set_disk(0);
  wrong.mutable_disks(0)->set_size(0);
  EXPECT_EQ(code(catalog_.check_begin(machine_id(1), wrong)), Code::protocol);
  EXPECT_EQ(code(catalog_.check_begin(machine_id(9), begin(1))), Code::not_found);
  EXPECT_EQ(code(catalog_.check_commit(machine_id(1), EpochNumber(1))), Code::protocol);
}

}  // namespace
}  // namespace tidemark::storage
