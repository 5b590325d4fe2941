// Who is not let in, and what a peer that breaks the rules gets.
#include "server/node.h"
#include "server_fixture.h"

namespace tidemark::server {
namespace {

using ServerRefusals = ServerTest;

TEST_F(ServerRefusals, EachBadTokenGetsItsOwnError) {
  start();
  const auto good = token();
  ASSERT_TRUE(enrol(io, good, "web1"));
  EXPECT_EQ(enrol(io, good, "web2").error().what, "token was already used");
  auto unknown = net::decode_token(good).value();
  unknown.secret.fill(std::byte{1});
  EXPECT_EQ(enrol(io, net::encode_token(unknown), "web2").error().code, Code::unauthenticated);
  const auto expiring = token(R"({"ttl_seconds": 1})");
  clock.advance(std::chrono::seconds(2));
  EXPECT_NE(enrol(io, expiring, "web2").error().what.find("expired"), std::string::npos);
  const auto for_web1 = token(R"({"machine": "web1"})");
  EXPECT_EQ(enrol(io, for_web1, "web2").error().code, Code::permission_denied);
  EXPECT_EQ(enrol(io, token(), "web1").error().code, Code::already_exists) << "the name is taken";
  EXPECT_EQ(enrol(io, token(), "no good").error().code, Code::invalid_argument);
  EXPECT_GE(metric("tidemark_refused_total{reason=\"token\"}"), 6);
  EXPECT_EQ(admin("GET", "/v1/machines").json()["machines"].size(), 1u);
}

TEST_F(ServerRefusals, ATokenIsNotSpentOnAnEnrolmentThatFails) {
  start();
  ASSERT_TRUE(enrol(io, token(), "web1"));
  const auto second = token();
  EXPECT_FALSE(enrol(io, second, "web1"));
  EXPECT_TRUE(enrol(io, second, "web2"));
}

TEST_F(ServerRefusals, AMachineEnrolledAgainKeepsItsHistoryAndLosesItsOldCertificate) {
  start();
  const auto old = enrolled();
  auto agent = connect(old);
  ASSERT_TRUE(agent->welcomed());
  const auto plain = initial(*agent);
  const auto renewed = enrol(io, token(R"({"machine": "web1"})"), "web1");
  ASSERT_TRUE(renewed) << renewed.error().message();
  EXPECT_EQ(renewed->machine, old.machine);
  EXPECT_TRUE(agent->until([&] { return agent->server_error.has_value(); })) << "the old one's session ends";
  auto refused = connect(old);
  EXPECT_FALSE(refused->welcomed());
  EXPECT_EQ(refused->server_error->what, "this certificate is revoked");
  auto again = connect(*renewed, agent->session.memory());
  ASSERT_TRUE(again->welcomed()) << again->server_error->message();
  EXPECT_FALSE(again->diverged);
  EXPECT_TRUE(admin("GET", "/v1/machines/web1/points/latest/disks/vda/data").body == text_of(plain));
}

TEST_F(ServerRefusals, WhoComesWhileAllHandshakesAreTakenWaitsUntilOneIsDone) {
  config.server.shards = 1;
  config.limits.handshakes = 2;
  start();
  const auto who = enrolled();
  const auto port = net::parse_host_port(server->address()).value().port;
  const auto silent = [&] {
    asio::ip::tcp::socket socket(io);
    socket.connect({asio::ip::address_v4::loopback(), port});
    return socket;
  };
  clock.hold();
  auto first = silent();
  const auto second = silent();
  asio::steady_timer later(io, std::chrono::milliseconds(300));
  later.async_wait([&](std::error_code) { first.close(); });
  EXPECT_TRUE(connect(who)->welcomed());
  EXPECT_EQ(metric("tidemark_refused_total{reason=\"handshakes\"}"), 0);

  const auto third = silent();  // and nobody goes on: the next one is not kept waiting behind them
  later.expires_after(std::chrono::milliseconds(20));
  later.async_wait([&](std::error_code) { clock.advance(std::chrono::seconds(3)); });
  asio::ip::tcp::socket refused = silent();
  std::error_code closed;
  char byte = 0;
  refused.async_read_some(asio::buffer(&byte, 1), [&](std::error_code error, std::size_t) { closed = error; });
  EXPECT_TRUE(run_until(io, [&] { return static_cast<bool>(closed); }));
  EXPECT_EQ(metric("tidemark_refused_total{reason=\"handshakes\"}"), 1);
}

TEST_F(ServerRefusals, ACloneIsQuarantinedUntilAnAdministratorDecides) {
  start();
  const auto who = enrolled();
  auto original = connect(who);
  ASSERT_TRUE(original->welcomed());
  initial(*original);
  auto clone = connect(who, {}, 'x');
  EXPECT_FALSE(clone->welcomed());
  EXPECT_EQ(clone->server_error->code, Code::quarantined);
  EXPECT_FALSE(machine()["quarantine"].is_null());
  EXPECT_EQ(metric("tidemark_refused_total{reason=\"quarantined\"}"), 1);
  original->begin(2, pb::DELTA);
  EXPECT_TRUE(original->commit()) << "the original goes on";

  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"quarantine": "keep"})").status, 200);
  EXPECT_TRUE(machine()["quarantine"].is_null());
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"quarantine": "keep"})").status, 400);

  EXPECT_FALSE(connect(who, {}, 'x')->welcomed());
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"quarantine": "accept"})").status, 200);
  EXPECT_TRUE(original->until([&] { return original->server_error.has_value(); }));
  auto accepted = connect(who, original->session.memory(), 'x');
  EXPECT_TRUE(accepted->welcomed());
}

