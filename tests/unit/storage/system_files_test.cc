#include "storage/system_files.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "base/aligned_buffer.h"

namespace tidemark::storage {
namespace {

struct SystemFilesTest : ::testing::Test {
  SystemFilesTest() {
    directory = (std::filesystem::temp_directory_path() / "tidemark-files-XXXXXX").string();
    EXPECT_NE(::mkdtemp(directory.data()), nullptr);
  }
  ~SystemFilesTest() override { std::filesystem::remove_all(directory); }
  std::string path(const char* name) const { return directory + "/" + name; }

  std::string directory;
  FileSystem& files = system_files();
};

TEST_F(SystemFilesTest, ReadsBackWhatItWrote) {
  for (const bool direct : {false, true}) {
    const std::string name = path(direct ? "direct" : "buffered");
    auto file = files.open(name, OpenMode::create, direct);
    ASSERT_TRUE(file) << file.error().message();
    AlignedBuffer out(16_KiB), in(32_KiB);
    for (std::size_t i = 0; i < out.size(); ++i) out.data()[i] = static_cast<std::byte>(i / 7);
    ASSERT_TRUE((*file)->write_at(8_KiB, out.span()));
    ASSERT_TRUE((*file)->sync());
    EXPECT_EQ((*file)->size().value(), 24_KiB);
    const auto read = (*file)->read_at(4_KiB, in.span());
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(*read, 20_KiB) << "up to the end of the file";
    EXPECT_EQ(std::memcmp(in.data() + 4_KiB, out.data(), out.size()), 0);
    EXPECT_EQ(in.data()[0], std::byte{0}) << "a hole";
    EXPECT_EQ((*file)->read_at(64_KiB, in.span()).value(), 0U);
    EXPECT_EQ((*file)->path(), name);
  }
}

TEST_F(SystemFilesTest, OpensAsAsked) {
  EXPECT_EQ(files.open(path("none"), OpenMode::read, true).error().code, Code::not_found);
  EXPECT_EQ(files.open(path("none"), OpenMode::read_write, false).error().code, Code::not_found);
  ASSERT_TRUE(files.open(path("f"), OpenMode::create, true));
  EXPECT_EQ(files.open(path("f"), OpenMode::create, true).error().code, Code::already_exists);
  const auto file = files.open(path("f"), OpenMode::read, false);
  ASSERT_TRUE(file);
  AlignedBuffer block(4_KiB);
  EXPECT_FALSE((*file)->write_at(0, block.span()));
}

TEST_F(SystemFilesTest, ReservesSpaceWithoutShrinking) {
  const auto file = files.open(path("f"), OpenMode::create, true);
  ASSERT_TRUE(file);
  ASSERT_TRUE((*file)->allocate(1_MiB));
  EXPECT_EQ((*file)->size().value(), 1_MiB);
  ASSERT_TRUE((*file)->allocate(4_KiB));
  EXPECT_EQ((*file)->size().value(), 1_MiB);
}

TEST_F(SystemFilesTest, KeepsDirectories) {
  ASSERT_TRUE(files.make_directory(path("d")));
  ASSERT_TRUE(files.make_directory(path("d"))) << "well when it exists";
  ASSERT_TRUE(files.open(path("f"), OpenMode::create, false));
  EXPECT_EQ(files.make_directory(path("f")).error().code, Code::already_exists);
  EXPECT_FALSE(files.make_directory(path("x/y")));
  EXPECT_EQ(files.list(directory).value(), (std::vector<std::string>{"d", "f"}));
  ASSERT_TRUE(files.rename(path("f"), path("g")));
  EXPECT_FALSE(files.exists(path("f")).value());
  EXPECT_TRUE(files.exists(path("g")).value());
  ASSERT_TRUE(files.sync_directory(directory));
  ASSERT_TRUE(files.remove(path("g")));
  ASSERT_TRUE(files.remove(path("d")));
  EXPECT_EQ(files.remove(path("d")).error().code, Code::not_found);
  EXPECT_EQ(files.list(path("d")).error().code, Code::not_found);
  const auto space = files.space(directory);
  ASSERT_TRUE(space);
  EXPECT_GT(space->total, 0U);
  EXPECT_LE(space->available, space->total);
}

TEST_F(SystemFilesTest, ALockKeepsOthersOutAndEndsWithItsProcess) {
  {
    const auto lock = files.lock(path("lock"));
    ASSERT_TRUE(lock) << lock.error().message();
    const auto second = files.lock(path("lock"));
    ASSERT_FALSE(second) << "not even the same process";
    EXPECT_EQ(second.error().code, Code::busy);
    const pid_t child = ::fork();
    if (child == 0) ::_exit(files.lock(path("lock")) ? 1 : 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << "another process was let in";
  }
  const pid_t child = ::fork();
  if (child == 0) {
    const auto held = files.lock(path("lock"));
    ::_exit(held ? 0 : 1);  // without letting go
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(files.lock(path("lock")));
}

TEST_F(SystemFilesTest, WholeFilesAreReplacedAndReadWithinABound) {
  const std::string text = "partition = 3\n";
  ASSERT_TRUE(write_file_atomically(files, path("f"), std::as_bytes(std::span(text))));
  ASSERT_TRUE(write_file_atomically(files, path("f"), std::as_bytes(std::span(text).first(9))));
  const auto read = read_whole_file(files, path("f"), 9);
  ASSERT_TRUE(read);
  EXPECT_EQ(std::memcmp(read->data(), text.data(), 9), 0);
  EXPECT_EQ(read->size(), 9U);
  EXPECT_EQ(read_whole_file(files, path("f"), 8).error().code, Code::corrupt);
  EXPECT_EQ(files.list(directory).value(), std::vector<std::string>{"f"}) << "nothing left behind";
}

}  // namespace
}  // namespace tidemark::storage
