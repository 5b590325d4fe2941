#include "agent/source.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <map>

#include "agent/file_descriptor.h"
#include "agent/file_source.h"
#include "agent/lease.h"
#include "agent/reading.h"
#include "agent/source_set.h"
#include "base/aligned_buffer.h"
#include "base/limits.h"
#include "tests/unit/agent/temp_dir.h"

namespace tidemark::agent {
namespace {

std::string pattern(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + (i / 7 + i) % 23);
  return text;
}

std::string read_all(BlockSource& source, std::uint64_t offset, std::size_t size) {
  AlignedBuffer buffer(size);
  const auto read = source.read_at(offset, buffer.span());
  if (!read) return "error: " + read.error().message();
  return std::string(reinterpret_cast<const char*>(buffer.data()), buffer.size());
}

TEST(FileSource, ReadsAnOddSizeWithZeroesBehind) {
  const TempDir dir;
  const std::string content = pattern(3 * 4096 + 100);
  auto source = open_source(dir.write("odd.img", content));
  ASSERT_TRUE(source) << source.error().message();
  EXPECT_EQ((*source)->size(), content.size());
  EXPECT_EQ((*source)->kind(), BlockSource::Kind::file);
  EXPECT_EQ((*source)->identity(), "file:" + (dir / "odd.img").string());
  const std::string got = read_all(**source, 0, 1 << 20);
  EXPECT_EQ(got.substr(0, content.size()), content);
  EXPECT_EQ(got.find_first_not_of('\0', content.size()), std::string::npos);
  EXPECT_EQ(read_all(**source, 8192, 8192).substr(0, 4196), content.substr(8192));
  EXPECT_EQ(read_all(**source, 1 << 20, 4096), std::string(4096, '\0'));
}

TEST(FileSource, ALinkIsItsTarget) {
  const TempDir dir;
  dir.write("a.img", pattern(4096));
  std::filesystem::create_symlink(dir / "a.img", dir / "link");
  EXPECT_EQ((*open_source((dir / "link").string()))->identity(), "file:" + (dir / "a.img").string());
}

TEST(FileSource, FindsDataBetweenHoles) {
  const TempDir dir;
  const auto path = dir.write("sparse.img", "");
  std::filesystem::resize_file(path, 8 << 20);
  const FileDescriptor fd(::open(path.c_str(), O_WRONLY));
  ASSERT_EQ(::pwrite(fd.get(), "data", 4, 2 << 20), 4);
  auto source = open_source(path);
  ASSERT_TRUE(source);
  const auto data = (*source)->next_data(0);
  ASSERT_TRUE(data);
  if (data->begin == 0) GTEST_SKIP() << "this file system does not tell its holes";
  EXPECT_EQ(data->begin, 2U << 20);
  EXPECT_GT(data->end, data->begin);
  const auto rest = (*source)->next_data(data->end);
  EXPECT_EQ(rest->begin, 8U << 20);
}

TEST(FileSource, RefusesWhatIsNoDisk) {
  const TempDir dir;
  const auto code = [](const auto& result) { return result ? Code::ok : result.error().code; };
  EXPECT_EQ(code(open_source((dir / "none").string())), Code::not_found);
  EXPECT_EQ(code(open_source(dir.path().string())), Code::invalid_argument);
  EXPECT_EQ(code(open_source("/dev/null")), Code::invalid_argument);
  EXPECT_EQ(code(open_source(dir.write("empty", "").string())), Code::invalid_argument);
}

TEST(FileSource, NoticesGrowthShrinkingReplacementAndLoss) {
  const TempDir dir;
  const auto path = dir.write("a.img", pattern(1 << 20));
  auto source = std::move(*open_source(path));
  EXPECT_TRUE(source->check());
  std::filesystem::resize_file(path, 2 << 20);
  EXPECT_EQ(source->check().error().code, Code::invalid_argument);
  EXPECT_EQ(read_all(*source, (1 << 20) - 4096, 8192).substr(4096), std::string(4096, '\0'))
      << "what grew is no part of it";
  std::filesystem::resize_file(path, 1000);
  EXPECT_EQ(source->check().error().code, Code::invalid_argument);
  EXPECT_NE(read_all(*source, 0, 1 << 20).find("shrank"), std::string::npos);
  EXPECT_NE(read_all(*source, 8192, 4096).find("shrank"), std::string::npos);
  dir.write("b.img", pattern(1 << 20));
  std::filesystem::rename(dir / "b.img", path);
  EXPECT_EQ(source->check().error().code, Code::invalid_argument);
  std::filesystem::remove(path);
  EXPECT_EQ(source->check().error().code, Code::not_found);
}

TEST(FileSource, RestingFileIsProvenByALease) {
  const TempDir dir;
  auto source = std::move(*open_source(dir.write("a.img", pattern(8192))));
  auto witness = std::move(*source->watch());
  const DiskEvidence evidence = witness->testify(false);
  EXPECT_TRUE(evidence.lease_held) << evidence.detail;
  EXPECT_EQ(decide({evidence}).consistency, Consistency::filesystem);
}

TEST(FileSource, WriterBeforeTheStartSpoilsThePoint) {
  const TempDir dir;
  const auto path = dir.write("a.img", pattern(8192));
  const FileDescriptor writer(::open(path.c_str(), O_RDWR));
  auto source = std::move(*open_source(path));
  const DiskEvidence evidence = (*source->watch())->testify(false);
  EXPECT_FALSE(evidence.lease_held);
  EXPECT_TRUE(evidence.lease_refused);
  EXPECT_NE(evidence.detail.find(std::to_string(::getpid())), std::string::npos) << evidence.detail;
  EXPECT_EQ(decide({evidence}).consistency, Consistency::fuzzy);
}

// Opens a file for writing as others do, from a process of their own: open(2) waits for the handler of the lease's
// signal, which a sanitizer runs only where a thread passes through its hands.
testing::AssertionResult open_for_writing_elsewhere(const std::filesystem::path& path) {
  const pid_t writer = ::fork();
  if (writer == 0) ::_exit(::open(path.c_str(), O_RDWR) >= 0 ? 0 : 1);
  int status = 0;
  while (::waitpid(writer, &status, WNOHANG) == 0) ::usleep(1000);
  return status == 0 ? testing::AssertionSuccess() : testing::AssertionFailure() << path << ": status " << status;
}

TEST(FileSource, WriterInTheMiddleSpoilsThePointAndIsNotMadeToWait) {
  const TempDir dir;
  const auto path = dir.write("a.img", pattern(8192));
  auto source = std::move(*open_source(path));
  auto witness = std::move(*source->watch());
  ASSERT_TRUE(witness->testify(false).lease_held);
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(open_for_writing_elsewhere(path));  // the kernel would hold it up for 45 s
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  const DiskEvidence evidence = witness->testify(false);
  EXPECT_FALSE(evidence.lease_held);
  EXPECT_TRUE(evidence.lease_refused);
  EXPECT_EQ(decide({evidence}).consistency, Consistency::fuzzy);
}

TEST(FileSource, ManyLeasesAreHeldAndBrokenSeparately) {
  const TempDir dir;
  std::vector<std::unique_ptr<BlockSource>> sources;
  std::vector<std::unique_ptr<Witness>> witnesses;
  for (int i = 0; i < 5; ++i) {
    sources.push_back(std::move(*open_source(dir.write("d" + std::to_string(i), pattern(4096)))));
    witnesses.push_back(std::move(*sources.back()->watch()));
  }
  ASSERT_TRUE(open_for_writing_elsewhere(dir / "d3"));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(witnesses[static_cast<std::size_t>(i)]->testify(false).lease_held, i != 3) << i;
}

TEST(FileSource, WritersAreFoundByDescriptorAndByMapping) {
  const TempDir dir;
  const auto path = dir.write("a.img", pattern(8192)).string();
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  bool complete = true;
  EXPECT_TRUE(writers_of({}, path, status.st_dev, status.st_ino, complete).empty());
  FileDescriptor fd(::open(path.c_str(), O_RDWR));
  EXPECT_EQ(writers_of({}, path, status.st_dev, status.st_ino, complete).size(), 1U);
  void* map = ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(map, MAP_FAILED);
  fd.reset();
  EXPECT_EQ(writers_of({}, path, status.st_dev, status.st_ino, complete).size(), 1U);
  ::munmap(map, 8192);
  EXPECT_TRUE(writers_of({}, path, status.st_dev, status.st_ino, complete).empty());
}

// A disk that fails in chosen granules, for a while or for good.
struct BadDisk {
  std::string content;
  std::map<std::uint64_t, int> failures;  // by granule; -1: always
  int reads = 0;
  PositionedRead reader() {
    return [this](std::span<std::byte> into, std::uint64_t offset) -> std::int64_t {
      ++reads;
      const std::size_t n = offset >= content.size() ? 0 : std::min(into.size(), content.size() - offset);
      for (std::uint64_t at = offset; at < offset + n; at += 4096) {
        auto bad = failures.find(at / 4096);
        if (bad == failures.end() || bad->second == 0) continue;
        if (bad->second > 0) --bad->second;
        errno = EIO;
        return -1;
      }
      std::memcpy(into.data(), content.data() + offset, n);
      return static_cast<std::int64_t>(n);
    };
  }
};

TEST(Reading, APassingErrorIsReadAroundAndNothingIsMadeUp) {
  BadDisk disk{pattern(64 << 10), {{3, 2}}, 0};
  AlignedBuffer buffer(64 << 10);
  ASSERT_TRUE(read_fully(disk.reader(), "d", disk.content.size(), 0, buffer.span()));
  EXPECT_EQ(std::memcmp(buffer.data(), disk.content.data(), disk.content.size()), 0);
}

TEST(Reading, ALastingErrorNamesItsPlace) {
  BadDisk disk{pattern(64 << 10), {{5, -1}}, 0};
  AlignedBuffer buffer(64 << 10);
  const auto read = read_fully(disk.reader(), "d", disk.content.size(), 0, buffer.span());
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Code::io);
  EXPECT_NE(read.error().what.find("at 20480"), std::string::npos) << read.error().what;
  EXPECT_FALSE(read.error().remedy.empty());
}

