#include "agent/memory.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "agent/memory_keeper.h"
#include "agent/text_file.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

MachineId machine() { return *MachineId::parse("000102030405060708090a0b0c0d0e0f"); }

Memory full_memory() {
  Memory memory;
  memory.machine = machine();
  memory.session.durable_epoch = EpochNumber(7);
  memory.session.durable_digest = {1, 2};
  memory.session.unacknowledged.push_back({EpochNumber(8), {5, 6}});
  pb::OpenEpoch open;
  open.set_number(9);
  open.set_kind(pb::INITIAL);
  auto* position = open.add_positions();
  position->set_disk(3);
  position->set_granule(99);
  memory.session.open_epoch = open;
  memory.durable =
      EpochFacts{EpochNumber(7), {1, 2}, Consistency::crash, 1234567, {{DiskId(0), "file:/a\xff", "a", 4096}}};
  memory.pending = EpochFacts{EpochNumber(8), {5, 6}, Consistency::filesystem, 2345678, {}};
  memory.boot_id = std::string("\x00\xff\x10zzzzzzzzzzzzz", 16);
  memory.rescan = "why \"quoted\"";
  memory.newest_point = EpochNumber(7);
  memory.newest_point_us = 1234567;
  memory.unchanged_as_of_us = 3456789;
  memory.alarm = "alarm";
  memory.alarm_us = 42;
  return memory;
}

TEST(Memory, ComesBackAsItWas) {
  const Memory memory = full_memory();
  const auto again = decode_memory(encode_memory(memory), "memory");
  ASSERT_TRUE(again) << again.error().message();
  EXPECT_EQ(encode_memory(*again), encode_memory(memory));
  EXPECT_EQ(again->boot_id, memory.boot_id);
  EXPECT_EQ(again->durable->disks, memory.durable->disks);
  EXPECT_EQ(again->session.open_epoch->positions(0).granule(), 99U);
  EXPECT_EQ(again->session.unacknowledged.size(), 1U);
}

TEST(Memory, EveryDamageIsFoundAndHasARemedy) {
  const std::string text = encode_memory(full_memory());
  for (std::size_t size = 0; size < text.size(); ++size) {
    const auto cut = decode_memory(text.substr(0, size), "memory");
    ASSERT_FALSE(cut) << size;
    EXPECT_EQ(cut.error().code, Code::corrupt);
    EXPECT_FALSE(cut.error().remedy.empty());
  }
  for (std::size_t at = 0; at < text.size(); ++at) {
    std::string flipped = text;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x20);
    EXPECT_FALSE(decode_memory(flipped, "memory")) << at;
  }
}

TEST(Memory, NoFileIsAnEmptyMemory) {
  const TempDir dir;
  const auto memory = load_memory(dir / "memory", machine());
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->session.durable_epoch.value(), 0U);
}

TEST(Memory, OfAnotherMachineIsRefused) {
  const TempDir dir;
  ASSERT_TRUE(save_memory(dir / "memory", full_memory()));
  EXPECT_TRUE(load_memory(dir / "memory", machine()));
  const auto other = load_memory(dir / "memory", *MachineId::parse("ff0102030405060708090a0b0c0d0e0f"));
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, Code::corrupt);
}

TEST(Memory, PendingBecomesDurableOnlyWithItsOwnDigest) {
  Memory memory = full_memory();
  memory.became_durable(EpochNumber(8), {5, 6}, "boot");
  ASSERT_TRUE(memory.durable);
  EXPECT_EQ(memory.durable->number, EpochNumber(8));
  EXPECT_FALSE(memory.pending);
  EXPECT_EQ(memory.newest_point, EpochNumber(8));
  EXPECT_TRUE(memory.rescan.empty());
  EXPECT_TRUE(memory.alarm.empty());

  memory = full_memory();
  memory.became_durable(EpochNumber(8), {5, 7}, "boot");
  EXPECT_FALSE(memory.durable) << "an epoch of this number was made by somebody else";
  EXPECT_FALSE(memory.pending);
  EXPECT_EQ(memory.newest_point, EpochNumber(7));
}

TEST(Memory, AFuzzyEpochIsNoNewPoint) {
  Memory memory = full_memory();
  memory.pending->consistency = Consistency::fuzzy;
  memory.became_durable(EpochNumber(8), {5, 6}, "boot");
  EXPECT_EQ(memory.durable->number, EpochNumber(8));
  EXPECT_EQ(memory.newest_point, EpochNumber(7));
  EXPECT_EQ(memory.alarm, "alarm");
}

TEST(Memory, KeeperSavesWhatMatters) {
  const TempDir dir;
  MemoryKeeper keeper(dir / "memory", full_memory(), "boot");
  wire::AgentMemory session = full_memory().session;
  session.durable_epoch = EpochNumber(8);
  session.durable_digest = {5, 6};
  ASSERT_TRUE(keeper.durable(session, EpochNumber(8), {5, 6}));
  const auto saved = load_memory(dir / "memory", machine());
  ASSERT_TRUE(saved);
  EXPECT_EQ(saved->session.durable_epoch, EpochNumber(8));
  EXPECT_EQ(saved->durable->number, EpochNumber(8));
  EXPECT_EQ(saved->boot_id, "boot");
}

TEST(TextFile, ReplacesAsAWholeAndLeavesNothingBehind) {
  const TempDir dir;
  dir.write("key.new", "an earlier crash left this");
  ASSERT_TRUE(write_file_atomically(dir / "key", "one", 0600));
  ASSERT_TRUE(write_file_atomically(dir / "key", "two", 0600));
  EXPECT_EQ(*read_text_file(dir / "key"), "two");
  struct stat status{};
  ASSERT_EQ(::stat((dir / "key").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_FALSE(std::filesystem::exists(dir / "key.new"));
}

TEST(TextFile, ErrorsNameTheFile) {
  const TempDir dir;
  const auto written = write_file_atomically(dir / "no/such/place", "x", 0600);
  ASSERT_FALSE(written);
  EXPECT_NE(written.error().object.find("no/such/place"), std::string::npos);
  dir.write("big", std::string(3000, 'x'));
  EXPECT_EQ(read_text_file(dir / "big", 1000).error().code, Code::corrupt);
}

}  // namespace
}  // namespace tidemark::agent
