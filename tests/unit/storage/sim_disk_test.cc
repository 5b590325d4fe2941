#include "storage/sim_disk.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>

#include "base/aligned_buffer.h"

namespace tidemark::storage {
namespace {

AlignedBuffer block(char fill, std::size_t size = 4096) {
  AlignedBuffer buffer(size);
  std::memset(buffer.data(), fill, size);
  return buffer;
}

struct Done final : IoCompletion {
  void on_io_done(int r) override { result = r; }
  std::optional<int> result;
};

std::string content(SimDisk& disk, const std::string& path) {
  auto file = disk.files().open(path, OpenMode::read, false);
  if (!file) return "(none)";
  std::string text((*file)->size().value(), '\0');
  EXPECT_TRUE((*file)->read_at(0, std::as_writable_bytes(std::span(text))));
  return text;
}

// A durable file of one block, open.
std::unique_ptr<File> durable_file(SimDisk& disk, const std::string& path, char fill) {
  auto file = disk.files().open(path, OpenMode::create, true);
  EXPECT_TRUE(file);
  EXPECT_TRUE((*file)->write_at(0, block(fill).span()));
  EXPECT_TRUE((*file)->sync());
  EXPECT_TRUE(disk.files().sync_directory("/"));
  return std::move(*file);
}

TEST(SimDisk, WhatWasSyncedSurvivesAndTheRestByChanceSectorBySector) {
  int kept = 0, lost = 0, torn = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SimDisk disk(seed);
    const auto file = durable_file(disk, "/f", 'a');
    ASSERT_TRUE(file->write_at(0, block('b').span()));
    EXPECT_EQ(content(disk, "/f"), std::string(4096, 'b'));
    const std::string text = content(*disk.crash(), "/f");
    ASSERT_EQ(text.size(), 4096U);
    for (std::size_t i = 0; i < text.size(); ++i) {
      ASSERT_TRUE(text[i] == 'a' || text[i] == 'b');
      ASSERT_EQ(text[i], text[i / 512 * 512]) << "sectors are whole";
    }
    const bool a = text.find('a') != text.npos, b = text.find('b') != text.npos;
    ++(a && b ? torn : a ? lost : kept);
  }
  EXPECT_GT(kept, 20);
  EXPECT_GT(lost, 20);
  EXPECT_GT(torn, 20);
}

TEST(SimDisk, ADurableWriteCoversItselfAloneAndOnlyOnceDelivered) {
  int whole = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SimDisk disk(seed);
    const auto file = durable_file(disk, "/f", 'a');
    ASSERT_TRUE(file->write_at(4096, block('x').span()));
    ASSERT_TRUE(file->sync());
    auto queue = disk.make_queue();
    queue->hold(true);
    const AlignedBuffer b = block('b'), c = block('c');
    Done first, second;
    queue->write_durable(*file, 0, b.span(), first);
    queue->write_durable(*file, 4096, c.span(), second);
    EXPECT_EQ(queue->submitted(), 0U);
    queue->submit();
    EXPECT_EQ(queue->submitted(), 2U);
    EXPECT_EQ(content(disk, "/f")[4096], 'x');
    queue->complete(1);
    EXPECT_EQ(second.result, 4096);
    EXPECT_FALSE(first.result);
    const std::string text = content(*disk.crash(), "/f");
    EXPECT_EQ(text.substr(4096), std::string(4096, 'c'));
    whole += text.substr(0, 4096) == std::string(4096, 'b');
  }
  EXPECT_GT(whole, 10);
  EXPECT_LT(whole, 90);
}

TEST(SimDisk, NamesAreDurableAfterSyncDirectoryAndSurviveInOrderBefore) {
  int moved = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SimDisk disk(seed);
    durable_file(disk, "/a", 'a');
    ASSERT_TRUE(disk.files().rename("/a", "/b"));
    ASSERT_TRUE(disk.files().rename("/b", "/c"));
    ASSERT_TRUE(disk.files().make_directory("/d"));
    EXPECT_FALSE(disk.files().exists("/a").value());
    auto after = disk.crash();
    const auto names = after->files().list("/").value();
    const bool d = names.back() == "d";
    ASSERT_EQ(names.size(), d ? 2U : 1U) << "one name at a time";
    if (d) {
      EXPECT_EQ(names[0], "c") << "in order";
    }
    moved += names[0] == "c";
  }
  EXPECT_GT(moved, 20);
  EXPECT_LT(moved, 90);

  SimDisk disk(1);
  durable_file(disk, "/a", 'a');
  ASSERT_TRUE(disk.files().rename("/a", "/b"));
  ASSERT_TRUE(disk.files().sync_directory("/"));
  EXPECT_EQ(disk.crash()->files().list("/").value(), std::vector<std::string>{"b"});
}

