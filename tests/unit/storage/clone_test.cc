// Clones: what is read of one, what writing to one leaves alone, what holds its point, and what goes with it.
#include "storage/clone.h"

#include <cstdio>
#include <cstring>

#include "tests/unit/storage/settling_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::kDiskGranules;
using fixtures::kDiskSize;
using fixtures::machine_id;
using namespace std::chrono_literals;

class CloneTest : public fixtures::SettlingFixture {
 protected:
  Result<CloneBase> base(const MachineId& of, std::uint64_t epoch) {
    return store().clone_base(of, EpochNumber(epoch), 0ms);
  }
  Status create(const CloneBase& of, const std::vector<CloneName>& names) {
    std::optional<Status> durable;
    TIDEMARK_TRY(store().create_clones(of, names, "test", 1'000, [&](Status done) { durable = std::move(done); }));
    rig_->pump(true);
    EXPECT_TRUE(durable);
    return durable.value_or(Status());
  }
  static std::vector<CloneName> a_thousand() {
    std::vector<CloneName> names;
    for (std::uint16_t i = 0; i < 1000; ++i) {
      std::array<std::byte, MachineId::kSize> bytes{};
      std::memcpy(bytes.data() + 2, &i, sizeof i);
      bytes[1] = std::byte{1};
      names.push_back({MachineId(bytes), "clone:drill-" + std::to_string(i)});
    }
    return names;
  }
  // A store of its own, with a machine of which the second epoch is cloned so often.
  MachineId cloned(const std::vector<CloneName>& names, std::uint64_t index_lag_max) {
    PartitionOptions options = fixtures::settling_options();
    options.segment_size = 4 << 20;
    options.index_lag_max = index_lag_max;
    start(options);
    const MachineId web = add_machine(1);
    epochs(web, 1, 2);
    const auto from = base(web, 2);
    EXPECT_TRUE(from);
    if (from) good(create(*from, names));
    EXPECT_EQ(store().find(web)->cloned.at(EpochNumber(2)), names.size());
    return web;
  }
  MachineId clone(const MachineId& of, std::uint64_t epoch, unsigned number) {
    const MachineId id = machine_id(number);
    const auto from = base(of, epoch);
    EXPECT_TRUE(from) << from.error().message();
    if (from) good(create(*from, {{id, "clone:" + std::to_string(number)}}));
    // What the model has of the point is where the clone begins; as epoch 0.
    current_[id] = epoch == 0 ? current_[of] : points_[of].at(epoch);
    return id;
  }
  Status drop_clone(const MachineId& id) {
    pb::MachineRecord record = store().find(id)->record;
    record.set_removed(true);
    TIDEMARK_TRY(store().put_machine(record, {}));
    rig_->pump(true);
    points_.erase(id);
    return {};
  }
  void expect_content(const MachineId& id, std::uint64_t epoch, const sim::DiskContent& content) {
    std::optional<Error> error;
    const auto difference = sim::compare_disk(store(), id, 0, EpochNumber(epoch), content, random_, error);
    EXPECT_FALSE(difference) << *difference;
    EXPECT_FALSE(error) << error->message();
  }
  static std::uint64_t zero_granules(const std::vector<ByteRange>& ranges) {
    std::uint64_t zero = 0;
    for (const ByteRange& range : ranges) zero += range.zero ? range.length / limits::kGranuleSize : 0;
    return zero;
  }
  void write_zeroes(const MachineId& machine, std::uint64_t number, std::uint64_t first, std::uint64_t count) {
    wire::BlockEncoder encoder(machine);
    encoder.start(DiskId(0), EpochNumber(number));
    encoder.add_zeroes(first, count);
    good(store().append_blocks(machine, DiskId(0), encoder.take()));
    for (std::uint64_t i = first; i < first + count; ++i) current_[machine].granules[i] = 0;
  }
};

TEST_F(CloneTest, ReadsAsItsPointAndThenAsWhatIsWrittenToIt) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 4);
  const MachineId check = clone(web, 2, 9);
  expect_content(check, 0, points_[web][2]);
  epochs(web, 5, 6);  // the machine goes on, the clone does not follow
  expect_content(check, 0, points_[web][2]);
  epochs(check, 1, 3);
  expect_points("written");  // of both, each of its own
  settle();
  expect_points("settled");
  rig_->cut_power();
  good(rig_->open());
  expect_points("after a power cut");
  good(rig_->close());
  lose_index_and_open();
  expect_points("after the index was made again");
}

