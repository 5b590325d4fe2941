// Quotas and space through a whole server, with an agent that does as it is told.
#include "server_fixture.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

class ServerSpace : public ServerTest {
 protected:
  json space(const std::string& name = "web1") { return machine(name)["space"]; }
  AdminAnswer quota(const std::string& body, const std::string& name = "web1") {
    return admin("PUT", "/v1/machines/" + name + "/quota", body);
  }
  std::vector<std::byte> random_bytes(std::size_t size) {
    std::vector<std::byte> bytes(size);
    random_.fill(bytes);
    return bytes;
  }
  // An epoch that writes the disk from its begin, in frames.
  bool epoch(ScriptedAgent& agent, pb::EpochKind kind, std::uint64_t size) {
    agent.begin(agent.session.next_epoch().value(), kind);
    for (std::uint64_t at = 0; at < size; at += 128_KiB)
      agent.send(0, at / limits::kGranuleSize, random_bytes(std::min(size - at, 128_KiB)));
    return agent.commit();
  }
  std::unique_ptr<ScriptedAgent> with_disk(const Identity& who, std::uint64_t size) {
    auto agent = connect(who);
    EXPECT_TRUE(agent->welcomed());
    agent->open_disk("vda", 8_MiB);
    EXPECT_TRUE(epoch(*agent, pb::INITIAL, size));
    return agent;
  }
  Random random_{3};

  // The server looks once a second; the bound is for a broken build.
  bool until(const std::function<bool()>& condition) { return run_until(io, condition); }
};

TEST_F(ServerSpace, WhatIsStoredIsToldEverywhere) {
  start();
  const auto agent = connect(enrolled());
  ASSERT_TRUE(agent->welcomed());
  initial(*agent, 256_KiB);
  // Random bytes are stored as they are: four blocks of 64 KiB, a header each.
  constexpr std::uint64_t kStored = 4 * (48 + 64_KiB);
  ASSERT_TRUE(until([&] { return space()["stored_bytes"] == kStored; })) << space();
  EXPECT_EQ(space()["logical_bytes"], 256_KiB);
  EXPECT_EQ(space()["quota_bytes"], nullptr);
  EXPECT_EQ(space()["quota_state"], "none");
  EXPECT_EQ(space()["held"], nullptr);
  const json all = admin("GET", "/v1/space").json();
  ASSERT_EQ(all["machines"].size(), 1u);
  EXPECT_EQ(all["machines"][0]["name"], "web1");
  EXPECT_EQ(all["machines"][0]["stored_bytes"], kStored);
  EXPECT_EQ(all["machines"][0]["stored_log_bytes"], kStored);
  EXPECT_EQ(all["machines"][0]["stored_cold_bytes"], 0);
  EXPECT_TRUE(all["machines"][0]["index_bytes"].is_number_unsigned());
  EXPECT_EQ(all["totals"]["stored_bytes"], kStored);
  EXPECT_EQ(all["totals"]["logical_bytes"], 256_KiB);
  EXPECT_EQ(all["partitions"].size(), 2u);
  EXPECT_GE(all["totals"]["log_bytes"], 8_MiB);
  EXPECT_EQ(all["totals"]["garbage_bytes"].get<std::uint64_t>() + kStored,
            all["totals"]["log_bytes"].get<std::uint64_t>() + all["totals"]["cold_bytes"].get<std::uint64_t>());
  ASSERT_EQ(all["file_systems"].size(), 1u);
  EXPECT_GT(all["file_systems"][0]["total_bytes"], 0);
  EXPECT_EQ(all["free_space_min"], 2 * (4 * 8_MiB + 64_MiB)) << "what pruning needs, for two partitions";
  EXPECT_EQ(metric("tidemark_machine_stored_bytes{machine=\"web1\"}"), kStored);
  EXPECT_EQ(metric("tidemark_machine_logical_bytes{machine=\"web1\"}"), 256_KiB);
  restart();
  ASSERT_TRUE(until([&] { return space()["stored_bytes"] == kStored; })) << "also after a restart";
}