TEST(SimDisk, AfterTheCutEverythingFailsAndChangesNothing) {
  SimDisk disk(1);
  const auto file = durable_file(disk, "/f", 'a');
  auto queue = disk.make_queue();
  disk.cut_power_at(disk.operations() + 1);
  ASSERT_TRUE(file->write_at(0, block('b').span()));
  EXPECT_FALSE(disk.powered_off());
  EXPECT_FALSE(file->sync()) << "the one that the power went in";
  EXPECT_TRUE(disk.powered_off());
  EXPECT_FALSE(file->write_at(0, block('c').span()));
  EXPECT_FALSE(disk.files().open("/f", OpenMode::read, true));
  EXPECT_FALSE(disk.files().list("/"));
  const AlignedBuffer d = block('d');
  Done done;
  queue->write_durable(*file, 0, d.span(), done);
  EXPECT_EQ(queue->wait(), 1U) << "nobody waits for ever";
  EXPECT_EQ(done.result, -EIO);
  const std::string text = content(*disk.crash(), "/f");
  EXPECT_EQ(text.find_first_not_of("ab"), text.npos);
}

TEST(SimDisk, ASeedRepeatsARun) {
  const auto run = [](std::uint64_t seed) {
    SimDisk disk(seed);
    const auto file = durable_file(disk, "/f", 'a');
    auto queue = disk.make_queue();
    std::vector<AlignedBuffer> buffers;
    std::vector<Done> done(8);
    for (char i = 0; i < 8; ++i) buffers.push_back(block(static_cast<char>('b' + i)));
    for (std::size_t i = 0; i < 8; ++i) queue->write_durable(*file, i * 4096, buffers[i].span(), done[i]);
    queue->submit();
    queue->reap();
    return content(*disk.crash(), "/f");
  };
  EXPECT_EQ(run(7), run(7));
  EXPECT_NE(run(7), run(8));
}

TEST(SimDisk, FailsAndDamagesOnDemand) {
  SimDisk disk(1, 1_MiB);
  const auto file = durable_file(disk, "/f", 'a');
  EXPECT_EQ(file->allocate(2_MiB).error().code, Code::no_space);
  disk.set_capacity(4096);
  EXPECT_EQ(file->write_at(4096, block('b').span()).error().code, Code::no_space);
  EXPECT_TRUE(file->write_at(0, block('a').span())) << "what it has already, it has";
  EXPECT_EQ(disk.files().space("/").value().available, 0U);
  SimFaults faults;
  faults.read_error = faults.sync_error = 1;
  disk.set_faults(faults);
  AlignedBuffer to(4096);
  EXPECT_EQ(file->read_at(0, to.span()).error().code, Code::io);
  EXPECT_EQ(file->sync().error().code, Code::io);
  disk.set_faults({});
  EXPECT_TRUE(disk.flip_bit("/f", 17, 1));
  EXPECT_EQ(content(disk, "/f")[17], 'a' ^ 2);
  EXPECT_FALSE(disk.flip_bit("/f", 4096, 1));
  EXPECT_FALSE(disk.flip_bit("/g", 0, 1));
  EXPECT_EQ(file->write_at(1, block('a').span()).error().code, Code::io) << "direct I/O is aligned";
}

TEST(SimDisk, MisdirectedAndLostWritesAreReportedAsDone) {
  SimDisk disk(3);
  const auto file = durable_file(disk, "/f", 'a');
  ASSERT_TRUE(file->allocate(1_MiB));
  ASSERT_TRUE(file->sync());
  auto queue = disk.make_queue();
  SimFaults faults;
  faults.misdirect = 1;
  disk.set_faults(faults);
  const AlignedBuffer z = block('z');
  Done done;
  queue->write_durable(*file, 512_KiB, z.span(), done);
  while (!done.result) queue->wait();
  EXPECT_EQ(done.result, 4096);
  const std::string text = content(disk, "/f");
  const std::size_t at = text.find('z');
  ASSERT_NE(at, text.npos);
  EXPECT_NE(at, 512_KiB);
  EXPECT_EQ(at % 4096, 0U);
  EXPECT_EQ(text.substr(at, 4096), std::string(4096, 'z'));
}

TEST(SimDisk, ALockIsHeldOnce) {
  SimDisk disk(1);
  auto lock = disk.files().lock("/lock");
  ASSERT_TRUE(lock);
  EXPECT_EQ(disk.files().lock("/lock").error().code, Code::busy);
  lock->reset();
  EXPECT_TRUE(disk.files().lock("/lock"));
}

TEST(WriteFileAtomically, AtEveryCrashPointTheOldOrTheNewContentIsThere) {
  const auto write = [](SimDisk& disk, const std::string& text) {
    return write_file_atomically(disk.files(), "/file", std::as_bytes(std::span(text)));
  };
  const std::string before(700, 'o'), after(5000, 'n');
  int kept = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (std::uint64_t operation = 0; operation < 10; ++operation) {
      SimDisk disk(seed);
      ASSERT_TRUE(write(disk, before));
      disk.cut_power_at(disk.operations() + operation);
      const bool done = write(disk, after).has_value();
      auto crashed = disk.crash();
      const auto read = read_whole_file(crashed->files(), "/file", 1_MiB);
      ASSERT_TRUE(read);
      const std::string text(reinterpret_cast<const char*>(read->data()), read->size());
      ASSERT_TRUE(text == after || (!done && text == before)) << "seed " << seed << " operation " << operation;
      kept += text == before;
      ASSERT_TRUE(write(*crashed, after)) << "what a crash left does not stand in the way";
    }
  }
  EXPECT_GT(kept, 20);
}

}  // namespace
}  // namespace tidemark::storage
