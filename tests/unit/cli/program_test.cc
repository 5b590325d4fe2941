#include "cli/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "fake_store.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;

struct Ran {
  int status;
  std::string out, err;
};

Ran run_program(std::vector<std::string> arguments, const std::string& input = {}) {
  std::istringstream in(input);
  std::ostringstream out, err;
  const int status = run(arguments, in, out, err);
  return {status, out.str(), err.str()};
}

FakeAdmin::Response machines(const FakeAdmin::Request& request) {
  const json web1 = {{"id", "00112233445566778899aabbccddeeff"},
                     {"name", "web1"},
                     {"state", "continuous"},
                     {"percent", nullptr},
                     {"newest_point", 3},
                     {"newest_point_time", "2026-11-20T10:15:03Z"},
                     {"lag_seconds", 3.5},
                     {"backlog_bytes", 0},
                     {"connected", true},
                     {"address", "192.0.2.1:5000"},
                     {"quarantine", ""},
                     {"revoked", false},
                     {"disks", {{{"disk", 0}, {"name", "vda"}, {"size", 1 << 30}}}}};
  json db1 = web1;
  db1.update({{"name", "db1"},
              {"state", "stalled"},
              {"cause", "its disk is\x1b[2J full"},
              {"remedy", "free space"},
              {"connected", false}});
  if (request.target == "/v1/machines") return {.body = json{{"machines", {web1, db1}}}.dump()};
  const json retention = {{"machine", "web1"},
                          {"ladder",
                           {{"dense_seconds", 3600},
                            {"default", true},
                            {"rungs", {{{"every_seconds", 600}, {"keep_seconds", 21600}, {"points", 36}}}}}},
                          {"pins", json::array()},
                          {"removals",
                           {{{"epoch", 7},
                             {"effective", "2026-11-20T10:15:03Z"},
                             {"requested", "2026-11-19T10:15:03Z"},
                             {"by", "root"},
                             {"reason", nullptr}}}},
                          {"former_ladders", json::array()},
                          {"clock", {{"now", "2026-11-20T10:15:03Z"}, {"held", nullptr}}}};
  if (request.target == "/v1/machines/web1/ladder" || request.target == "/v1/machines/web1/retention")
    return {.body = retention.dump()};
  if (request.target == "/v1/machines/db1") return {.body = db1.dump()};
  if (request.method == "DELETE" && request.target.find("confirm=db1") != std::string::npos) {
    db1["removal"] = {{"effective", "2026-11-21T10:15:03Z"}, {"by", "root"}};
    return {.status = 202, .body = db1.dump()};
  }
  if (request.target == "/v1/machines/web1/pins" && request.method == "POST")
    return {.body = R"({"name": "x", "epoch": 3, "time": "2026-11-20T10:15:03Z", "until": null, "by": "root"})"};
  if (request.target == "/v1/machines/web1/points")
    return {.body =
                R"({"points": [{"epoch": 3, "time": "2026-11-20T10:15:03Z", "consistency": "crash", "plain_bytes": 1,
                "stored_bytes": 1, "disks": [], "holds": [{"kind": "dense", "until": "2026-11-20T11:15:03Z"},
                {"kind": "rung", "every_seconds": 3600, "until": null}, {"kind": "pin", "pin": "x", "until": null}],
                "expires": null, "going": false, "removal": null}]})"};
  if (request.method == "DELETE") return {.status = 204};
  if (request.target == "/v1/machines/web1") return {.body = web1.dump()};
  if (request.target == "/v1/tokens") return {.body = R"({"token": "tmk1-abc", "expires": "2026-11-20T10:15:03Z"})"};
  if (request.target == "/v1/health")
    return {.status = 503,
            .body = R"({"ok": false, "partitions": [{"id": 1, "state": "fenced", "why": "damaged segment"}]})"};
  return {
      .status = 404,
      .body =
          R"({"error": {"code": "not-found", "object": "web9", "what": "no such machine", "remedy": "list them"}})"};
}

class Program : public testing::Test {
 protected:
  FakeAdmin server_{machines};
  Ran command(std::vector<std::string> arguments, const std::string& input = {}) {
    arguments.insert(arguments.end(), {"--socket", server_.socket()});
    return run_program(std::move(arguments), input);
  }
};