TEST_F(ServerRefusals, OneSessionAMachine) {
  start();
  const auto who = enrolled();
  auto first = connect(who);
  ASSERT_TRUE(first->welcomed());
  auto rebooted = connect(who, {}, 'f', 'c');
  EXPECT_FALSE(rebooted->welcomed());
  EXPECT_EQ(rebooted->server_error->code, Code::already_exists);
  EXPECT_GT(rebooted->retry_after_ms, 0u);
  auto reconnected = connect(who);
  EXPECT_TRUE(reconnected->welcomed()) << "the same boot of the same machine: its link was cut";
  EXPECT_TRUE(first->until([&] { return first->line.closed; }));
}

TEST_F(ServerRefusals, RevokedAndRemovedMachinesAreThrownOutAndKeptOut) {
  config.retention.removal_holdoff = 0;
  start();
  const auto who = enrolled();
  auto agent = connect(who);
  ASSERT_TRUE(agent->welcomed());
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"revoked": true})").status, 200);
  EXPECT_TRUE(agent->until([&] { return agent->server_error.has_value(); }));
  EXPECT_EQ(agent->server_error->code, Code::permission_denied);
  auto again = connect(who);
  EXPECT_FALSE(again->welcomed());
  EXPECT_EQ(machine()["state"], "stopped");
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"revoked": false})").status, 200);
  EXPECT_TRUE(connect(who)->welcomed());

  EXPECT_EQ(admin("DELETE", "/v1/machines/web1").status, 400) << "it needs confirm";
  EXPECT_EQ(admin("DELETE", "/v1/machines/web1?confirm=web1").status, 204);
  EXPECT_EQ(admin("GET", "/v1/machines/web1").status, 404);
  EXPECT_FALSE(connect(who)->welcomed());
  EXPECT_TRUE(enrol(io, token(), "web1")) << "the name is free again";
}

TEST_F(ServerRefusals, AMachineIsRenamedUnlessTheNameIsTaken) {
  start();
  enrolled("web1");
  enrolled("web2");
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"name": "web2"})").status, 409);
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"name": "a b"})").status, 400);
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"nme": "x"})").status, 400);
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", "nonsense").status, 400);
  EXPECT_EQ(admin("PATCH", "/v1/machines/web1", R"({"name": "db1"})").json()["name"], "db1");
  restart();
  EXPECT_EQ(machine("db1")["name"], "db1");
  EXPECT_EQ(admin("GET", "/v1/machines/web1").status, 404);
}