TEST(Reading, OddShortReadsEnd) {
  for (const std::size_t size : {1UL, 100UL, 4096UL, 5000UL, 8192UL, 12287UL}) {
    BadDisk disk{pattern(size), {}, 0};
    AlignedBuffer buffer(16384);
    EXPECT_TRUE(read_fully(disk.reader(), "d", size, 0, buffer.span())) << size;
    const auto shorter = read_fully(disk.reader(), "d", size + 1, 0, buffer.span());
    ASSERT_FALSE(shorter) << size;
    EXPECT_EQ(shorter.error().code, Code::invalid_argument);
  }
}

TEST(SourceSet, OpensAnewWhatChangedAndRefusesTheSameDiskTwice) {
  const TempDir dir;
  const auto a = dir.write("a.img", pattern(4096)).string();
  const auto b = dir.write("sub/a.img", pattern(8192)).string();
  SourceSet set({a, b});
  ASSERT_TRUE(set.refresh());
  EXPECT_EQ(set.total_bytes(), 12288U);
  EXPECT_NE(set.name(0), set.name(1));
  const auto generation = set.generation();
  ASSERT_TRUE(set.refresh());
  EXPECT_EQ(set.generation(), generation);
  std::filesystem::resize_file(b, 4096);
  EXPECT_FALSE(set.check());
  ASSERT_TRUE(set.refresh());
  EXPECT_GT(set.generation(), generation);
  EXPECT_EQ(set.total_bytes(), 8192U);
  std::filesystem::remove(b);
  EXPECT_EQ(set.refresh().error().code, Code::not_found);

  std::filesystem::create_symlink(a, dir / "link");
  SourceSet twice({a, (dir / "link").string()});
  EXPECT_EQ(twice.refresh().error().code, Code::invalid_argument);
  SourceSet none({});
  EXPECT_NE(none.refresh().error().remedy.find("protect"), std::string::npos);
}

TEST(SourceSet, NamesAreUniqueAndShort) {
  EXPECT_EQ(disk_names({"/dev/vda", "/srv/x.img"}), (std::vector<std::string>{"vda", "x.img"}));
  EXPECT_EQ(disk_names({"/a/x.img", "/b/x.img"}), (std::vector<std::string>{"a_x.img", "b_x.img"}));
  EXPECT_LE(disk_names({"/" + std::string(200, 'n')})[0].size(), limits::kNameLengthMax);
}

}  // namespace
}  // namespace tidemark::agent