TEST_F(ServerSpace, AQuotaWarnsThenPausesAndLetsGoWhenItIsRaised) {
  start();
  const auto who = enrolled();
  ASSERT_EQ(quota(R"({"quota": "4MiB"})").status, 200);
  EXPECT_EQ(space()["quota_bytes"], 4_MiB);
  const auto agent = with_disk(who, 3_MiB + 704_KiB);
  ASSERT_TRUE(until([&] { return space()["quota_state"] == "warning"; })) << space();
  EXPECT_NE(machine()["cause"].get<std::string>().find("nearly used up"), std::string::npos);
  EXPECT_EQ(metric("tidemark_machines_short_of_space{partition=\"0\",what=\"near_quota\"}") +
                metric("tidemark_machines_short_of_space{partition=\"1\",what=\"near_quota\"}"),
            1);
  ASSERT_TRUE(epoch(*agent, pb::DELTA, 512_KiB)) << "what was sent is taken and acknowledged";
  ASSERT_TRUE(until([&] { return machine()["state"] == "paused"; })) << machine();
  EXPECT_EQ(space()["quota_state"], "full");
  EXPECT_EQ(space()["held"], "paused");
  EXPECT_NE(machine()["cause"].get<std::string>().find("its quota is used up"), std::string::npos);
  EXPECT_NE(machine()["remedy"].get<std::string>().find("tidemark machine quota web1"), std::string::npos);

  // From now on credit is not returned, whatever the agent does.
  const std::uint64_t credit = agent->session.credit();
  ASSERT_TRUE(epoch(*agent, pb::DELTA, 256_KiB));
  EXPECT_LT(agent->session.credit(), credit - 200_KiB);
  // Who comes again gets the least.
  const auto again = connect(who, agent->session.memory());
  ASSERT_TRUE(again->welcomed());
  EXPECT_EQ(again->session.credit(), limits::kSessionCreditMin);

  ASSERT_EQ(quota(R"({"quota": "8MiB"})").status, 200);
  ASSERT_TRUE(until([&] { return space()["held"] == nullptr; })) << space();
  EXPECT_EQ(space()["quota_state"], "ok");
  ASSERT_TRUE(epoch(*again, pb::DELTA, 1_MiB));
  ASSERT_EQ(quota(R"({"quota": null})").status, 200);
  EXPECT_EQ(space()["quota_bytes"], nullptr);
}

TEST_F(ServerSpace, AQuotaBelowWhatIsUsedIsTakenWithANoteAndOutlivesARestart) {
  start();
  const auto agent = with_disk(enrolled(), 2_MiB);
  ASSERT_TRUE(until([&] { return space()["stored_bytes"] >= 2_MiB; }));
  const auto set = quota(R"({"quota": 1048576})");
  ASSERT_EQ(set.status, 200) << set.body;
  EXPECT_NE(set.json()["note"].get<std::string>().find("stores more than that already"), std::string::npos);
  EXPECT_EQ(quota(R"({"quota": "64MiB"})").json()["note"], nullptr);
  restart();
  EXPECT_EQ(space()["quota_bytes"], 64_MiB);
}

TEST_F(ServerSpace, AQuotaThatMakesNoSenseChangesNothingAndIsAudited) {
  start();
  enrolled();
  ASSERT_EQ(quota(R"({"quota": "2GiB"})").status, 200);
  for (const char* body :
       {"{}", "[]", "nonsense", R"({"quota": ""})", R"({"quota": "lots"})", R"({"quota": -1})", R"({"quota": 0})",
        R"({"quota": 1.5})", R"({"quota": "1KiB"})", R"({"quota": "2000000TiB"})", R"({"quota": true})",
        R"({"quota": "99999999999999999999"})", R"({"quota": "1GiB", "more": 1})", R"({"qouta": "1GiB"})"}) {
    const auto answer = quota(body);
    EXPECT_EQ(answer.status, 400) << body << ": " << answer.body;
    EXPECT_FALSE(answer.json()["error"].value("remedy", "").empty()) << body;
  }
  EXPECT_EQ(quota(R"({"quota": "1GiB"})", "web9").status, 404);
  EXPECT_EQ(space()["quota_bytes"], 2_GiB);
  const auto entries = admin("GET", "/v1/audit?limit=1000").json()["entries"];
  EXPECT_EQ(std::count_if(entries.begin(), entries.end(), [](const json& one) { return one["action"] == "quota.set"; }),
            16);
}

TEST_F(ServerSpace, AboveTheMarksAFastMachineIsPaused) {
  // Any file system is fuller than that.
  config.storage.high_water = 0.00001;
  config.storage.full_water = 0.00001;
  start();
  const auto agent = with_disk(enrolled(), 64_KiB);
  ASSERT_TRUE(until([&] { return space()["stored_bytes"] > 64_KiB; })) << "what was there at first is no growth";
  ASSERT_TRUE(epoch(*agent, pb::DELTA, 3_MiB));
  ASSERT_TRUE(until([&] { return space()["held"] == "paused"; })) << space();
  EXPECT_EQ(machine()["state"], "paused");
  EXPECT_NE(machine()["cause"].get<std::string>().find("% full, and this machine grows by"), std::string::npos);
  EXPECT_EQ(admin("GET", "/v1/space").json()["file_systems"][0]["level"], "full");
  EXPECT_EQ(metric("tidemark_file_system_level"), 2);
}

}  // namespace
}  // namespace tidemark::server