TEST_F(CloneTest, ZeroesHideWhatTheCloneStandsOn) {
  const MachineId web = add_machine(1);
  begin(web, 1);
  for (std::uint64_t first = 0; first < kDiskGranules; first += 16) write(web, 1, {{first, 16}});
  commit(web, 1);
  const MachineId check = clone(web, 1, 9);
  begin(check, 1);
  write_zeroes(check, 1, 10, kDiskGranules - 20);  // three regions and more: nothing of it was written before
  write(check, 1, {{300, 3}});
  commit(check, 1);
  settle();
  expect_points("zeroes");
  {
    const auto reader = store().read(check, DiskId(0), EpochNumber(1), 0ms);
    ASSERT_TRUE(reader);
    const auto map = (*reader)->map(0, kDiskSize);
    ASSERT_TRUE(map);
    EXPECT_GE(zero_granules(*map), kDiskGranules - 20 - 3);
  }
  good(rig_->close());
  lose_index_and_open();
  expect_points("zeroes, after the index was made again");
}

TEST_F(CloneTest, WideZeroesOfALargeDiskHideToo) {
  constexpr std::uint64_t kLarge = 16ULL << 20;
  const MachineId web = add_machine(1);
  pb::DiskRecord disk;
  disk.set_identity("a");
  disk.set_name("vda");
  disk.set_size(kLarge);
  ASSERT_TRUE(store().open_disk(web, disk));
  const auto begin_large = [&](const MachineId& machine) {
    pb::EpochBeginRecord record;
    record.set_number(1);
    record.set_kind(2);
    record.add_disks()->set_size(kLarge);
    good(store().begin_epoch(machine, record));
    current_[machine].resize(kLarge);
  };
  begin_large(web);
  for (std::uint64_t region = 0; region < 16; region += 3) write(web, 1, {{region * 256 + 5, 4}});
  commit(web, 1);
  const MachineId check = clone(web, 1, 9);
  const auto before = points_[web].at(1);
  begin_large(check);
  current_[check] = before;
  write_zeroes(check, 1, 256,
               13 * 256ULL);  // wide: in the index of a machine's own it would leave out what is unwritten
  commit(check, 1);
  expect_points("wide zeroes");
  settle();
  good(rig_->close());
  lose_index_and_open();
  expect_points("wide zeroes, after the index was made again");
}

TEST_F(CloneTest, HoldsItsPoint) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 5);
  const MachineId check = clone(web, 2, 9);
  ASSERT_EQ(store().find(web)->cloned, (std::map<EpochNumber, std::uint32_t>{{EpochNumber(2), 1}}));
  const auto kept = points_[web][2];
  drop(web, {1, 2, 3});
  EXPECT_EQ(code_of_reading(web, 1), Code::not_found);
  points_[web][2] = kept;
  expect_points("its point stays");
  rig_->kill();
  good(rig_->open());
  store().drop_points(web, {EpochNumber(2)});
  settle();
  expect_points("after a restart, too");
  good(drop_clone(check));
  ASSERT_TRUE(store().find(web)->cloned.empty());
  drop(web, {2});
  expect_points("dropped with the clone");
  EXPECT_EQ(code_of_reading(web, 2), Code::not_found);
}

