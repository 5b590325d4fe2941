// A partition that is encrypted: nothing of its machines' data stands on the disk in the clear, whatever moves or moved
// it; it comes back byte for byte; master keys change under it; and without them it does not open.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <string_view>

#include "storage/clone.h"
#include "storage/superblock.h"
#include "tests/sim/store_nonces.h"
#include "tests/unit/storage/settling_fixture.h"

namespace tidemark::storage {
namespace {

using fixtures::kDiskSize;
using fixtures::machine_id;
using namespace std::chrono_literals;

std::shared_ptr<const MasterKeys> new_keys(const MasterKeys& from = MasterKeys("keys")) {
  return std::make_shared<const MasterKeys>(from.with_new_key(0));
}

class EncryptionTest : public fixtures::SettlingFixture {
 protected:
  void SetUp() override {
    auto options = fixtures::settling_options();
    options.encrypt = true;
    options.master_keys = keys_ = new_keys();
    start(options);
  }
  void start_in_the_clear() { start(fixtures::settling_options()); }
  void encrypt_from_now_on() {
    good(rig_->close());
    rig_->options().encrypt = true;
    rig_->options().master_keys = keys_;
    good(rig_->open());
  }
  void open_disk_again(const MachineId& machine) {
    pb::DiskRecord disk;
    disk.set_identity("a");
    disk.set_name("vda");
    disk.set_size(kDiskSize);
    const auto opened = store().open_disk(machine, disk);
    ASSERT_TRUE(opened) << opened.error().message();
  }
  void use(std::shared_ptr<const MasterKeys> keys) { rig_->options().master_keys = keys_ = std::move(keys); }

  static constexpr std::string_view kMarker = "TIDEMARK-PLAINTEXT-MARKER-0123456789";
  // Granules that begin with the marker: half of them compress, the others do not.
  void write_marked(const MachineId& machine, std::uint64_t number, std::uint64_t first, std::uint64_t count) {
    wire::BlockEncoder encoder(machine);
    encoder.start(DiskId(0), EpochNumber(number));
    for (std::uint64_t i = 0; i < count; ++i) {
      std::vector<std::byte> plain(limits::kGranuleSize);
      if (i % 2 == 0) random_.fill(plain);
      std::memcpy(plain.data() + 16, kMarker.data(), kMarker.size());
      encoder.add(first + i, plain);
    }
    good(store().append_blocks(machine, DiskId(0), encoder.take()));
  }
  bool reads_marked(const MachineId& machine, std::uint64_t number, std::uint64_t granule) {
    auto reader = store().read(machine, DiskId(0), EpochNumber(number), 0ms);
    if (!reader) return false;
    std::vector<std::byte> bytes(limits::kGranuleSize);
    if (!(*reader)->read(granule * limits::kGranuleSize, bytes)) return false;
    return std::memcmp(bytes.data() + 16, kMarker.data(), kMarker.size()) == 0;
  }
  // How many files of the log and of the cold segments have these bytes anywhere.
  std::size_t files_with(std::string_view what) {
    std::size_t files = 0;
    for (const char* directory : {"/p0/log", "/p0/cold", "/p0"}) {
      for (const std::string& name : rig_->files().list(directory).value_or(std::vector<std::string>())) {
        const auto file = rig_->files().open(std::string(directory) + "/" + name, OpenMode::read, false);
        if (!file) continue;
        std::string bytes(*(*file)->size(), '\0');
        EXPECT_TRUE((*file)->read_at(0, std::as_writable_bytes(std::span(bytes))));
        if (bytes.find(what) != std::string::npos) ++files;
      }
    }
    return files;
  }
  std::vector<MasterKeyId> needed() {
    return Partition::master_keys_needed(rig_->files(), sim::StoreRig::kDirectory).value_or(std::vector<MasterKeyId>());
  }
  void expect_nonces(sim::NonceWatch& nonces) {
    const auto wrong = nonces.look(rig_->files(), sim::StoreRig::kDirectory);
    EXPECT_FALSE(wrong) << *wrong;
  }

