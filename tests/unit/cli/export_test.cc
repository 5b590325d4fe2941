#include "cli/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "cli/image_file.h"
#include "fake_store.h"

namespace tidemark::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

class Export : public testing::Test {
 protected:
  Export()
      : server_([this](const FakeAdmin::Request& request) { return store_.answer(request); }),
        client_(server_.socket()) {
    output_ = server_.directory() + "/out";
    fs::create_directory(output_);
  }
  Result<json> run(ExportRequest request) {
    request.machine = "web1";
    if (request.at.empty()) request.at = "latest";
    Progress progress(silent_, false);
    return export_point(client_, request, progress);
  }
  std::vector<std::string> left() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(output_)) names.push_back(entry.path().filename());
    return names;
  }

  FakeStore store_;
  FakeAdmin server_;
  AdminClient client_;
  std::string output_;
  std::ostringstream silent_;
};

TEST_F(Export, OneDiskBecomesASparseFile) {
  store_.disks = {{"vda", sample_content(1)}};
  const auto manifest = run({.output = output_ + "/web1.img"});
  ASSERT_TRUE(manifest) << manifest.error().message();
  EXPECT_EQ(content_of(output_ + "/web1.img"), store_.disks[0].content);
  EXPECT_EQ((*manifest)["disks"][0]["sha256"], to_hex(sha256(store_.disks[0].content)));
  EXPECT_EQ((*manifest)["epoch"], 7);
  struct stat made{};
  ASSERT_EQ(::stat((output_ + "/web1.img").c_str(), &made), 0);
  EXPECT_LT(static_cast<std::uint64_t>(made.st_blocks) * 512, 2_MiB) << "zeroes are holes, told by the map or not";
  EXPECT_EQ(made.st_mode & 0777, 0600u);
  for (const auto& request : server_.requests())
    EXPECT_FALSE(request.range && request.range->first < 3_MiB && request.range->second >= 1_MiB)
        << "zeroes were fetched";
  EXPECT_THAT(left(), testing::ElementsAre("web1.img"));
}

TEST_F(Export, SeveralDisksBecomeADirectoryWithAManifest) {
  store_.disks = {{"data.img", sample_content(1)}, {"../data", sample_content(2)}};
  const auto made = run({.at = "-15m", .output = output_ + "/web1"});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(content_of(output_ + "/web1/data.img"), store_.disks[0].content);
  EXPECT_EQ(content_of(output_ + "/web1/data-1.img"), store_.disks[1].content);
  const json manifest = json::parse(content_of(output_ + "/web1/manifest.json"));
  EXPECT_EQ(manifest["time"], "2026-11-20T10:15:03.250000Z");
  EXPECT_EQ(manifest["epoch"], 7);
  EXPECT_EQ(manifest["disks"][1]["file"], "data-1.img");
  EXPECT_EQ(manifest["disks"][1]["size"], store_.disks[1].content.size());
  EXPECT_EQ(manifest["disks"][1]["sha256"], to_hex(sha256(store_.disks[1].content)));
}

TEST_F(Export, OneDiskOfSeveralBecomesAFile) {
  store_.disks = {{"vda", sample_content(1)}, {"vdb", sample_content(2)}};
  ASSERT_TRUE(run({.disk = "vdb", .output = output_ + "/b.img"}));
  EXPECT_EQ(content_of(output_ + "/b.img"), store_.disks[1].content);
  const Error error = run({.disk = "vdc", .output = output_ + "/c.img"}).error();
  EXPECT_EQ(error.code, Code::not_found);
  EXPECT_THAT(error.remedy, testing::HasSubstr("vda, vdb"));
}

TEST_F(Export, ReplacesNothingUnasked) {
  store_.disks = {{"vda", sample_content(1)}};
  std::ofstream(output_ + "/kept.img") << "precious";
  EXPECT_EQ(run({.output = output_ + "/kept.img"}).error().code, Code::already_exists);
  EXPECT_EQ(content_of(output_ + "/kept.img"), "precious");
  ASSERT_TRUE(run({.output = output_ + "/kept.img", .force = true}));
  EXPECT_EQ(content_of(output_ + "/kept.img"), store_.disks[0].content);

  EXPECT_EQ(run({.output = output_}).error().code, Code::already_exists);
  EXPECT_EQ(run({.output = output_, .force = true}).error().code, Code::already_exists)
      << "no export made what is in there";
  EXPECT_EQ(run({.output = "/dev/null", .force = true}).error().code, Code::already_exists);
  EXPECT_EQ(run({.output = output_ + "/missing/x.img"}).error().code, Code::not_found);
  EXPECT_THAT(left(), testing::ElementsAre("kept.img"));
}