TEST_F(CloneTest, AMachineOrCloneThatOthersStandOnIsNotRemoved) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 2);
  const MachineId check = clone(web, 1, 9);
  EXPECT_EQ(drop_clone(web).error().code, Code::busy);
  EXPECT_NE(store().find(web), nullptr);
  epochs(check, 1, 1);
  const MachineId deeper = clone(check, 1, 10);
  EXPECT_EQ(drop_clone(check).error().code, Code::busy);
  good(drop_clone(deeper));
  good(drop_clone(check));
  good(drop_clone(web));
}

TEST_F(CloneTest, ClonesOfClonesUpToTheLimit) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 2);
  MachineId below = web;
  std::uint64_t epoch_below = 2;
  for (unsigned depth = 1; depth <= kCloneDepthMax; ++depth) {
    const MachineId id = clone(below, epoch_below, 100 + depth);
    EXPECT_EQ(store().find(id)->record.clone().depth(), depth);
    epochs(id, 1, 2);
    below = id;
    epoch_below = 2;
  }
  settle();
  expect_points("all of them");
  const auto deeper = base(below, 2);
  ASSERT_FALSE(deeper);
  EXPECT_EQ(deeper.error().code, Code::busy);
  rig_->cut_power();
  lose_index_and_open();
  expect_points("all of them, after the index was made again");
}

TEST_F(CloneTest, OfAnUnwrittenCloneStandsOnThePointItself) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 1);
  const MachineId first = clone(web, 1, 9);
  const MachineId second = clone(first, 0, 10);
  EXPECT_EQ(store().find(second)->record.clone().parent(), machine_to_bytes(web));
  EXPECT_EQ(store().find(second)->record.clone().depth(), 1u);
  expect_content(second, 0, points_[web][1]);
  good(drop_clone(first));
  expect_content(second, 0, points_[web][1]);
}

TEST_F(CloneTest, AThousandInOneCall) {
  const std::vector<CloneName> names = a_thousand();
  const MachineId web = cloned(names, PartitionOptions().index_lag_max);
  rig_->cut_power();
  good(rig_->open());
  EXPECT_EQ(store().find(web)->cloned.at(EpochNumber(2)), 1000u);
  expect_content(names.front().id, 0, points_[web][2]);
  expect_content(names.back().id, 0, points_[web][2]);
  for (const CloneName& name : names) good(drop_clone(name.id));
  EXPECT_TRUE(store().find(web)->cloned.empty());
}

// Their records wait for the log, and for an index that has caught up: not for more room than there ever is.
TEST_F(CloneTest, AThousandMoreThanTheIndexMayBeBehind) {
  const std::vector<CloneName> names = a_thousand();
  const MachineId web = cloned(names, 48 << 10);
  EXPECT_FALSE(store().waits_for_room());
  epochs(web, 3, 3);
  expect_content(names.back().id, 0, points_[web][2]);
}

TEST_F(CloneTest, MoreRecordsThanTheLogTakesAreRefusedAndNobodyWaits) {
  PartitionOptions options = fixtures::settling_options();
  options.segment_size = 4 << 20;
  start(options);
  const MachineId web = add_machine(1);
  for (unsigned i = 1; i < limits::kDisksPerMachineMax; ++i) {
    pb::DiskRecord disk;
    disk.set_identity(std::to_string(i) + std::string(1000, 'i'));
    disk.set_name(std::to_string(i) + std::string(1000, 'n'));
    disk.set_size(1 << 20);
    ASSERT_TRUE(store().open_disk(web, disk));
    rig_->pump(true);
  }
  epochs(web, 1, 1);
  std::vector<CloneName> names = a_thousand();
  const auto from = base(web, 1);
  ASSERT_TRUE(from);
  const Status refused = create(*from, names);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::invalid_argument);
  EXPECT_FALSE(store().waits_for_room());
  unsigned most = 0;
  ASSERT_EQ(std::sscanf(refused.error().remedy.c_str(), "make at most %u", &most), 1) << refused.error().remedy;
  ASSERT_GT(most, 50u);
  names.resize(most);
  good(create(*from, names));
  epochs(web, 2, 2);
}

