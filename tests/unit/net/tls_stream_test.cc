#include "net/tls_stream.h"

#include <gmock/gmock.h>

#include "tests/unit/net/fixture.h"
#include "wire/frame.h"

namespace tidemark::net {
namespace {

using namespace test;
using testing::HasSubstr;

class TlsStreamTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { pki_ = new Pki; }
  static void TearDownTestSuite() {
    delete pki_;
    pki_ = nullptr;
  }
  std::shared_ptr<TlsContext> agent(std::uint8_t n = 7) {
    return TlsContext::agent(pki_->machine(some_machine(n))).value();
  }

  static Pki* pki_;
  asio::io_context io_;
};
Pki* TlsStreamTest::pki_ = nullptr;

TEST_F(TlsStreamTest, BothEndsKnowEachOtherAfterTheHandshake) {
  Pair pair(io_, pki_->server_context(), agent());
  ASSERT_TRUE(pair.handshake()) << pair.server_side.message() << "; " << pair.client_side.message();
  EXPECT_EQ(pair.server_side.peer->alpn, wire::kAlpnMachine);
  EXPECT_TRUE(pair.server_side.peer->has_certificate);
  EXPECT_EQ(pair.server_side.peer->machine, some_machine(7));
  EXPECT_FALSE(pair.server_side.peer->resumed);
  EXPECT_TRUE(pair.client_side.peer->machine.is_nil());
  EXPECT_TRUE(pair.client_side.peer->address.starts_with("127.0.0.1:"));
  EXPECT_TRUE(pair.client->write(bytes_of("hello")));
  EXPECT_TRUE(pair.server->write(bytes_of("wel"), bytes_of("come")));
  EXPECT_TRUE(
      run_until(io_, [&] { return pair.server_side.received == "hello" && pair.client_side.received == "welcome"; }));
  pair.client->shutdown();
  ASSERT_TRUE(pair.both_closed());
  EXPECT_FALSE(pair.server_side.error) << pair.server_side.message();
  EXPECT_FALSE(pair.client_side.error) << pair.client_side.message();
}

}  // namespace
}  // namespace tidemark::net