TEST_F(Program, ListsMachinesForPeople) {
  const Ran ran = command({"machines"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("NAME  STATE"));
  EXPECT_THAT(ran.out, HasSubstr("2026-11-20 10:15:03Z ("));
  EXPECT_THAT(ran.out, HasSubstr("db1: its disk is?[2J full (free space)"))
      << "a machine's words cannot act on the terminal";
}

TEST_F(Program, AnswersProgramsWithTheServersWords) {
  EXPECT_EQ(json::parse(command({"machines", "--json"}).out)["machines"].size(), 2u);
  EXPECT_EQ(json::parse(command({"--json", "machine", "show", "web1"}).out)["name"], "web1");
}

TEST_F(Program, AnErrorGoesToStderrAndWithJsonToStdoutToo) {
  const Ran plain = command({"machine", "show", "web9"});
  EXPECT_EQ(plain.status, 1);
  EXPECT_EQ(plain.out, "");
  EXPECT_EQ(plain.err, "tidemark: web9: no such machine (list them)\n");
  const Ran programs = command({"machine", "show", "web9", "--json"});
  EXPECT_EQ(programs.status, 1);
  EXPECT_EQ(json::parse(programs.out)["error"]["code"], "not-found");
}

TEST_F(Program, TheTokenStandsAloneOnStdout) {
  const Ran ran = command({"token", "create", "--ttl", "15m", "--machine", "web1"});
  EXPECT_EQ(ran.out, "tmk1-abc\n");
  EXPECT_THAT(ran.err, HasSubstr("tidemark-agent enroll"));
  EXPECT_EQ(json::parse(server_.requests()[0].body), (json{{"ttl_seconds", 900}, {"machine", "web1"}}));
  EXPECT_EQ(command({"token", "create", "--ttl", "soon"}).status, 1);
}

TEST_F(Program, RemovesAMachineOnlyWhenItsNameIsGivenTwice) {
  const Ran refused = command({"machine", "remove", "web1"}, "web1\n");
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, HasSubstr("--confirm web1"));
  EXPECT_EQ(command({"machine", "remove", "web1", "--confirm", "web2"}).status, 1);
  for (const auto& request : server_.requests()) EXPECT_EQ(request.method, "GET");
  const Ran removed = command({"machine", "remove", "web1", "--confirm", "web1"});
  EXPECT_EQ(removed.status, 0) << removed.err;
  EXPECT_EQ(server_.requests().back().target, "/v1/machines/00112233445566778899aabbccddeeff?confirm=web1");
}

TEST_F(Program, ARemovalThatWaitsSaysHowToTakeItBack) {
  const Ran ran = command({"machine", "remove", "db1", "--confirm", "db1"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr("not before 2026-11-21 10:15:03Z"));
  EXPECT_THAT(ran.out, HasSubstr("tidemark machine unremove db1"));
}

TEST_F(Program, ALadderIsSetFromSpansAndSteps) {
  const Ran ran = command({"ladder", "set", "web1", "--dense", "1h", "--rung", "10m:6h", "--rung", "1d:30d"});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_EQ(json::parse(server_.requests()[0].body), (json{{"dense_seconds", 3600},
                                                           {"rungs",
                                                            {{{"every_seconds", 600}, {"keep_seconds", 21600}},
                                                             {{"every_seconds", 86400}, {"keep_seconds", 2592000}}}}}));
  EXPECT_THAT(ran.out, HasSubstr("every epoch of the last 1h"));
  EXPECT_THAT(ran.out, HasSubstr("36 points, one every 10m"));
  EXPECT_THAT(ran.out, HasSubstr("to be removed: epoch 7, not before 2026-11-20 10:15:03Z"));
  command({"ladder", "set", "web1", "--preset", "60", "--dense", "0s"});
  EXPECT_EQ(json::parse(server_.requests()[1].body), (json{{"preset", 60}, {"dense_seconds", 0}}));
  const std::size_t asked = server_.requests().size();
  for (const char* rung : {"10m", "10m:", ":6h", "x:y", "10m:6w"}) {
    const Ran wrong = command({"ladder", "set", "web1", "--rung", rung});
    EXPECT_EQ(wrong.status, 1);
    EXPECT_THAT(wrong.err, HasSubstr("not a rung"));
  }
  EXPECT_THAT(command({"ladder", "set", "web1"}).err, HasSubstr("--preset 60"));
  EXPECT_EQ(server_.requests().size(), asked);
}

TEST_F(Program, PointsSayWhatHoldsThem) {
  EXPECT_THAT(command({"points", "web1"}).out, HasSubstr("all, 1h, pin x"));
  const Ran pinned = command({"pin", "web1", "--at", "latest", "--name", "x", "--reason", "r", "--until", "30d"});
  EXPECT_EQ(pinned.out, "web1: epoch 3 of 2026-11-20 10:15:03Z is pinned as x, until it is unpinned\n");
  EXPECT_EQ(json::parse(server_.requests().back().body),
            (json{{"at", "latest"}, {"name", "x"}, {"reason", "r"}, {"until", "30d"}}));
}

TEST_F(Program, AnUnhealthyServerIsAnAnswerAndAFailure) {
  const Ran ran = command({"health"});
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.out, HasSubstr("damaged segment"));
  EXPECT_EQ(json::parse(command({"health", "--json"}).out)["ok"], false);
}