  std::shared_ptr<const MasterKeys> keys_ = new_keys();
};

TEST_F(EncryptionTest, PointsComeBackByteForByteWhateverHappensToThem) {
  const MachineId web = add_machine(1);
  const MachineId db = add_machine(2);
  sim::NonceWatch nonces;
  epochs(web, 1, 6);
  epochs(db, 1, 4);
  expect_points("written");
  expect_nonces(nonces);
  settle();
  expect_points("settled");
  EXPECT_FALSE(cold_files().empty());
  drop(web, {2, 3});
  settle();
  expect_points("dropped and folded");
  expect_nonces(nonces);
  rig_->cut_power();
  good(rig_->open());
  expect_points("after a power cut");
  epochs(web, 7, 9);
  settle();
  expect_nonces(nonces);
  good(rig_->close());
  lose_index_and_open();
  expect_points("rebuilt");
  epochs(db, 5, 6);
  settle();
  expect_points("and going on");
  expect_nonces(nonces);
  EXPECT_GT(nonces.seen(), 100u);
  EXPECT_EQ(store().stats().encrypted_volumes, 2u);
}

TEST_F(EncryptionTest, NothingOfTheDataStandsOnTheDiskInTheClear) {
  const MachineId web = add_machine(1);
  begin(web, 1);
  write_marked(web, 1, 0, 40);
  commit(web, 1);
  begin(web, 2);
  write_marked(web, 2, 20, 7);
  commit(web, 2);
  EXPECT_TRUE(reads_marked(web, 2, 20));
  EXPECT_EQ(files_with(kMarker), 0u);
  // A digest in the clear would let anybody confirm a guess of the content.
  const std::string digest = hash_to_bytes({2, ~2ull});
  EXPECT_EQ(files_with(digest), 0u);
  EXPECT_EQ(store().epochs(web, 1, true, 0ms)->front().digest(), digest);
  epochs(web, 3, 8);  // so that the first segments fill up and are settled
  settle();
  ASSERT_FALSE(cold_files().empty());
  EXPECT_TRUE(reads_marked(web, 8, 39) || reads_marked(web, 2, 39));
  EXPECT_EQ(files_with(kMarker), 0u);
}

TEST_F(EncryptionTest, TheSameDataIsInTheClearWithoutIt) {
  start_in_the_clear();
  const MachineId web = add_machine(1);
  begin(web, 1);
  write_marked(web, 1, 0, 40);
  commit(web, 1);
  EXPECT_NE(files_with(kMarker), 0u) << "or the tests that find none prove nothing";
  EXPECT_NE(files_with(hash_to_bytes({1, ~1ull})), 0u);
}

TEST_F(EncryptionTest, AnInitialEpochResumesWithTheSumOfWhatWasSent) {
  const MachineId web = add_machine(1);
  begin(web, 1, kInitialEpoch);
  wire::BlockEncoder encoder(web);
  Hash128 sum;
  std::uint64_t blocks = 0;
  const auto send = [&](std::uint64_t granule) {
    encoder.start(DiskId(0), EpochNumber(1));
    std::vector<std::byte> plain(limits::kGranuleSize);
    random_.fill(plain);
    encoder.add(granule, plain);
    encoder.add_zeroes(granule + 1, 3);
    sum += encoder.summary().sum;
    blocks += encoder.summary().blocks;
    good(store().append_blocks(web, DiskId(0), encoder.take()));
  };
  const auto expect_sum = [&](const char* when) {
    SCOPED_TRACE(when);
    const auto& open = store().find(web)->open_epoch;
    ASSERT_TRUE(open);
    EXPECT_EQ(open->blocks(), blocks);
    EXPECT_EQ(hash_from_bytes(open->sum()), sum);
    EXPECT_TRUE(open->sealed_sum().empty());
  };
  send(0);
  send(10);
  rig_->pump(true);
  expect_sum("as it came");
  rig_->cut_power();
  good(rig_->open());
  expect_sum("after a power cut");
  send(20);
  rig_->pump(true);
  expect_sum("and going on");
  good(rig_->close());
  lose_index_and_open();
  expect_sum("rebuilt");
  EXPECT_EQ(files_with(hash_to_bytes(sum)), 0u);
}

TEST_F(EncryptionTest, AnExistingStoreIsEncryptedFromThenOn) {
  start_in_the_clear();
  const MachineId web = add_machine(1);
  epochs(web, 1, 3);
  begin(web, 4, kInitialEpoch);
  write(web, 4, {{300, 2}});
  rig_->pump(true);
  const Hash128 before = hash_from_bytes(store().find(web)->open_epoch->sum());
  encrypt_from_now_on();
  EXPECT_EQ(store().stats().encrypted_volumes, 0u);
  expect_points("as it was");
  open_disk_again(web);
  EXPECT_EQ(store().stats().encrypted_volumes, 1u);
  EXPECT_EQ(hash_from_bytes(store().find(web)->open_epoch->sum()), before);
  write_marked(web, 4, 310, 6);
  rig_->pump(true);
  EXPECT_NE(hash_from_bytes(store().find(web)->open_epoch->sum()), before) << "what was and what came";
  EXPECT_EQ(files_with(kMarker), 0u);
  rig_->cut_power();
  good(rig_->open());
  expect_points("mixed");
  // What is settled is encrypted on its way.
  pb::EpochAbortRecord abort;
  abort.set_number(4);
  good(store().abort_epoch(web, abort));
  current_[web] = points_[web].at(3);
  for (std::uint64_t number = 5; number <= 9; ++number) epoch(web, number);
  settle();
  expect_points("settled");
  ASSERT_FALSE(cold_files().empty());
  std::size_t sealed = 0, clear = 0;
  const auto segments = list_cold_segments(rig_->files(), "/p0/cold");
  ASSERT_TRUE(segments);
  for (const SegmentId segment : *segments) {
    const auto file = rig_->files().open(cold_path("/p0/cold", segment), OpenMode::read, false);
    const auto superblock = read_superblock(rig_->files(), "/p0");
    const auto table = read_cold_table(**file, segment, PartitionId(0), superblock->salt);
    ASSERT_TRUE(table);
    for (const ColdExtent& extent : *table) {
      if (extent.extent.encoding != wire::Encoding::zero) ++(extent.extent.sealed ? sealed : clear);
    }
  }
  EXPECT_GT(sealed, 0u);
  EXPECT_EQ(clear, 0u);
  good(rig_->close());
  lose_index_and_open();
  expect_points("rebuilt");
}

TEST_F(EncryptionTest, WhatIsEncryptedStaysSoWhenTheSettingGoes) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 2);
  good(rig_->close());
  rig_->options().encrypt = false;
  good(rig_->open());
  expect_points("reopened");
  open_disk_again(web);
  begin(web, 3);
  write_marked(web, 3, 0, 20);
  commit(web, 3);
  EXPECT_TRUE(reads_marked(web, 3, 4));
  EXPECT_EQ(files_with(kMarker), 0u);
  const MachineId db = add_machine(2);  // it is new: in the clear
  begin(db, 1);
  write_marked(db, 1, 0, 20);
  commit(db, 1);
  EXPECT_NE(files_with(kMarker), 0u);
}

