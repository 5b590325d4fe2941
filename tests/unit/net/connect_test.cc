#include "net/connect.h"

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <optional>

#include "net/acceptor.h"
#include "tests/unit/net/fixture.h"

namespace tidemark::net {
namespace {

using namespace test;
using namespace std::chrono_literals;
using asio::ip::tcp;
using testing::AnyOf;
using testing::HasSubstr;

TEST(HostPort, ReadsWhatPeopleWrite) {
  EXPECT_EQ(parse_host_port("web.example"), (HostPort{"web.example", kDefaultPort}));
  EXPECT_EQ(parse_host_port("web.example:1"), (HostPort{"web.example", 1}));
  EXPECT_EQ(parse_host_port("[2001:db8::7]:65535"), (HostPort{"2001:db8::7", 65535}));
  EXPECT_EQ(parse_host_port("[::]"), (HostPort{"::", kDefaultPort}));
  EXPECT_EQ(parse_host_port("[::1]:7")->to_string(), "[::1]:7");
  EXPECT_EQ(parse_host_port("h:7")->to_string(), "h:7");
}

TEST(HostPort, RefusesTheRest) {
  for (const std::string bad : {"", ":7443", "::1", "::1:7443", "[::1", "[::1]7443", "h:", "h:65536", "h:-1", "h:7x",
                                "h: 7", "a b:7", "user@h:7", "http://h:7", "[]:7"}) {
    EXPECT_EQ(parse_host_port(bad).error().code, Code::invalid_argument) << bad;
  }
  EXPECT_FALSE(parse_host_port(std::string(300, 'a')));
}

class ConnectTest : public testing::Test {
 protected:
  Result<tcp::socket> connect(const std::string& address, std::chrono::milliseconds timeout = 20s) {
    std::optional<Result<tcp::socket>> result;
    Connecting connecting(io_, address, timeout, [&](Result<tcp::socket> r) {
      EXPECT_FALSE(result) << "called once";
      result = std::move(r);
    });
    EXPECT_FALSE(result) << "never from the constructor";
    EXPECT_TRUE(run_until(io_, [&] { return result.has_value(); }));
    return *std::move(result);
  }
  asio::io_context io_;
};

TEST_F(ConnectTest, ConnectsToWhoListens) {
  int accepted = 0;
  auto acceptor = Acceptor::listen(io_, "127.0.0.1:0", [&](tcp::socket) { ++accepted; }, [](const Error&) {}).value();
  EXPECT_NE(acceptor->port(), 0);
  EXPECT_TRUE(connect(acceptor->address()));
  EXPECT_TRUE(connect("localhost:" + std::to_string(acceptor->port())));
  EXPECT_TRUE(run_until(io_, [&] { return accepted == 2; }));
}

TEST_F(ConnectTest, SaysWhyItCannot) {
  std::uint16_t free_port = 0;
  {
    tcp::acceptor acceptor(io_, {asio::ip::address_v4::loopback(), 0});
    free_port = acceptor.local_endpoint().port();
  }
  const Error refused = connect("127.0.0.1:" + std::to_string(free_port)).error();
  EXPECT_EQ(refused.code, Code::unavailable);
  EXPECT_THAT(refused.message(), HasSubstr("127.0.0.1:" + std::to_string(free_port) + ": refused"));

  const Error nameless = connect("no-such-host.invalid:7443").error();
  EXPECT_THAT(nameless.code, AnyOf(Code::not_found, Code::unavailable));  // the latter without any name service
  EXPECT_THAT(nameless.message(), HasSubstr("no-such-host.invalid"));

  EXPECT_EQ(connect("no:port:at:all").error().code, Code::invalid_argument);
}

TEST_F(ConnectTest, GivesUpInTime) {
  // A listener that never accepts and whose queue is full does not answer.
  tcp::acceptor acceptor(io_, tcp::v4());
  acceptor.bind({asio::ip::address_v4::loopback(), 0});
  acceptor.listen(0);
  std::vector<tcp::socket> filling;
  for (int i = 0; i < 4; ++i) {
    tcp::socket& socket = filling.emplace_back(io_, tcp::v4());
    socket.native_non_blocking(true);
    const tcp::endpoint full = acceptor.local_endpoint();
    static_cast<void>(::connect(socket.native_handle(), full.data(), static_cast<socklen_t>(full.size())));
  }
  const Error error = connect("127.0.0.1:" + std::to_string(acceptor.local_endpoint().port()), 100ms).error();
  EXPECT_EQ(error.code, Code::timed_out);
  EXPECT_THAT(error.message(), HasSubstr("100 ms"));
}

TEST_F(ConnectTest, CanBeGivenUpAtAnyTime) {
  tcp::acceptor acceptor(io_, {asio::ip::address_v4::loopback(), 0});
  const std::string address = "127.0.0.1:" + std::to_string(acceptor.local_endpoint().port());
  for (int turns = 0; turns < 4; ++turns) {
    auto connecting =
        std::make_unique<Connecting>(io_, address, 20s, [&](Result<tcp::socket>) { FAIL() << "it was given up"; });
    for (int i = 0; i < turns && turns < 2; ++i) {
      io_.restart();
      io_.run_one();
    }
    connecting.reset();
    io_.restart();
    io_.run();
  }
}

TEST(AcceptorTest, SaysWhyItCannotListen) {
  asio::io_context io;
  const auto listen = [&](const std::string& address) {
    return Acceptor::listen(io, address, [](tcp::socket) {}, [](const Error&) {});
  };
  const auto first = listen("127.0.0.1:0").value();
  const Error taken = listen(first->address()).error();
  EXPECT_EQ(taken.code, Code::busy);
  EXPECT_EQ(taken.object, first->address());
  EXPECT_EQ(listen("web.example:1").error().code, Code::invalid_argument);
  EXPECT_EQ(listen("192.0.2.7:0").error().code, Code::invalid_argument);
  EXPECT_EQ(listen("").error().code, Code::invalid_argument);
}

TEST(AcceptorTest, SharesAnAddressAmongThreadsWhenAsked) {
  asio::io_context io;
  const auto listen = [&](const std::string& address) {
    return Acceptor::listen(io, address, [](tcp::socket) {}, [](const Error&) {}, {.reuse_port = true, .backlog = 16});
  };
  const auto first = listen("127.0.0.1:0").value();
  EXPECT_TRUE(listen(first->address()));
}

TEST(AcceptorTest, ConnectionsWaitUntilThereIsRoom) {
  asio::io_context io;
  int accepted = 0, asked = 0;
  bool room = false;
  const auto acceptor = Acceptor::listen(
                            io, "127.0.0.1:0", [&](tcp::socket) { ++accepted, room = false; },
                            [](const Error& trouble) { FAIL() << trouble.message(); },
                            {.room =
                                 [&] {
                                   ++asked;
                                   return room;
                                 }})
                            .value();
  std::vector<tcp::socket> waiting;
  for (int i = 0; i < 3; ++i) {
    waiting.emplace_back(io).connect({asio::ip::address_v4::loopback(), acceptor->port()});
  }
  for (int i = 0; i < 3; ++i) {
    const int before = asked;
    EXPECT_TRUE(run_until(io, [&] { return asked > before + 2; }));
    EXPECT_EQ(accepted, i);
    room = true;
    EXPECT_TRUE(run_until(io, [&] { return accepted == i + 1; }));
  }
}

TEST(AcceptorTest, RunningOutOfDescriptorsIsReportedOnceAndPasses) {
  asio::io_context io;
  std::vector<tcp::socket> accepted;
  std::vector<Error> troubles;
  auto acceptor = Acceptor::listen(
                      io, "127.0.0.1:0", [&](tcp::socket socket) { accepted.push_back(std::move(socket)); },
                      [&](const Error& error) { troubles.push_back(error); })
                      .value();
  tcp::socket client(io);
  client.connect({asio::ip::address_v4::loopback(), acceptor->port()});
  ASSERT_TRUE(run_until(io, [&] { return accepted.size() == 1; }));
  tcp::socket late(io, tcp::v4());

  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const int highest = ::dup(0);
  rlimit none = before;
  none.rlim_cur = static_cast<rlim_t>(highest);  // no descriptor beyond those there are
  ::close(highest);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  late.connect({asio::ip::address_v4::loopback(), acceptor->port()});
  const auto start = std::chrono::steady_clock::now();
  int turns = 0;
  while (std::chrono::steady_clock::now() - start < 3 * std::chrono::milliseconds(Acceptor::kPauseMillis)) {
    io.restart();
    io.run_one_for(20ms);
    ++turns;
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_EQ(troubles.size(), 1u) << "once, not at every try";
  EXPECT_EQ(troubles[0].code, Code::busy);
  EXPECT_THAT(troubles[0].remedy, HasSubstr("open files"));
  EXPECT_LT(turns, 1000) << "it pauses";
  EXPECT_TRUE(run_until(io, [&] { return accepted.size() == 2; })) << "who waited is served after all";
}

TEST(AcceptorTest, MayBeDestroyedFromWithinACall) {
  asio::io_context io;
  std::unique_ptr<Acceptor> acceptor;
  acceptor = Acceptor::listen(io, "127.0.0.1:0", [&](tcp::socket) { acceptor.reset(); }, [](const Error&) {}).value();
  tcp::socket client(io);
  client.connect({asio::ip::address_v4::loopback(), acceptor->port()});
  ASSERT_TRUE(run_until(io, [&] { return acceptor == nullptr; }));
  io.restart();
  io.run();  // nothing is left to wait for
}

TEST(AcceptorTest, ASocketMovesToAnotherLoop) {
  asio::io_context io, other;
  auto [a, b] = connected_sockets(io, io);
  tcp::socket moved = move_socket(std::move(b), other).value();
  ASSERT_EQ(::send(a.native_handle(), "x", 1, 0), 1);
  bool readable = false;
  moved.async_wait(tcp::socket::wait_read, [&](std::error_code error) { readable = !error; });
  EXPECT_TRUE(run_until(other, [&] { return readable; }));
}

}  // namespace
}  // namespace tidemark::net
