#include "server/directory.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "server/authority.h"
#include "server/config.h"
#include "server/private_file.h"
#include "storage/system_files.h"
#include "temporary_directory.h"

namespace tidemark::server {
namespace {

unsigned mode_of(const std::string& path) {
  struct stat info{};
  EXPECT_EQ(::stat(path.c_str(), &info), 0) << path;
  return info.st_mode & 0777;
}

Result<Superblock> make(const std::string& path, InitOptions options = {}) {
  options.partitions = std::min(options.partitions, 2U);
  return create_directory(storage::system_files(), Directory(path), options, Clock::system());
}

TEST(Directory, InitMakesEverythingAndNothingIsReadableByOthers) {
  TemporaryDirectory top;
  const Directory directory(top / "a/b");
  const auto made = make(directory.path(),
                         {.partitions = 2, .name = "depot", .addresses = {"staging.example:7000", "192.0.2.7:7000"}});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(mode_of(directory.path()), 0700u);
  EXPECT_EQ(mode_of(directory.authority()), 0700u);
  for (const char* file : {"ca.key", "ca.pem", "server.key", "server.pem"})
    EXPECT_EQ(mode_of(directory.authority() + "/" + file), 0600u) << file;
  const auto read = read_superblock(directory);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->server_id, made->server_id);
  EXPECT_EQ(read->name, "depot");
  EXPECT_EQ(read->partitions, 2u);
  EXPECT_EQ(read->created_us, made->created_us);
  EXPECT_EQ(read->addresses.front(), "staging.example:7000");
  EXPECT_EQ(load_config(directory.config())->server.listen, "0.0.0.0:7000");
  EXPECT_TRUE(Authority::load(directory.authority()));
  EXPECT_EQ(mode_of(directory.partition(PartitionId(1))) & 0007, 0u)
      << "the data directory's mode covers it in any case";
}

TEST(Directory, AStoreInOneDirectoryStaysReadableByOlderServers) {
  TemporaryDirectory top;
  const Directory directory(top / "a");
  ASSERT_TRUE(make(directory.path()));
  const auto text = read_private_file(directory.superblock());
  ASSERT_TRUE(text);
  EXPECT_NE(text->find("\"format\": 1"), std::string::npos) << *text;
  EXPECT_EQ(text->find("director"), std::string::npos) << *text;
  const auto superblock = read_superblock(directory);
  ASSERT_TRUE(superblock);
  EXPECT_EQ(superblock->first_partitions, 2u);
  EXPECT_EQ(partition_path(directory, *superblock, PartitionId(1)), directory.partition(PartitionId(1)));
}

TEST(Directory, PartitionsAreSpreadOverDataDirectoriesAndMoreCanBeAdded) {
  TemporaryDirectory top;
  const Directory directory(top / "main");
  auto& files = storage::system_files();
  ASSERT_EQ(::mkdir((top / "one").c_str(), 0755), 0);
  ASSERT_EQ(::mkdir((top / "one/lost+found").c_str(), 0700), 0) << "as in a new file system";
  const auto init = [&](const std::string& name, std::uint32_t partitions, std::vector<std::string> directories) {
    return create_directory(
        files, Directory(top / name),
        {.partitions = partitions, .name = "n", .addresses = {}, .data_directories = std::move(directories)},
        Clock::system());
  };
  const auto made = init("main", 3, {top / "one", top / "two"});
  ASSERT_TRUE(made) << made.error().message();
  const auto read = read_superblock(directory);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(read->directories, made->directories);
  EXPECT_EQ(read->format, 2);
  EXPECT_EQ(home_of(directory, *read, PartitionId(0)), top / "one");
  EXPECT_EQ(home_of(directory, *read, PartitionId(1)), top / "two");
  EXPECT_EQ(home_of(directory, *read, PartitionId(2)), top / "one");
  const auto marker = read_marker(files, top / "two");
  ASSERT_TRUE(marker) << marker.error().message();
  EXPECT_EQ(*marker, (DirectoryMarker{read->server_id, read->directories[1].id}));
  EXPECT_EQ(mode_of(top / "two"), 0700u);

  EXPECT_EQ(add_directory(files, directory, top / "x", 62, Clock::system()).error().object, "--partitions");
  const auto more = add_directory(files, directory, top / "three", 2, Clock::system());
  ASSERT_TRUE(more) << more.error().message();
  EXPECT_EQ(more->partitions, 5u);
  EXPECT_EQ(more->first_partitions, 3u);
  EXPECT_EQ(read_superblock(directory)->directories, more->directories);
  EXPECT_EQ(home_of(directory, *more, PartitionId(4)), top / "three");

  // Mounted elsewhere: its path changes, and nothing else.
  ASSERT_EQ(::rename((top / "two").c_str(), (top / "four").c_str()), 0);
  EXPECT_EQ(read_marker(files, top / "two").error().code, Code::not_found);
  const auto moved = add_directory(files, directory, top / "four", 1, Clock::system());
  ASSERT_TRUE(moved) << moved.error().message();
  EXPECT_EQ(moved->partitions, 5u);
  EXPECT_EQ(home_of(directory, *moved, PartitionId(1)), top / "four");

  EXPECT_EQ(add_directory(files, directory, top / "main", 1, Clock::system()).error().code, Code::already_exists);
  EXPECT_EQ(init("other", 1, {top / "three"}).error().code, Code::already_exists) << "it is another server's";
  EXPECT_EQ(init("other", 1, {top / "y", top / "z"}).error().object, "--data-directory") << "one would be empty";
  EXPECT_EQ(init("other", 2, {top / "y", top / "y"}).error().object, "--data-directory") << "the same twice";
}

TEST(Directory, InitRefusesADirectoryThatIsNotEmpty) {
  TemporaryDirectory top;
  std::ofstream(top / "file") << "x";
  const auto refused = make(top.path());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::already_exists);
  EXPECT_EQ(refused.error().what, "is not empty");
  ASSERT_TRUE(make(top / "d"));
  EXPECT_EQ(make(top / "d").error().what, "is a data directory already");
}