TEST_F(Export, AnEarlierExportIsReplacedWhole) {
  store_.disks = {{"vda", sample_content(1)}, {"vdb", sample_content(2)}};
  ASSERT_TRUE(run({.output = output_ + "/web1/"}));
  EXPECT_EQ(run({.output = output_ + "/web1"}).error().code, Code::already_exists);
  store_.disks = {{"vdc", sample_content(3)}};
  ASSERT_TRUE(run({.output = output_ + "/web1/", .force = true}));
  EXPECT_EQ(content_of(output_ + "/web1/vdc.img"), store_.disks[0].content);
  EXPECT_FALSE(fs::exists(output_ + "/web1/vda.img"));
  std::ofstream(output_ + "/web1/notes.txt") << "mine";
  EXPECT_EQ(run({.output = output_ + "/web1", .force = true}).error().code, Code::already_exists);
  EXPECT_EQ(content_of(output_ + "/web1/notes.txt"), "mine");
  EXPECT_THAT(left(), testing::ElementsAre("web1"));
}

TEST_F(Export, AServerThatDiesLeavesNothingBehind) {
  store_.disks = {{"vda", sample_content(1)}};
  store_.cut_data_after = 100'000;
  const auto outcome = run({.output = output_ + "/web1.img"});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::unavailable);
  EXPECT_THAT(left(), testing::IsEmpty());
  EXPECT_FALSE(run({.output = output_ + "/web1/"}));
  EXPECT_THAT(left(), testing::IsEmpty());
}

TEST_F(Export, AnInterruptedOneLeavesNothingBehind) {
  store_.disks = {{"vda", sample_content(1)}};
  store_.hang = true;
  std::thread stopper([&] {
    while (server_.requests().size() < 3) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    client_.stop();
  });
  const auto outcome = run({.output = output_ + "/web1.img"});
  stopper.join();
  EXPECT_EQ(outcome.error().code, Code::cancelled);
  EXPECT_THAT(left(), testing::IsEmpty());
}

TEST_F(Export, AnOutputThatCannotHoldItIsSaidSoAndRemoved) {
  store_.disks = {{"vda", sample_content(1)}};
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1_MiB, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const auto outcome = run({.output = output_ + "/web1.img"});
  ::setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, Code::no_space) << outcome.error().message();
  EXPECT_EQ(outcome.error().object, output_ + "/web1.img");
  EXPECT_THAT(left(), testing::IsEmpty());
}

TEST_F(Export, VerificationTellsWhatIsDamaged) {
  store_.disks = {{"vda", sample_content(1)}};
  Progress progress(silent_, false);
  EXPECT_EQ(verify_point(client_, "web1", "latest", progress).value()["ok"], true);
  store_.damaged = "vda at 4096";
  const json verdict = verify_point(client_, "web1", "latest", progress).value();
  EXPECT_EQ(verdict["ok"], false);
  EXPECT_EQ(verdict["damaged"][0], "vda at 4096");
  EXPECT_EQ(verdict["epoch"], 7);
}

TEST(ImageFile, IsFinishedOnlyWhenWhole) {
  char name[] = "/tmp/tidemark-cli-XXXXXX";
  const std::string directory = ::mkdtemp(name);
  auto file = ImageFile::create(directory + "/a", "a", 10'000);
  ASSERT_TRUE(file);
  EXPECT_TRUE(file->append(std::vector<std::byte>(6000)));
  EXPECT_EQ(file->append(std::vector<std::byte>(4001)).error().code, Code::protocol);
  EXPECT_EQ(file->append_zeroes(4001).error().code, Code::protocol);
  EXPECT_FALSE(file->finish());
  EXPECT_FALSE(ImageFile::create(directory + "/a", "a", 10'000)) << "exists";
  fs::remove_all(directory);
}

}  // namespace
}  // namespace tidemark::cli
