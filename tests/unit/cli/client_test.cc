#include "cli/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "fake_admin.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

TEST(AdminClient, AsksAndUnderstandsTheAnswer) {
  FakeAdmin server([](const FakeAdmin::Request&) { return FakeAdmin::Response{.body = R"({"machines": []})"}; });
  AdminClient client(server.socket());
  EXPECT_EQ(client.get("/v1/machines").value(), (json{{"machines", json::array()}}));
  EXPECT_TRUE(client.post("/v1/tokens", {{"ttl_seconds", 60}}));
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[1].method, "POST");
  EXPECT_EQ(json::parse(requests[1].body), (json{{"ttl_seconds", 60}}));
}

TEST(AdminClient, PassesTheServersErrorOnAsItIs) {
  FakeAdmin server([](const FakeAdmin::Request&) {
    return FakeAdmin::Response{
        .status = 404,
        .body =
            R"({"error": {"code": "not-found", "object": "web9", "what": "no such machine", "remedy": "list them"}})"};
  });
  AdminClient client(server.socket());
  const Error expected{Code::not_found, "web9", "no such machine", "list them"};
  EXPECT_EQ(client.get("/v1/machines/web9").error(), expected);
  EXPECT_EQ(client.stream({.path = "/data", .range = AdminClient::Range{0, 5}}, [](auto) { return Status{}; }).error(),
            expected);
}

TEST(AdminClient, SaysWhyThereIsNoConnection) {
  char name[] = "/tmp/tidemark-cli-XXXXXX";
  const std::string directory = ::mkdtemp(name);
  const auto error_of = [](const std::string& path) { return AdminClient(path).get("/v1/server").error(); };

  Error missing = error_of(directory + "/admin.sock");
  EXPECT_EQ(missing.code, Code::unavailable);
  EXPECT_EQ(missing.object, directory + "/admin.sock");
  EXPECT_THAT(missing.remedy, testing::HasSubstr("tidemarkd run"));

  const int dead = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (directory + "/dead.sock").c_str());
  ASSERT_EQ(::bind(dead, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_THAT(error_of(directory + "/dead.sock").what, testing::HasSubstr("no server answers"));
  ::close(dead);
  std::filesystem::remove_all(directory);
}

TEST(AdminClient, ReachesASocketWhosePathIsTooLongForTheKernel) {
  FakeAdmin server([](const FakeAdmin::Request&) { return FakeAdmin::Response{.body = "{}"}; });
  const std::string deep = server.directory() + "/" + std::string(120, 'd');
  std::filesystem::create_directory(deep);
  std::filesystem::create_symlink(server.socket(), deep + "/admin.sock");
  EXPECT_TRUE(AdminClient(deep + "/admin.sock").get("/v1/server"));
}

TEST(AdminClient, AnAnswerThatBreaksOffIsAnError) {
  FakeAdmin server([](const FakeAdmin::Request&) {
    return FakeAdmin::Response{.status = 206, .body = std::string(100'000, 'x'), .cut_after = 60'000};
  });
  AdminClient client(server.socket());
  std::size_t seen = 0;
  const auto status =
      client.stream({.path = "/data", .range = AdminClient::Range{0, 100'000}}, [&](auto bytes) -> Status {
        seen += bytes.size();
        return {};
      });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::unavailable);
  EXPECT_THAT(status.error().what, testing::HasSubstr("in the middle"));
  EXPECT_LE(seen, 60'000u);
}

TEST(AdminClient, SurvivesAServerThatClosesAKeptConnection) {
  FakeAdmin server([](const FakeAdmin::Request&) { return FakeAdmin::Response{.body = "{}", .close_after = true}; });
  AdminClient client(server.socket());
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(client.get("/v1/server")) << i;
}

TEST(AdminClient, RefusesAnAnswerToAnotherQuestion) {
  FakeAdmin server([](const FakeAdmin::Request& request) {
    return FakeAdmin::Response{
        .status = request.target == "/whole" ? 200 : 206, .body = "hello", .headers = "Tidemark-Epoch: 7\r\n"};
  });
  AdminClient client(server.socket());
  const auto ignore = [](std::span<const std::byte>) { return Status{}; };
  EXPECT_TRUE(client.stream({.path = "/part", .range = AdminClient::Range{0, 5}, .epoch = 7}, ignore));
  EXPECT_EQ(client.stream({.path = "/part", .range = AdminClient::Range{0, 5}, .epoch = 8}, ignore).error().code,
            Code::protocol);
  EXPECT_EQ(client.stream({.path = "/whole", .range = AdminClient::Range{0, 5}, .epoch = 7}, ignore).error().code,
            Code::protocol);
}

TEST(AdminClient, AnErrorOfTheReceiverEndsTheRequest) {
  FakeAdmin server([](const FakeAdmin::Request&) { return FakeAdmin::Response{.body = std::string(1'000'000, 'x')}; });
  AdminClient client(server.socket());
  const auto status =
      client.stream({.path = "/data"}, [](auto) -> Status { return fail(Code::no_space, "f", "full"); });
  EXPECT_EQ(status.error(), (Error{Code::no_space, "f", "full", ""}));
}

TEST(AdminClient, StopEndsARequestThatHangs) {
  FakeAdmin server(
      [](const FakeAdmin::Request&) { return FakeAdmin::Response{.body = std::string(1000, 'x'), .hang = true}; });
  AdminClient client(server.socket());
  std::thread stopper;
  const auto status = client.stream({.path = "/data"}, [&](auto) -> Status {
    if (!stopper.joinable()) stopper = std::thread([&] { client.stop(); });
    return {};
  });
  stopper.join();
  EXPECT_EQ(status.error().code, Code::cancelled);
  EXPECT_EQ(client.get("/v1/server").error().code, Code::cancelled);
}

TEST(AdminClient, WhatIsNotAnAdminApiIsSaidToBeNone) {
  FakeAdmin server([](const FakeAdmin::Request& request) {
    return request.target == "/html" ? FakeAdmin::Response{.body = "<html>"}
                                     : FakeAdmin::Response{.status = 502, .body = "Bad"};
  });
  AdminClient client(server.socket());
  EXPECT_EQ(client.get("/html").error().code, Code::protocol);
  EXPECT_THAT(client.get("/other").error().what, testing::HasSubstr("502"));
}

TEST(AdminClient, EncodesWhatStandsInAPath) {
  EXPECT_EQ(machine_path("a b/c?d%", "/points"), "/v1/machines/a%20b%2Fc%3Fd%25/points");
  EXPECT_EQ(path_segment("2026-11-20T11:15:03+01:00"), "2026-11-20T11%3A15%3A03%2B01%3A00");
}

}  // namespace
}  // namespace tidemark::cli