TEST(Directory, InitRefusesWhatCannotBe) {
  TemporaryDirectory top;
  EXPECT_EQ(make(top / "d", {.partitions = 0, .name = {}, .addresses = {}}).error().code, Code::invalid_argument);
  EXPECT_EQ(make(top / "d", {.partitions = 1, .name = {}, .addresses = {"nowhere"}}).error().object, "--address");
}

TEST(Directory, ASuperblockThatIsMissingDamagedOrOfTheFutureIsToldApart) {
  TemporaryDirectory top;
  const Directory directory(top.path());
  EXPECT_EQ(read_superblock(directory).error().code, Code::not_found);
  const auto code_of = [&](const std::string& text) {
    EXPECT_TRUE(write_private_file(directory.superblock(), text));
    const auto read = read_superblock(directory);
    return read ? Code::ok : read.error().code;
  };
  EXPECT_EQ(code_of(""), Code::corrupt);
  EXPECT_EQ(code_of("{}"), Code::corrupt);
  EXPECT_EQ(code_of("{\"format\": 3}"), Code::unsupported);
  EXPECT_EQ(code_of("{\"format\": 1}"), Code::corrupt);
  const std::string rest = "\"name\": \"n\", \"addresses\": [], \"created\": \"2026-11-20T10:15:03Z\"";
  EXPECT_EQ(
      code_of("{\"format\": 1, \"server_id\": \"00112233445566778899aabbccddeeff\", \"partitions\": 1, " + rest + "}"),
      Code::ok);
  EXPECT_EQ(
      code_of("{\"format\": 1, \"server_id\": \"00112233445566778899aabbccddeeff\", \"partitions\": 0, " + rest + "}"),
      Code::corrupt);
  EXPECT_EQ(code_of("{\"format\": 1, \"server_id\": \"zz\", \"partitions\": 1, " + rest + "}"), Code::corrupt);
  EXPECT_EQ(code_of("{\"format\": 1, \"server_id\": 3, \"partitions\": 1, " + rest + "}"), Code::corrupt);
}

TEST(Directory, TheServersCertificateIsReissuedForOtherAddresses) {
  TemporaryDirectory top;
  const Directory directory(top / "d");
  auto made = make(directory.path());
  ASSERT_TRUE(made) << made.error().message();
  const auto before = Authority::load(directory.authority());
  made->addresses = {"other.example:1"};
  ASSERT_TRUE(Authority::renew_server(directory.authority(), *made, Clock::system()));
  const auto after = Authority::load(directory.authority());
  ASSERT_TRUE(before && after);
  EXPECT_EQ(before->ca_sha256(), after->ca_sha256());
  EXPECT_NE(before->server_info().serial, after->server_info().serial);
  EXPECT_EQ(certificate_names({"other.example:1", "other.example:2"}).front(), "other.example");
}

}  // namespace
}  // namespace tidemark::server
