#include "cli/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "cli/raw_image.h"
#include "cli/verify.h"
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
  EXPECT_THAT(left(), testing::UnorderedElementsAre("web1.img", "web1.img.manifest.json"));
  EXPECT_EQ(store_.released, 1) << "the point is held no longer than it takes";
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
  EXPECT_THAT(left(), testing::UnorderedElementsAre("kept.img", "kept.img.manifest.json"));
}

TEST_F(Export, AnEarlierExportIsReplacedWhole) {
  store_.disks = {{"vda", sample_content(1)}, {"vdb", sample_content(2)}};
  ASSERT_TRUE(run({.output = output_ + "/web1/"}));
  EXPECT_EQ(run({.output = output_ + "/web1"}).error().code, Code::already_exists);
  store_.change([&] { store_.disks = {{"vdc", sample_content(3)}}; });
  ASSERT_TRUE(run({.output = output_ + "/web1/", .force = true}));
  EXPECT_EQ(content_of(output_ + "/web1/vdc.img"), store_.disks[0].content);
  EXPECT_FALSE(fs::exists(output_ + "/web1/vda.img"));
  std::ofstream(output_ + "/web1/notes.txt") << "mine";
  EXPECT_EQ(run({.output = output_ + "/web1", .force = true}).error().code, Code::already_exists);
  EXPECT_EQ(content_of(output_ + "/web1/notes.txt"), "mine");
  EXPECT_THAT(left(), testing::ElementsAre("web1"));
}

// What stands under names that people look for.
std::vector<std::string> shown(std::vector<std::string> names) {
  std::erase_if(names, [](const std::string& name) { return name.front() == '.'; });
  return names;
}

TEST_F(Export, AServerThatDiesIsGoneOnWith) {
  store_.disks = {{"vda", sample_content(1)}};
  store_.cut_data_after = 100'000;
  for (const char* output : {"/web1.img", "/web1/"}) {
    const auto outcome = run({.output = output_ + output});
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, Code::unavailable);
    EXPECT_THAT(outcome.error().remedy, testing::HasSubstr("goes on where this one stopped"));
    EXPECT_THAT(shown(left()), testing::IsEmpty());
  }
  store_.change([&] { store_.cut_data_after.reset(); });
  ASSERT_TRUE(run({.output = output_ + "/web1.img"}));
  ASSERT_TRUE(run({.output = output_ + "/web1/"}));
  EXPECT_EQ(content_of(output_ + "/web1.img"), store_.disks[0].content);
  EXPECT_EQ(content_of(output_ + "/web1/vda.img"), store_.disks[0].content);
  EXPECT_THAT(left(), testing::UnorderedElementsAre("web1.img", "web1.img.manifest.json", "web1"));
}

TEST_F(Export, AnInterruptedOneShowsNothing) {
  store_.disks = {{"vda", sample_content(1)}};
  store_.hang = true;
  std::thread stopper([&] {
    while (server_.requests().size() < 5) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    client_.stop();
  });
  const auto outcome = run({.output = output_ + "/web1.img"});
  stopper.join();
  EXPECT_EQ(outcome.error().code, Code::cancelled);
  EXPECT_THAT(shown(left()), testing::IsEmpty());
}

TEST_F(Export, WhatTheJournalSaysIsComparedNotBelieved) {
  store_.disks = {{"vda", sample_content(1)}};
  // A first piece that is whole, and a journal that lies about the second.
  const std::string partial = output_ + "/.web1.img.tidemark-partial";
  store_.cut_data_after = 200'000;
  ASSERT_FALSE(run({.output = output_ + "/web1.img", .threads = 1}));
  store_.change([&] { store_.cut_data_after.reset(); });
  std::ofstream(partial + ".state", std::ios::app) << "0 00000000000000010000000000000001\n1 garbage\n";
  std::ofstream(partial, std::ios::in | std::ios::out) << "what somebody wrote into it";
  ASSERT_TRUE(run({.output = output_ + "/web1.img"}));
  EXPECT_EQ(content_of(output_ + "/web1.img"), store_.disks[0].content);
}

TEST_F(Export, WhatIsLeftOfAnotherPointIsBegunAnew) {
  store_.disks = {{"vda", sample_content(1)}};
  const std::string partial = output_ + "/.web1.img.tidemark-partial";
  std::ofstream(partial) << std::string(6_MiB, 'x');
  std::ofstream(partial + ".state") << "{\"epoch\":6}\n0 00000000000000010000000000000001\n";
  ASSERT_TRUE(run({.output = output_ + "/web1.img"}));
  EXPECT_EQ(content_of(output_ + "/web1.img"), store_.disks[0].content);
}

TEST_F(Export, AnOutputThatCannotHoldItIsSaidSo) {
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
  EXPECT_THAT(left(), testing::IsEmpty()) << "nothing was written that would be worth to be kept";
}

TEST_F(Export, VerificationTellsWhatIsDamaged) {
  store_.disks = {{"vda", sample_content(1)}};
  Progress progress(silent_, false);
  EXPECT_EQ(verify_point(client_, "web1", "latest", progress).value()["ok"], true);
  store_.change([&] { store_.damaged = "vda at 4096"; });
  const json verdict = verify_point(client_, "web1", "latest", progress).value();
  EXPECT_EQ(verdict["ok"], false);
  EXPECT_EQ(verdict["damaged"][0], "vda at 4096");
  EXPECT_EQ(verdict["epoch"], 7);
}

TEST(RawImage, HolesOnlyWhereZeroesAre) {
  char name[] = "/tmp/tidemark-cli-XXXXXX";
  const std::string directory = ::mkdtemp(name);
  for (const bool fresh : {true, false}) {
    const std::string path = directory + (fresh ? "/fresh" : "/used");
    if (!fresh) std::ofstream(path) << std::string(1_MiB, 'x');
    auto image = RawImage::open_file(path, "image", 1_MiB);
    ASSERT_TRUE(image);
    EXPECT_EQ(image->fresh(), fresh);
    std::string content(300'000, '\0');
    content[100] = 'a';
    content[299'999] = 'b';
    ASSERT_TRUE(image->write_sparse(1000, std::as_bytes(std::span(content))));
    ASSERT_TRUE(image->write_zeroes(500'000, 100'001));
    std::string expected(1_MiB, fresh ? '\0' : 'x');
    expected.replace(1000, content.size(), content);
    expected.replace(500'000, 100'001, 100'001, '\0');
    EXPECT_EQ(content_of(path), expected);
  }
  fs::remove_all(directory);
}

}  // namespace
}  // namespace tidemark::cli