TEST(ProgramUsage, WrongUsageIsTwoWithTheRemedy) {
  const std::vector<std::vector<std::string>> wrong = {{},
                                                       {"bogus"},
                                                       {"machine"},
                                                       {"machine", "bogus"},
                                                       {"points"},
                                                       {"points", "a", "b"},
                                                       {"export", "web1", "--at", "-15m"},
                                                       {"verify", "web1"},
                                                       {"points", "web1", "--limit", "0"},
                                                       {"machines", "--bogus"},
                                                       {"token", "create", "--ttl"}};
  for (const auto& arguments : wrong) {
    const Ran ran = run_program(arguments);
    EXPECT_EQ(ran.status, 2) << testing::PrintToString(arguments);
    EXPECT_EQ(ran.out, "");
    EXPECT_THAT(ran.err, HasSubstr("--help`)")) << testing::PrintToString(arguments);
    EXPECT_EQ(std::ranges::count(ran.err, '\n'), 1) << ran.err;
  }
  const Ran programs = run_program({"points", "--json"});
  EXPECT_EQ(programs.status, 2);
  EXPECT_EQ(json::parse(programs.out)["error"]["code"], "invalid-argument");
}

TEST(ProgramUsage, HelpTeaches) {
  for (const std::vector<std::string>& arguments :
       std::vector<std::vector<std::string>>{{"--help"}, {"export", "--help"}, {"token", "create", "-h"}}) {
    const Ran ran = run_program(arguments);
    EXPECT_EQ(ran.status, 0);
    EXPECT_THAT(ran.out, HasSubstr("tidemark "));
    EXPECT_EQ(ran.err, "");
  }
  EXPECT_EQ(run_program({"--version"}).out, "tidemark " TIDEMARK_VERSION "\n");
}

TEST(ProgramUsage, TheSocketIsFoundByOptionDirectoryOrEnvironment) {
  FakeAdmin server(machines);
  EXPECT_EQ(run_program({"machines", "--data", server.directory()}).status, 0);
  ::setenv("TIDEMARK_SOCKET", server.socket().c_str(), 1);
  EXPECT_EQ(run_program({"machines"}).status, 0);
  EXPECT_EQ(run_program({"machines", "--data", "/nonexistent"}).status, 1);
  ::unsetenv("TIDEMARK_SOCKET");
}

TEST(ProgramUsage, AnExportAndAVerificationFromEndToEnd) {
  FakeStore store;
  store.disks = {{"vda", sample_content(5)}};
  FakeAdmin server([&](const FakeAdmin::Request& request) { return store.answer(request); });
  const std::string output = server.directory() + "/vda.img";
  const Ran ran = run_program({"export", "web1", "--at", "-15m", "--output", output, "--data", server.directory()});
  EXPECT_EQ(ran.status, 0) << ran.err;
  EXPECT_THAT(ran.out, HasSubstr(to_hex(sha256(store.disks[0].content))));
  EXPECT_EQ(run_program({"verify", "web1", "--at", "latest", "--data", server.directory()}).status, 0);
  store.change([&] { store.damaged = "vda at 4096"; });
  const Ran damaged = run_program({"verify", "web1", "--at", "latest", "--data", server.directory()});
  EXPECT_EQ(damaged.status, 1);
  EXPECT_THAT(damaged.err, HasSubstr("vda at 4096"));
}

}  // namespace
}  // namespace tidemark::cli