TEST_F(ServerRefusals, ACertificateIsRenewedAndTheOldOneEndsWhenTheNewOneIsShown) {
  start();
  const auto who = enrolled();
  auto agent = connect(who);
  ASSERT_TRUE(agent->welcomed());
  EXPECT_FALSE(agent->session.welcome().certificate_expires_soon());
  ASSERT_TRUE(agent->session.renew(net::make_request_for_key(who.credentials.key_pem, "web1").value()));
  ASSERT_TRUE(agent->until([&] { return agent->renewed.has_value(); }));
  agent->line.cut();
  Identity renewed = who;
  renewed.credentials.certificate_pem = *agent->renewed;
  EXPECT_TRUE(connect(who)->welcomed()) << "the answer might have been lost";
  EXPECT_TRUE(connect(renewed)->welcomed());
  EXPECT_FALSE(connect(who)->welcomed());
  clock.advance(std::chrono::hours(24 * 70));
  auto late = connect(renewed);
  ASSERT_TRUE(late->welcomed());
  EXPECT_TRUE(late->session.welcome().certificate_expires_soon());
}

TEST_F(ServerRefusals, GarbageBitFlipsAndReplaysEndTheSessionAndNothingElse) {
  start();
  const auto who = enrolled();
  auto bystander = connect(enrolled("web2"));
  ASSERT_TRUE(bystander->welcomed());
  const auto expect_refused = [&](const std::function<void(ScriptedAgent&)>& mischief) {
    auto agent = connect(who);
    ASSERT_TRUE(agent->welcomed()) << agent->server_error->message();
    mischief(*agent);
    ASSERT_TRUE(agent->until([&] { return agent->server_error.has_value(); }));
    EXPECT_EQ(agent->server_error->code, Code::protocol) << agent->server_error->message();
  };
  expect_refused([](ScriptedAgent& agent) { agent.line.write_raw(std::vector<std::byte>(32, std::byte{0xee})); });
  expect_refused([](ScriptedAgent& agent) {
    agent.line.write(wire::FrameType::ping, DiskId(0), {}, 0);
  });  // a number that was had
  expect_refused(
      [](ScriptedAgent& agent) { agent.line.write(wire::FrameType::ping, DiskId(0), {}, 9); });  // one of the future
  expect_refused([](ScriptedAgent& agent) { agent.line.write(wire::FrameType::welcome, DiskId(0), {}, 1); });
  expect_refused([](ScriptedAgent& agent) {
    agent.line.write(wire::FrameType::epoch_commit, DiskId(0), std::vector<std::byte>(5, std::byte{0xff}), 1);
  });
  expect_refused([](ScriptedAgent& agent) {
    std::array<std::byte, limits::kFrameHeaderSize> head;
    wire::encode({.type = wire::FrameType::ping, .payload_size = 0, .disk = DiskId(0), .number = 1}, head);
    head[9] ^= std::byte{4};
    agent.line.write_raw(head);
  });
  bystander->session.ping();
  EXPECT_TRUE(bystander->until([&] { return true; }));
  EXPECT_TRUE(bystander->session.ready());
  EXPECT_GE(metric("tidemark_session_errors_total{code=\"protocol\"}"), 6);
}