TEST_F(EncryptionTest, WithoutItsMasterKeyItDoesNotOpenAndNothingIsChanged) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 3);
  rig_->cut_power();
  const auto right = keys_;
  const std::uint64_t before = rig_->disk().operations();
  for (const auto& wrong : {std::shared_ptr<const MasterKeys>(), new_keys(MasterKeys("other-file"))}) {
    for (const bool encrypt : {true, false}) {
      if (encrypt && wrong == nullptr) continue;
      rig_->options().encrypt = encrypt;
      use(wrong);
      const auto opened = rig_->open();
      ASSERT_FALSE(opened);
      EXPECT_EQ(opened.error().code, Code::not_found) << opened.error().message();
      EXPECT_NE(opened.error().what.find(to_string(right->current().id)), std::string::npos)
          << opened.error().message();
      EXPECT_FALSE(opened.error().remedy.empty());
    }
  }
  EXPECT_EQ(rig_->disk().operations(), before) << "nothing was written";
  use(right);
  good(rig_->open());
  expect_points("with the right one");
}

TEST_F(EncryptionTest, AMasterKeyIsChangedWithoutRewritingData) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 6);
  settle();
  const MasterKeyId old = keys_->current().id;
  EXPECT_EQ(needed(), std::vector{old});
  good(rig_->close());
  const auto cold = cold_files();
  ASSERT_FALSE(cold.empty());
  rig_->options().settler.settle_after_us = 1'000'000'000'000;
  use(new_keys(*keys_));
  good(rig_->open());
  const MasterKeyId current = keys_->current().id;
  EXPECT_EQ(needed(), (std::vector{current, old})) << "both, until all is wrapped anew";
  const auto written = store().stats().log.payload_bytes;
  store().on_idle();
  rig_->pump(true);
  settle();
  EXPECT_EQ(needed(), std::vector{current});
  EXPECT_LT(store().stats().log.payload_bytes - written, 2048u) << "a machine's record and no data";
  EXPECT_EQ(cold_files(), cold);
  expect_points("rewrapped");
  good(rig_->close());
  use(std::make_shared<const MasterKeys>(keys_->current_only()));
  good(rig_->open());
  expect_points("with the new key alone");
  good(rig_->close());
  lose_index_and_open();
  expect_points("rebuilt with the new key alone, though the log still has records with the old one");
}