TEST_F(CloneTest, DroppingOneFreesItsOwnBytesOnly) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 3);
  settle();
  const MachineId check = clone(web, 2, 9);
  const std::uint64_t before = store().stats().stored_bytes;
  epochs(check, 1, 12);
  settle();
  ASSERT_GT(rig_->store().stats().cold_segments, 0u);
  good(drop_clone(check));
  settle();
  // Everything the clone wrote is unreferenced: after compaction no more segments are left than hold the machine's.
  std::uint64_t live = 0;
  for (const auto& path : cold_files()) live += rig_->files().exists(path).value_or(false) ? 1 : 0;
  EXPECT_LE(live, 2u);
  EXPECT_LE(store().stats().stored_bytes, before);  // settling may have found more that no point shows
  good(store().check_counts());
  expect_points("the machine's are all there");
}

TEST_F(CloneTest, BadCallsChangeNothing) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 2);
  EXPECT_EQ(base(machine_id(77), 1).error().code, Code::not_found);
  EXPECT_EQ(base(web, 7).error().code, Code::not_found);
  EXPECT_EQ(base(web, 0).error().code, Code::not_found);
  const auto from = base(web, 1);
  ASSERT_TRUE(from);
  EXPECT_EQ(create(*from, {}).error().code, Code::invalid_argument);
  EXPECT_EQ(create(*from, {{machine_id(5), "web1"}}).error().code, Code::already_exists);
  EXPECT_EQ(create(*from, {{machine_id(5), "clone:a"}, {machine_id(6), "clone:a"}}).error().code, Code::already_exists);
  EXPECT_EQ(create(*from, {{web, "clone:a"}}).error().code, Code::already_exists);
  EXPECT_EQ(create(*from, std::vector<CloneName>(kClonesAtOnceMax + 1)).error().code, Code::invalid_argument);
  EXPECT_TRUE(store().find(web)->cloned.empty());

  const MachineId check = clone(web, 1, 9);
  pb::DiskRecord disk;
  disk.set_identity("a");
  disk.set_name("vda");
  disk.set_size(kDiskSize * 2);
  EXPECT_EQ(store().open_disk(check, disk).error().code, Code::invalid_argument);
  pb::EpochBeginRecord resized;
  resized.set_number(1);
  resized.add_disks()->set_size(kDiskSize * 2);
  EXPECT_EQ(store().begin_epoch(check, resized).error().code, Code::protocol);
  // Its record cannot be made to stand on something else.
  pb::MachineRecord record = store().find(check)->record;
  record.mutable_clone()->set_epoch(2);
  good(store().put_machine(record, {}));
  EXPECT_EQ(store().find(check)->record.clone().epoch(), 1u);
}

TEST_F(CloneTest, AReaderOutlivesTheCloneAndItsPoint) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 3);
  const auto content = points_[web][1];
  const MachineId check = clone(web, 1, 9);
  auto reader = store().read(check, DiskId(0), EpochNumber(), 0ms);
  ASSERT_TRUE(reader);
  good(drop_clone(check));
  store().drop_points(web, {EpochNumber(1)});
  settle();
  std::vector<std::byte> data(kDiskSize), expected(kDiskSize);
  good((*reader)->read(0, data));
  for (std::size_t i = 0; i < content.granules.size(); ++i) {
    sim::granule_of(content.granules[i], std::span(expected).subspan(i * limits::kGranuleSize, limits::kGranuleSize));
  }
  EXPECT_EQ(data, expected);
  reader->reset();
  settle();
  drop(web, {1});
  EXPECT_EQ(code_of_reading(web, 1), Code::not_found);
}

}  // namespace
}  // namespace tidemark::storage