TEST_F(ServerRefusals, ASlowSenderHasADeadlineForItsFrame) {
  start();
  auto agent = connect(enrolled());
  ASSERT_TRUE(agent->welcomed());
  std::array<std::byte, limits::kFrameHeaderSize> head;
  wire::encode({.type = wire::FrameType::blocks, .payload_size = 1000, .disk = DiskId(0), .number = 1}, head);
  agent->line.write_raw(head);
  agent->line.write_raw(std::vector<std::byte>(10));
  ASSERT_TRUE(agent->until([&] { return metric("tidemark_frame_pool_bytes{") > 0; })) << "the frame has a buffer";
  clock.advance(std::chrono::seconds(limits::kFrameDeadlineSeconds + 1));
  ASSERT_TRUE(agent->until([&] { return agent->server_error.has_value(); }));
  EXPECT_EQ(agent->server_error->code, Code::timed_out);
  EXPECT_TRUE(agent->until([&] { return metric("tidemark_frame_pool_bytes{") == 0; })) << "and gives it back";
}

TEST_F(ServerRefusals, WhoSaysNothingIsLetGo) {
  start();
  const auto who = enrolled();
  Line silent(io, server->address(), net::TlsContext::agent(who.credentials).value());
  ASSERT_TRUE(silent.connected);
  auto idle = connect(who);
  ASSERT_TRUE(idle->welcomed());
  clock.advance(std::chrono::seconds(limits::kHandshakeDeadlineSeconds + 1));
  EXPECT_EQ(silent.wait_for_error().what, "no Hello within 10 seconds");
  EXPECT_TRUE(idle->session.ready());
  clock.advance(std::chrono::seconds(limits::kIdleSessionSeconds + 1));
  ASSERT_TRUE(idle->until([&] { return idle->server_error.has_value(); }));
  EXPECT_EQ(idle->server_error->code, Code::timed_out);
}

TEST_F(ServerRefusals, ACertificateOfAnotherAuthorityOrNoneIsRefused) {
  start();
  const auto who = enrolled();
  const auto foreign = net::make_authority("foreign", Clock::system().wall_us()).value();
  const auto request = net::make_request("x").value();
  Identity stranger = who;
  stranger.credentials.key_pem = request.key_pem;
  stranger.credentials.certificate_pem =
      net::issue_machine(foreign, request.csr_pem, who.machine, Clock::system().wall_us()).value();
  Line line(io, server->address(), net::TlsContext::agent(stranger.credentials).value());
  ASSERT_TRUE(run_until(io, [&] { return line.closed; }));
  ASSERT_TRUE(line.error);
  EXPECT_EQ(line.error->code, Code::unauthenticated) << line.error->message();
  // The peer may know before it is counted.
  EXPECT_TRUE(run_until(io, [&] { return metric("tidemark_refused_total{reason=\"handshake_failed\"}") >= 1; }));
}

TEST_F(ServerRefusals, OverTheLimitOfSessionsAMachineIsToldToComeLater) {
  config.limits.sessions = 1;
  start();
  const auto first = enrolled("web1");
  ASSERT_TRUE(run_until(io, [&] { return server->node().sessions.taken() == 0; }))
      << "the enrolment's own connection is over";
  const auto second = enrolled("web2");
  ASSERT_TRUE(run_until(io, [&] { return server->node().sessions.taken() == 0; }));
  auto agent = connect(first);
  ASSERT_TRUE(agent->welcomed());
  auto late = connect(second);
  EXPECT_FALSE(late->welcomed());
  ASSERT_TRUE(late->server_error);
  EXPECT_EQ(late->server_error->code, Code::busy);
  EXPECT_GT(late->retry_after_ms, 0u);
  EXPECT_EQ(metric("tidemark_refused_total{reason=\"sessions\"}"), 1);
}

TEST_F(ServerRefusals, AMachineThatRemembersMoreThanTheServerIsAnAlarm) {
  start();
  wire::AgentMemory memory;
  memory.durable_epoch = EpochNumber(7);
  memory.durable_digest = {1, 2};
  auto agent = connect(enrolled(), memory);
  ASSERT_TRUE(agent->welcomed());
  EXPECT_TRUE(agent->diverged);
  EXPECT_EQ(metric("tidemark_history_diverged_total"), 1);
}

}  // namespace
}  // namespace tidemark::server