// The power goes at each operation of the disk while the master key is changed: what the superblock then says is needed
// opens the store, and the change is completed by the next start.
TEST_F(EncryptionTest, APowerCutAtAnyPointOfARotationLosesNothing) {
  bool whole = false;
  for (std::uint64_t operation = 0; !whole; ++operation) {
    SCOPED_TRACE(operation);
    points_.clear();
    current_.clear();
    SetUp();
    const MachineId web = add_machine(1);
    add_machine(2);
    epochs(web, 1, 2);
    good(rig_->close());
    const auto before = keys_;
    use(new_keys(*before));
    rig_->disk().cut_power_at(rig_->disk().operations() + operation);
    if (rig_->open()) {
      for (int turn = 0; turn < 4 && !rig_->disk().powered_off(); ++turn) {
        store().on_idle();
        rig_->pump(true);
      }
    }
    whole = !rig_->disk().powered_off();
    rig_->cut_power();
    const auto ids = needed();
    ASSERT_FALSE(ids.empty());
    if (ids == std::vector{before->current().id}) {  // nothing was done yet: the old key alone will do
      const auto both = keys_;
      use(before);
      good(rig_->open());
      expect_points("with the old key alone");
      good(rig_->close());
      use(both);
    } else if (ids == std::vector{keys_->current().id}) {
      use(std::make_shared<const MasterKeys>(keys_->current_only()));
    } else {
      EXPECT_EQ(ids.size(), 2u);
    }
    good(rig_->open());
    expect_points("after the cut");
    for (int turn = 0; turn < 6; ++turn) {
      store().on_idle();
      rig_->pump(true);
    }
    EXPECT_EQ(needed(), std::vector{keys_->current().id}) << "completed";
    good(rig_->close());
    use(std::make_shared<const MasterKeys>(keys_->current_only()));
    good(rig_->open());
    expect_points("with the new key alone");
    if (HasFatalFailure()) return;
    ASSERT_LT(operation, 500u);
  }
}

TEST_F(EncryptionTest, ClonesHaveKeysOfTheirOwnAndReadWithTheirParents) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 3);
  settle();
  const MachineId check = machine_id(9);
  {
    const auto base = store().clone_base(web, EpochNumber(2), 0ms);
    ASSERT_TRUE(base) << base.error().message();
    const std::vector<CloneName> names{{check, "clone:9"}};
    good(store().create_clones(*base, names, "test", 1'000, [](const Status&) {}));
    rig_->pump(true);
  }
  current_[check] = points_[web].at(2);
  EXPECT_EQ(store().stats().encrypted_volumes, 2u);
  begin(check, 1);
  write_marked(check, 1, 500, 10);
  write(check, 1, {{100, 4}});
  good(store().commit_epoch(check, [] {
    pb::EpochCommitRecord record;
    record.set_number(1);
    record.set_consistency(2);
    record.set_digest(hash_to_bytes({7, 8}));
    return record;
  }()));
  rig_->pump(true);
  EXPECT_TRUE(reads_marked(check, 1, 503));
  EXPECT_EQ(files_with(kMarker), 0u);
  std::optional<Error> error;
  const auto difference = sim::compare_disk(store(), check, 0, EpochNumber(0), points_[web].at(2), random_, error);
  EXPECT_FALSE(difference) << *difference;
  EXPECT_FALSE(error) << error->message();
  rig_->cut_power();
  use(new_keys(*keys_));
  good(rig_->open());
  settle();
  EXPECT_EQ(needed(), std::vector{keys_->current().id}) << "clones' keys are wrapped anew too";
  EXPECT_TRUE(reads_marked(check, 1, 503));
  good(rig_->close());
  use(std::make_shared<const MasterKeys>(keys_->current_only()));
  good(rig_->open());
  EXPECT_TRUE(reads_marked(check, 1, 503)) << "with the new key alone";
}

TEST_F(EncryptionTest, DamageIsFoundWithoutServingAnything) {
  const MachineId web = add_machine(1);
  epochs(web, 1, 2);
  good(rig_->close());
  // Bits all over the blocks of the first segment.
  const auto names = rig_->files().list("/p0/log");
  ASSERT_TRUE(names);
  std::string segment;
  for (const std::string& name : *names) {
    if (name.ends_with(".segment") && !name.starts_with("reserve")) {
      segment = name;
      break;
    }
  }
  for (std::uint64_t at = 12'000; at < 90'000; at += 5'000) {
    ASSERT_TRUE(rig_->disk().flip_bit("/p0/log/" + segment, at, 3));
  }
  const auto opened = rig_->open();
  if (!opened) {
    EXPECT_EQ(opened.error().code, Code::corrupt);
    return;
  }
  bool found = false;
  for (const std::uint64_t number : {1, 2}) {
    std::optional<Error> error;
    const auto difference =
        sim::compare_disk(store(), web, 0, EpochNumber(number), points_[web].at(number), random_, error);
    EXPECT_FALSE(difference) << *difference;
    if (error) {
      EXPECT_EQ(error->code, Code::corrupt) << error->message();
      found = true;
    }
  }
  EXPECT_TRUE(found);
}

}  // namespace
}  // namespace tidemark::storage
