// What administrators want kept and removed, through a whole server: ladders, pins, hold-offs, the audit log.
#include "server/audit.h"
#include "server_fixture.h"

namespace tidemark::server {
namespace {

using nlohmann::json;

class ServerRetention : public ServerTest {
 protected:
  // A machine with this many points.
  std::unique_ptr<ScriptedAgent> with_points(std::uint64_t count, const std::string& name = "web1") {
    auto agent = connect(enrolled(name));
    EXPECT_TRUE(agent->welcomed());
    initial(*agent);
    while (agent->epoch.value() < count) {
      agent->begin(agent->session.next_epoch().value(), pb::DELTA);
      agent->send(0, 0, std::vector<std::byte>(4096, std::byte{static_cast<unsigned char>(agent->epoch.value())}));
      EXPECT_TRUE(agent->commit());
    }
    return agent;
  }
  json error_of(const AdminAnswer& answer) { return answer.json().value("error", json::object()); }
  json retention(const std::string& name = "web1") {
    return admin("GET", "/v1/machines/" + name + "/retention").json();
  }
  // The server acts once a second; the bound is for a broken build.
  bool until(const std::function<bool()>& condition) { return run_until(io, condition); }
  std::vector<json> audit() {
    const auto answer = admin("GET", "/v1/audit?limit=1000").json();
    return answer["entries"].get<std::vector<json>>();
  }
};

TEST_F(ServerRetention, ALadderIsSetShownAndKept) {
  start();
  const auto agent = with_points(2);
  EXPECT_EQ(retention()["ladder"]["text"], "all for 1h, 10m for 6h, 1h for 1d, 1d for 30d");
  EXPECT_EQ(retention()["ladder"]["default"], true);
  const auto set = admin("PUT", "/v1/machines/web1/ladder", R"({"preset": 60})");
  ASSERT_EQ(set.status, 200) << set.body;
  EXPECT_EQ(set.json()["ladder"]["text"], "all for 10m, 10m for 1h, 1h for 1d, 1d for 30d");
  EXPECT_EQ(set.json()["former_ladders"].size(), 1u) << "the default kept more: that stays for the hold-off";
  EXPECT_EQ(admin("PUT", "/v1/machines/web1/ladder",
                  R"({"dense_seconds": 90, "rungs": [{"every_seconds": 60, "keep_seconds": 120}]})")
                .status,
            200);
  restart();
  EXPECT_EQ(retention()["ladder"]["text"], "all for 90s, 1m for 2m");
  EXPECT_EQ(retention()["ladder"]["default"], false);
}

TEST_F(ServerRetention, ALadderThatKeepsNothingOrMakesNoSenseChangesNothing) {
  start();
  enrolled();
  for (const char* body :
       {"{}", R"({"dense_seconds": 0})", R"({"dense_seconds": -1})", R"({"rungs": []})", R"({"rungs": [7]})",
        R"({"rungs": [{"every_seconds": 60}]})", R"({"rungs": [{"every_seconds": 3600, "keep_seconds": 60}]})",
        R"({"preset": 61})", R"({"prest": 60})", "[]", "nonsense", R"({"dense_seconds": 18446744073709551615})"}) {
    const auto answer = admin("PUT", "/v1/machines/web1/ladder", body);
    EXPECT_EQ(answer.status, 400) << body << answer.body;
    EXPECT_NE(error_of(answer)["what"], "") << body;
  }
  EXPECT_EQ(admin("PUT", "/v1/machines/web9/ladder", R"({"preset": 60})").status, 404);
  EXPECT_EQ(retention()["ladder"]["default"], true);
}

TEST_F(ServerRetention, APointTellsWhatHoldsIt) {
  start();
  const auto agent = with_points(3);
  const auto points = admin("GET", "/v1/machines/web1/points").json()["points"];
  ASSERT_EQ(points.size(), 3u);
  const auto has = [](const json& point, const char* kind) {
    return std::any_of(point["holds"].begin(), point["holds"].end(),
                       [&](const json& hold) { return hold["kind"] == kind; });
  };
  EXPECT_TRUE(has(points[0], "newest-point"));
  EXPECT_TRUE(points[0]["expires"].is_null()) << "the newest one never does";
  EXPECT_TRUE(has(points[1], "dense"));
  EXPECT_TRUE(points[1]["expires"].is_string());
  EXPECT_TRUE(has(points[2], "rung")) << "the first of its hour";
  EXPECT_EQ(admin("GET", "/v1/machines/web1/points/epoch:2").json()["holds"], points[1]["holds"]);
  EXPECT_EQ(admin("GET", "/v1/machines/web1/points?limit=2").json()["points"].size(), 2u);
}

TEST_F(ServerRetention, AClockThatLeapsToAndFroBeginsNoBuckets) {
  start();
  const auto agent = with_points(1);
  for (int i = 0; i < 12; ++i) {
    clock.leap(std::chrono::hours(i % 2 == 0 ? 30 : -30));
    agent->begin(agent->session.next_epoch().value(), pb::DELTA);
    ASSERT_TRUE(agent->commit());
  }
  ASSERT_EQ(admin("PUT", "/v1/machines/web1/ladder",
                  R"({"dense_seconds": 3600, "rungs": [{"every_seconds": 600, "keep_seconds": 1200}]})")
                .status,
            200);
  const json holds = admin("GET", "/v1/machines/web1/points/epoch:1").json()["holds"];
  EXPECT_TRUE(std::ranges::any_of(holds, [](const json& hold) { return hold["kind"] == "rung"; })) << holds;
}

TEST_F(ServerRetention, APinIsDurableAndListed) {
  start();
  const auto agent = with_points(3);
  const auto made = admin("POST", "/v1/machines/web1/pins",
                          R"({"at": "epoch:2", "name": "before-upgrade", "reason": "who knows", "until": "30d"})");
  ASSERT_EQ(made.status, 200) << made.body;
  EXPECT_EQ(made.json()["epoch"], 2);
  EXPECT_EQ(admin("POST", "/v1/machines/web1/pins", R"({"at": "latest"})").json()["name"], "epoch-3");
  restart();
  auto pins = admin("GET", "/v1/machines/web1/pins").json()["pins"];
  for (int i = 0; i < 600 && pins.size() != 2; ++i) {  // its partition is still being opened
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    pins = admin("GET", "/v1/machines/web1/pins").json()["pins"];
  }
  ASSERT_EQ(pins.size(), 2u);
  EXPECT_EQ(pins[0]["name"], "before-upgrade");
  EXPECT_EQ(pins[0]["reason"], "who knows");
  EXPECT_TRUE(pins[0]["until"].is_string());
  EXPECT_TRUE(pins[1]["until"].is_null());
  EXPECT_EQ(pins[0]["time"], admin("GET", "/v1/machines/web1/points/epoch:2").json()["time"]);
  const auto unpinned = admin("DELETE", "/v1/machines/web1/pins/epoch-3");
  EXPECT_EQ(unpinned.status, 200) << unpinned.body;
  EXPECT_TRUE(unpinned.json()["until"].is_string()) << "it holds for the hold-off";
  EXPECT_EQ(admin("GET", "/v1/machines/web1/pins").json()["pins"].size(), 2u);
  clock.advance(std::chrono::hours(24));
  EXPECT_TRUE(until([&] { return admin("GET", "/v1/machines/web1/pins").json()["pins"].size() == 1; }));
}

TEST_F(ServerRetention, PinsThatCannotBeAreRefusedInWords) {
  start();
  const auto agent = with_points(2);
  ASSERT_EQ(admin("POST", "/v1/machines/web1/pins", R"({"at": "epoch:1", "name": "taken"})").status, 200);
  struct Wrong {
    const char *body, *code;
    int status;
  };
  for (const Wrong& wrong : {Wrong{R"({"at": "epoch:1", "name": "taken"})", "already-exists", 409},
                             {R"({"at": "epoch:9"})", "not-found", 404},
                             {R"({"at": "epoch:0"})", "not-found", 404},
                             {R"({"at": "2001-01-01T00:00:00Z"})", "not-found", 404},
                             {R"({"at": "2199-01-01T00:00:00Z"})", "invalid-argument", 400},
                             {R"({"at": "soon"})", "invalid-argument", 400},
                             {R"({})", "invalid-argument", 400},
                             {R"({"at": "latest", "name": "a b"})", "invalid-argument", 400},
                             {R"({"at": "latest", "until": "2001-01-01T00:00:00Z"})", "invalid-argument", 400},
                             {R"({"at": "latest", "until": "later"})", "invalid-argument", 400},
                             {R"({"at": "latest", "until": 7})", "invalid-argument", 400},
                             {R"({"at": "latest", "nme": "x"})", "invalid-argument", 400},
                             {"[1]", "invalid-argument", 400}}) {
    const auto answer = admin("POST", "/v1/machines/web1/pins", wrong.body);
    EXPECT_EQ(answer.status, wrong.status) << wrong.body << answer.body;
    EXPECT_EQ(error_of(answer)["code"], wrong.code) << wrong.body << answer.body;
  }
  EXPECT_EQ(admin("POST", "/v1/machines/web9/pins", R"({"at": "latest"})").status, 404);
  EXPECT_EQ(admin("DELETE", "/v1/machines/web1/pins/nobody").status, 404);
  EXPECT_EQ(admin("GET", "/v1/machines/web1/pins").json()["pins"].size(), 1u);
}

TEST_F(ServerRetention, ARemovalOfAPointWaitsAndCanBeTakenBack) {
  start();
  const auto agent = with_points(3);
  ASSERT_EQ(admin("POST", "/v1/machines/web1/pins", R"({"at": "epoch:1", "name": "p"})").status, 200);
  const auto asked = admin("POST", "/v1/machines/web1/removals", R"({"at": "epoch:2", "reason": "secrets"})");
  ASSERT_EQ(asked.status, 200) << asked.body;
  EXPECT_EQ(asked.json()["epoch"], 2);
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/epoch:2").json()["removal"].is_object());
  EXPECT_EQ(admin("GET", "/v1/machines/web1/points/epoch:2/disks/vda/data").status, 200) << "it is there as before";
  EXPECT_EQ(error_of(admin("POST", "/v1/machines/web1/removals", R"({"at": "epoch:2"})"))["code"], "already-exists");
  EXPECT_EQ(error_of(admin("POST", "/v1/machines/web1/removals", R"({"at": "epoch:1"})"))["what"], "it is pinned as p");
  EXPECT_EQ(error_of(admin("POST", "/v1/machines/web1/removals", R"({"at": "latest"})"))["what"],
            "it is the newest point, which always stays");
  EXPECT_EQ(error_of(admin("POST", "/v1/machines/web1/pins", R"({"at": "epoch:2"})"))["what"], "it is to be removed");
  EXPECT_EQ(admin("POST", "/v1/machines/web1/removals", R"({"at": "epoch:77"})").status, 404);
  restart();
  EXPECT_EQ(retention()["removals"].size(), 1u) << "durable";
  EXPECT_EQ(admin("DELETE", "/v1/machines/web1/removals/epoch:2").status, 200);
  EXPECT_EQ(retention()["removals"].size(), 0u);
  EXPECT_EQ(admin("DELETE", "/v1/machines/web1/removals/epoch:2").status, 404);
  EXPECT_EQ(admin("DELETE", "/v1/machines/web1/removals/machine").status, 404);
}

TEST_F(ServerRetention, ARemovalOfAMachineWaitsOutTheHoldOff) {
  start();
  const auto who = enrolled();
  const auto kept = enrolled("web2");
  for (const char* name : {"web1", "web2"}) {
    const auto asked = admin("DELETE", std::string("/v1/machines/") + name + "?confirm=" + name + "&reason=old");
    ASSERT_EQ(asked.status, 202) << asked.body;
    EXPECT_TRUE(asked.json()["removal"]["effective"].is_string());
    EXPECT_EQ(asked.json()["removal"]["reason"], "old");
  }
  EXPECT_EQ(admin("DELETE", "/v1/machines/web1?confirm=web1").status, 409) << "once is enough";
  EXPECT_TRUE(connect(who)->welcomed()) << "nothing changes before";
  EXPECT_EQ(admin("DELETE", "/v1/machines/web2/removals/machine").status, 200);
  restart();
  clock.advance(std::chrono::hours(23));
  EXPECT_EQ(machine()["removal"]["reason"], "old") << "durable";
  clock.advance(std::chrono::hours(2));
  EXPECT_TRUE(until([&] { return admin("GET", "/v1/machines/web1").status == 404; }));
  EXPECT_FALSE(connect(who)->welcomed());
  EXPECT_EQ(machine("web2")["removal"], nullptr);
  const std::string again = token();  // the name is free again once the removal is durable
  EXPECT_TRUE(until([&] { return enrol(io, again, "web1").has_value(); }));
  EXPECT_TRUE(until([&] {
    for (const json& entry : audit())
      if (entry["action"] == "machine.removed" && entry["who"] == "server" && entry["result"] == "done") return true;
    return false;
  }));
}

TEST_F(ServerRetention, AServerThatWasAwayBelievesItsClockOnlyAfterAWhile) {
  start();
  enrolled();
  EXPECT_EQ(admin("DELETE", "/v1/machines/web1?confirm=web1").status, 202);
  server.reset();
  clock.advance(std::chrono::hours(24 * 365));
  start();
  EXPECT_TRUE(retention()["clock"]["held"].is_object()) << "away, or the clock is wrong: who can tell";
  clock.advance(std::chrono::hours(23));
  EXPECT_TRUE(retention()["clock"]["held"].is_object());
  EXPECT_EQ(machine()["name"], "web1");
  clock.advance(std::chrono::hours(2));
  EXPECT_TRUE(until([&] { return admin("GET", "/v1/machines/web1").status == 404; }));
}

TEST_F(ServerRetention, WhoeverChangesSomethingIsInTheAuditLog) {
  start();
  const auto agent = with_points(2);
  admin("POST", "/v1/machines/web1/pins", R"({"at": "epoch:1", "name": "p"})");
  admin("POST", "/v1/machines/web1/pins", R"({"at": "epoch:1", "name": "p"})");
  admin("PATCH", "/v1/machines/web1", R"({"name": "db1"})");
  admin("PUT", "/v1/machines/db1/ladder", R"({"preset": 60})");
  const auto entries = audit();
  ASSERT_EQ(entries.size(), 5u) << json(entries);
  const std::vector<std::string> actions = {"token.create", "pin.add", "pin.add", "machine.change", "ladder.set"};
  for (std::size_t i = 0; i < entries.size(); ++i) {
    EXPECT_EQ(entries[i]["action"], actions[i]);
    EXPECT_EQ(entries[i]["uid"], ::getuid());
    EXPECT_EQ(entries[i]["pid"], ::getpid());
    EXPECT_EQ(entries[i]["result"], i == 2 ? "failed" : "done");
  }
  EXPECT_EQ(entries[1]["object"], "web1 epoch:1");
  EXPECT_EQ(entries[2]["error"]["code"], "already-exists");
  EXPECT_EQ(entries[3]["details"], "name = \"db1\"");
  EXPECT_EQ(admin("GET", "/v1/audit?limit=2").json()["entries"].size(), 2u);
  EXPECT_EQ(admin("GET", "/v1/audit?limit=0").status, 400);
}

TEST_F(ServerRetention, WhatCannotBeRecordedIsNotDone) {
  start();
  const auto agent = with_points(2);
  ASSERT_EQ(::mkdir((data + "/audit.log.moved").c_str(), 0700), 0);
  ASSERT_EQ(::rename((data + "/audit.log").c_str(), (data + "/audit.log.moved/old").c_str()), 0);
  ASSERT_EQ(::mkdir((data + "/audit.log").c_str(), 0700), 0) << "a directory cannot be written to";
  const auto refused = admin("POST", "/v1/machines/web1/pins", R"({"at": "epoch:1"})");
  EXPECT_EQ(refused.status, 500) << refused.body;
  EXPECT_EQ(admin("GET", "/v1/machines/web1/pins").json()["pins"].size(), 0u);
  ASSERT_EQ(::rmdir((data + "/audit.log").c_str()), 0);
  EXPECT_EQ(admin("POST", "/v1/machines/web1/pins", R"({"at": "epoch:1"})").status, 200);
  EXPECT_EQ(audit().size(), 1u) << "a new file, with what came since";
}

TEST(AuditLog, ATornLineIsPassedOverAndWhatFollowsIsWhole) {
  const TemporaryDirectory directory;
  const std::string path = directory / "audit.log";
  AuditLog log(path, Clock::system());
  const AuditEntry entry{
      .who = "root", .uid = 0, .pid = 1, .action = "a", .object = "o", .error = {}, .details = std::string(3000, 'x')};
  ASSERT_TRUE(log.append(entry));
  ::truncate(path.c_str(), static_cast<off_t>(std::filesystem::file_size(path) - 5));
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(log.append(entry));
  const auto all = log.read(10'000);
  ASSERT_TRUE(all) << all.error().message();
  EXPECT_EQ(all->size(), 300u);
  EXPECT_EQ(log.read(7)->size(), 7u);
  EXPECT_TRUE(AuditLog(directory / "none", Clock::system()).read(7)->empty());
}

}  // namespace
}  // namespace tidemark::server
