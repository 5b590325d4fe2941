// The main job through a whole server: enrol, replicate, read back, restart, resume.
#include "server/server.h"

#include "server/node.h"
#include "server_fixture.h"

namespace tidemark::server {
namespace {

TEST_F(ServerTest, AMachineEnrolsReplicatesAndIsReadBackByteForByte) {
  start();
  const auto who = enrolled();
  auto agent = connect(who);
  ASSERT_TRUE(agent->welcomed());
  auto plain = initial(*agent);
  const auto first = admin("GET", "/v1/machines/web1/points/latest/disks/vda/data");
  EXPECT_EQ(first.status, 200) << first.body.substr(0, 200);
  EXPECT_TRUE(first.body == text_of(plain));
  EXPECT_NE(first.head.find("Tidemark-Epoch: 1"), std::string::npos);

  std::vector<std::byte> changed(8192, std::byte{7});
  agent->begin(2, pb::DELTA);
  agent->send(0, 3, changed);
  ASSERT_TRUE(agent->commit(pb::FILESYSTEM));
  auto second = plain;
  std::copy(changed.begin(), changed.end(), second.begin() + 3 * 4096);
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/latest/disks/0/data").body == text_of(second));
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/epoch:1/disks/0/data").body == text_of(plain))
      << "the older point is as it was";

  const auto points = admin("GET", "/v1/machines/web1/points").json();
  ASSERT_EQ(points["points"].size(), 2u) << points;
  EXPECT_EQ(points["points"][0]["epoch"], 2);
  EXPECT_EQ(points["points"][0]["consistency"], "filesystem");
  EXPECT_EQ(points["points"][1]["disks"][0]["size"], 256_KiB);
  const auto shown = machine();
  EXPECT_EQ(shown["state"], "continuous");
  EXPECT_EQ(shown["connected"], true);
  EXPECT_EQ(shown["durable_epoch"], 2);
  EXPECT_EQ(metric("tidemark_epochs_durable_total"), 2);
  EXPECT_EQ(metric("tidemark_ack_seconds_count"), 2);
  EXPECT_EQ(metric("tidemark_sessions{"), 1);
}

TEST_F(ServerTest, RangesOfADiskAreServedAndImpossibleOnesRefused) {
  start();
  auto agent = connect(enrolled());
  ASSERT_TRUE(agent->welcomed());
  const auto plain = initial(*agent);
  const std::string target = "/v1/machines/web1/points/latest/disks/vda/data";
  auto answer = admin("GET", target, "", "Range: bytes=5000-9999\r\n");
  EXPECT_EQ(answer.status, 206);
  EXPECT_NE(answer.head.find("Content-Range: bytes 5000-9999/262144"), std::string::npos) << answer.head;
  EXPECT_TRUE(answer.body == text_of(std::span(plain).subspan(5000, 5000)));
  answer = admin("GET", target, "", "Range: bytes=-100\r\n");
  EXPECT_TRUE(answer.body == text_of(std::span(plain).last(100)));
  answer = admin("GET", target, "", "Range: bytes=262144-\r\n");
  EXPECT_EQ(answer.status, 416);
  EXPECT_NE(answer.head.find("Content-Range: bytes */262144"), std::string::npos) << answer.head;
  answer = admin("GET", "/v1/machines/web1/points/latest/disks/vdz/data", "", "Range: bytes=0-3\r\n");
  EXPECT_EQ(answer.status, 404);
  EXPECT_EQ(answer.json()["error"]["code"], "not-found")
      << "an error is whole whatever range was asked for: " << answer.body;
  const auto map = admin("GET", "/v1/machines/web1/points/latest/disks/vda/map").json();
  EXPECT_EQ(map["size"], 262144);
  EXPECT_EQ(map["ranges"][0]["zero"], false);
}

TEST_F(ServerTest, WhatWasNeverWrittenReadsAsZeroesAndIsVerified) {
  start();
  auto agent = connect(enrolled());
  ASSERT_TRUE(agent->welcomed());
  const auto disk = agent->open_disk("vda", 40_MiB + 512);
  agent->begin(1, pb::INITIAL);
  const std::vector<std::byte> page(4096, std::byte{9});
  agent->send(disk, 5000, page);
  ASSERT_TRUE(agent->commit());
  std::string expected(40_MiB + 512, '\0');
  std::fill_n(expected.begin() + 5000 * 4096, 4096, 9);
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/latest/disks/vda/data").body == expected);
  const auto verified = admin("POST", "/v1/machines/web1/points/latest/verify");
  EXPECT_EQ(verified.status, 200);
  const auto last =
      nlohmann::json::parse(verified.body.substr(verified.body.rfind('\n', verified.body.size() - 2) + 1));
  EXPECT_EQ(last["ok"], true) << verified.body;
  EXPECT_EQ(last["sha256"]["vda"], to_hex(sha256(expected)));
}

TEST_F(ServerTest, AfterARestartEverythingIsThereAndTheMachineGoesOn) {
  start();
  const auto who = enrolled();
  auto agent = connect(who);
  ASSERT_TRUE(agent->welcomed());
  const auto plain = initial(*agent);
  const auto memory = agent->session.memory();
  restart();
  EXPECT_TRUE(agent->until([&] { return agent->goodbye.has_value(); })) << "the stopping server says goodbye";
  EXPECT_GT(agent->retry_after_ms, 0u);
  EXPECT_EQ(machine()["state"], "disconnected");
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/latest/disks/vda/data").body == text_of(plain));
  auto again = connect(who, memory);
  ASSERT_TRUE(again->welcomed()) << again->server_error->message();
  EXPECT_FALSE(again->diverged);
  again->begin(2, pb::DELTA);
  again->send(0, 0, std::vector<std::byte>(4096, std::byte{1}));
  EXPECT_TRUE(again->commit());
}

TEST_F(ServerTest, AnInitialSyncIsResumedWhereItIsDurable) {
  start();
  const auto who = enrolled();
  auto agent = connect(who);
  ASSERT_TRUE(agent->welcomed());
  std::vector<std::byte> plain(1_MiB);
  Random(3).fill(plain);
  const auto disk = agent->open_disk("vda", plain.size());
  agent->begin(1, pb::INITIAL);
  agent->send(disk, 0, std::span(plain).first(512_KiB));
  ASSERT_TRUE(agent->until([&] { return agent->open_progress && agent->open_progress->blocks() == 8; }));
  const auto memory = agent->session.memory();
  agent->line.cut();
  auto again = connect(who, memory);
  ASSERT_TRUE(again->welcomed()) << again->server_error->message();
  ASSERT_TRUE(again->session.resumable_epoch());
  EXPECT_EQ(again->session.resumable_epoch()->positions(0).granule(), 128u);
  again->begin(1, pb::INITIAL);
  again->send(disk, 128, std::span(plain).subspan(512_KiB));
  ASSERT_TRUE(again->commit());
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/latest/disks/vda/data").body == text_of(plain));
}

TEST_F(ServerTest, AnInitialSyncThatWasCutBeforeItsFirstBlockGoesOn) {
  start();
  const auto who = enrolled();
  auto agent = connect(who);
  ASSERT_TRUE(agent->welcomed());
  std::vector<std::byte> plain(256_KiB);
  Random(5).fill(plain);
  const auto disk = agent->open_disk("vda", plain.size());
  agent->begin(1, pb::INITIAL);
  ASSERT_TRUE(agent->line.wait_for(wire::FrameType::epoch_begun));
  const auto memory = agent->session.memory();
  agent->line.cut();
  auto again = connect(who, memory);
  ASSERT_TRUE(again->welcomed());
  ASSERT_TRUE(again->session.resumable_epoch());
  EXPECT_EQ(again->session.resumable_epoch()->blocks(), 0U);
  EXPECT_EQ(again->session.resumable_epoch()->positions_size(), 0);
  again->begin(1, pb::INITIAL);
  again->send(disk, 0, plain);
  ASSERT_TRUE(again->commit());
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/latest/disks/vda/data").body == text_of(plain));
  EXPECT_EQ(metric("tidemark_epochs_aborted_total"), 0);
}

TEST_F(ServerTest, ADeltaThatWasCutOffNeverWas) {
  start();
  const auto who = enrolled();
  auto agent = connect(who);
  ASSERT_TRUE(agent->welcomed());
  const auto plain = initial(*agent);
  agent->begin(2, pb::DELTA);
  agent->send(0, 0, std::vector<std::byte>(4096, std::byte{1}));
  const auto memory = agent->session.memory();
  agent->line.cut();
  auto again = connect(who, memory);
  ASSERT_TRUE(again->welcomed()) << again->server_error->message();
  EXPECT_FALSE(again->session.resumable_epoch());
  EXPECT_GE(again->session.next_epoch(), EpochNumber(2));
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/latest/disks/vda/data").body == text_of(plain));
  again->begin(again->session.next_epoch().value(), pb::DELTA);
  again->send(0, 1, std::vector<std::byte>(4096, std::byte{2}));
  EXPECT_TRUE(again->commit());
}

TEST_F(ServerTest, DigestsAreThoseOfThePaddedChunks) {
  start();
  auto agent = connect(enrolled());
  ASSERT_TRUE(agent->welcomed());
  const auto disk = agent->open_disk("vda", 192_KiB + 4096 + 512);
  agent->begin(1, pb::INITIAL);
  std::vector<std::byte> chunk(64_KiB);
  Random(4).fill(chunk);
  agent->send(disk, 16, chunk);
  ASSERT_TRUE(agent->commit());
  pb::DigestRequest request;
  request.set_disk(disk);
  request.set_chunks(1024);
  request.set_epoch(1);
  ASSERT_TRUE(agent->session.request_digests(request));
  ASSERT_TRUE(agent->session.request_digests(request)) << "a second may queue behind the first";
  ASSERT_TRUE(agent->until([&] { return agent->digests.size() == 2; }));
  const std::string& digests = agent->digests.front().sha256();
  ASSERT_EQ(digests.size(), 4 * 32u);
  const auto digest_at = [&](std::size_t i) { return digests.substr(i * 32, 32); };
  EXPECT_EQ(digest_at(0), text_of(sha256(std::vector<std::byte>(64_KiB))));
  EXPECT_EQ(digest_at(1), text_of(sha256(chunk)));
  EXPECT_EQ(digest_at(3), text_of(sha256(std::vector<std::byte>(8192)))) << "4608 bytes, padded to whole granules";
  EXPECT_EQ(agent->digests.back().sha256(), digests);
}

TEST_F(ServerTest, ASecondServerOnTheSameDirectoryIsRefused) {
  start();
  const auto second = Server::start(data, config, storage::system_files(), clock);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::busy);
  EXPECT_EQ(second.error().what, "another tidemarkd serves this data directory");
}

TEST_F(ServerTest, APartitionThatIsMissingStopsOnlyItself) {
  std::filesystem::remove_all(Directory(data).partition(PartitionId(1)));
  start();
  const auto health = admin("GET", "/v1/health");
  EXPECT_EQ(health.status, 503);
  EXPECT_EQ(health.json()["partitions"][0]["state"], "serving");
  EXPECT_EQ(health.json()["partitions"][1]["state"], "stopped");
  auto agent = connect(enrolled());
  ASSERT_TRUE(agent->welcomed()) << "new machines go where there is a partition";
  EXPECT_EQ(machine()["partition"], 0);
}

}  // namespace
}  // namespace tidemark::server
