// Peers that misbehave: too slow, gone, or no TLS at all; and streams that change threads in the middle of it.
#include <gmock/gmock.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <asio/executor_work_guard.hpp>
#include <asio/post.hpp>
#include <atomic>
#include <random>
#include <thread>

#include "net/tls_stream.h"
#include "tests/unit/net/fixture.h"

namespace tidemark::net {
namespace {

using namespace test;
using testing::AnyOf;
using testing::HasSubstr;

// A stream whose other end is a bare socket, in the hands of the test.
class TlsRough : public testing::Test {
 protected:
  TlsRough() : bare_(io_) {}

  void begin(std::shared_ptr<TlsContext> context) {
    auto [ours, theirs] = connected_sockets(io_, io_);
    bare_ = std::move(theirs);
    bare_.non_blocking(true);
    stream_ = std::make_unique<TlsStream>(std::move(ours), std::move(context), buffer_, recorder_);
    stream_->start();
  }
  void say(std::string_view text) {
    ASSERT_EQ(::send(bare_.native_handle(), text.data(), text.size(), 0), std::ssize(text));
  }
  bool closed() {
    return run_until(io_, [&] { return recorder_.closed != 0; });
  }
  std::shared_ptr<TlsContext> agent() { return TlsContext::agent(pki_.machine(some_machine(1))).value(); }

  Pki pki_;
  asio::io_context io_;
  asio::ip::tcp::socket bare_;
  ReceiveBuffer buffer_;
  Recorder recorder_;
  std::unique_ptr<TlsStream> stream_;
};

TEST_F(TlsRough, WhoDoesNotSpeakTlsIsToldApart) {
  for (const std::string_view greeting : {"GET / HTTP/1.1\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "\n", "220 mail\r\n"}) {
    for (const bool server : {true, false}) {
      recorder_ = Recorder();
      begin(server ? pki_.server_context() : agent());
      say(greeting);
      ASSERT_TRUE(closed()) << greeting;
      EXPECT_EQ(recorder_.error->code, Code::protocol);
      EXPECT_THAT(recorder_.error->what, HasSubstr("does not speak TLS")) << greeting;
    }
  }
}

TEST_F(TlsRough, GarbageThatLooksLikeTlsEndsTheHandshake) {
  const std::uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  Random random(seed);
  for (int i = 0; i < 50; ++i) {
    recorder_ = Recorder();
    begin(i % 2 == 0 ? pki_.server_context() : agent());
    std::string record(5 + 200, '\0');
    random.fill(std::as_writable_bytes(std::span(record)));
    record[0] = static_cast<char>(20 + random.below(4));
    record[1] = 3;
    record[3] = 0;
    record[4] = static_cast<char>(200);
    say(record);
    bare_.shutdown(asio::ip::tcp::socket::shutdown_send);
    ASSERT_TRUE(closed());
    EXPECT_FALSE(recorder_.peer);
    EXPECT_THAT(recorder_.error->code,
                AnyOf(Code::protocol, Code::unsupported, Code::unavailable, Code::unauthenticated))
        << recorder_.message();
  }
}

TEST_F(TlsRough, ARecordTooLongIsRefusedByItsHeader) {
  begin(pki_.server_context());
  say(std::string_view("\x16\x03\x01\xff\xff", 5));
  ASSERT_TRUE(closed());
  EXPECT_EQ(recorder_.error->code, Code::protocol) << recorder_.message();
}

TEST_F(TlsRough, WhoVanishesInTheHandshakeIsForgotten) {
  begin(pki_.server_context());
  bare_.close();
  ASSERT_TRUE(closed());
  EXPECT_THAT(recorder_.error->what, HasSubstr("before the TLS handshake"));

  recorder_ = Recorder();
  begin(agent());
  std::array<char, 4096> hello{};
  std::error_code error;
  ASSERT_TRUE(run_until(io_, [&] { return bare_.read_some(asio::buffer(hello), error) > 10; }));
  bare_.set_option(asio::socket_base::linger(true, 0));
  bare_.close();  // a reset
  ASSERT_TRUE(closed());
  EXPECT_EQ(recorder_.error->code, Code::unavailable);
}

TEST_F(TlsRough, SilenceEndsAtTheDeadline) {
  begin(pki_.server_context());
  say("\x16");  // one byte is not enough either
  ASSERT_TRUE(closed());
  EXPECT_EQ(recorder_.error->code, Code::timed_out);
}

// Carries bytes between two sockets, at most `step` at a time.
struct Relay {
  asio::ip::tcp::socket left, right;
  std::size_t step;
  bool cut = false;
  std::uint64_t carried = 0;
  void turn() {
    if (cut) return;
    carry(left, right);
    carry(right, left);
  }
  void carry(asio::ip::tcp::socket& from, asio::ip::tcp::socket& to) {
    std::array<char, 4096> bytes;
    const ssize_t got = ::recv(from.native_handle(), bytes.data(), std::min(step, bytes.size()), MSG_DONTWAIT);
    if (got == 0) ::shutdown(to.native_handle(), SHUT_WR);
    if (got <= 0) return;
    carried += static_cast<std::uint64_t>(got);
    ASSERT_EQ(::send(to.native_handle(), bytes.data(), static_cast<std::size_t>(got), MSG_NOSIGNAL), got);
  }
};

TEST_F(TlsRough, OneByteAtATimeIsSlowButWhole) {
  auto [client_end, left] = connected_sockets(io_, io_);
  auto [server_end, right] = connected_sockets(io_, io_);
  Relay relay{std::move(left), std::move(right), 1};
  Recorder client_side;
  TlsStream client(std::move(client_end), agent(), buffer_, client_side);
  TlsStream server(std::move(server_end), pki_.server_context(), buffer_, recorder_);
  client.start();
  server.start();
  client_side.after_handshake = [&] { client.write(bytes_of("slow and steady")); };
  const auto until = [&](const std::function<bool()>& condition) {
    return run_until(io_, [&] {
      relay.turn();
      asio::post(io_, [] {});  // so that the loop does not sleep
      return condition();
    });
  };
  ASSERT_TRUE(until([&] { return recorder_.received == "slow and steady" || recorder_.closed; }))
      << recorder_.message();
  client.shutdown();
  ASSERT_TRUE(until([&] { return recorder_.closed && client_side.closed; }));
  EXPECT_FALSE(recorder_.error) << recorder_.message();
}

TEST_F(TlsRough, ACutAnywhereInTheHandshakeIsAnErrorAtBothEnds) {
  for (std::uint64_t at = 1; at < 4000; at += 97) {
    auto [client_end, left] = connected_sockets(io_, io_);
    auto [server_end, right] = connected_sockets(io_, io_);
    Relay relay{std::move(left), std::move(right), 16};
    Recorder client_side, server_side;
    TlsStream client(std::move(client_end), agent(), buffer_, client_side);
    TlsStream server(std::move(server_end), pki_.server_context(), buffer_, server_side);
    client.start();
    server.start();
    ASSERT_TRUE(run_until(io_, [&] {
      relay.turn();
      asio::post(io_, [] {});
      if (!relay.cut && (relay.carried >= at || (server_side.peer && client_side.peer))) {
        relay.cut = true;
        relay.left.close();
        relay.right.close();
      }
      return client_side.closed && server_side.closed;
    })) << at;
    EXPECT_TRUE(client_side.error && server_side.error) << at;
    EXPECT_EQ(server_side.error->code, Code::unavailable) << server_side.message();
  }
}

// ---- Moving between threads ----

// A loop on a thread of its own.
struct Shard {
  asio::io_context io;
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  ReceiveBuffer buffer;
  std::thread thread{[this] { io.run(); }};
  ~Shard() {
    work.reset();
    io.stop();
    thread.join();
  }
};

TEST_F(TlsRough, AStreamMovesBetweenThreadsWithBytesInFlight) {
  const std::uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr std::uint64_t kTotal = 16 << 20;
  // What a server does: it moves the session again and again, in the middle of what arrives, and answers on the way.
  struct Session {
    std::array<Shard, 2> shards;
    std::array<Recorder, 2> recorders;
    std::unique_ptr<TlsStream> stream;
    Random random;
    std::string received;
    std::size_t on = 0;
    int moves = 0;
    std::atomic<std::uint64_t> total{0};
    std::atomic<int> closed{0};
    std::atomic<bool> failed{false};

    explicit Session(std::uint64_t s) : random(s) {
      for (Recorder& recorder : recorders) {
        recorder.after_read = [this, &recorder] { on_read(recorder); };
        recorder.after_close = [this, &recorder] {
          failed = recorder.error.has_value();
          ++closed;
        };
      }
    }
    void on_read(Recorder& recorder) {
      received += recorder.received;
      recorder.received.clear();
      recorder.space_size = 1 + random.below(100'000);
      total = received.size();
      if (total == kTotal || !random.chance(0.2)) return;
      stream->write(bytes_of("moving\n"));
      ++moves;
      auto detached = stream->detach();
      if (!detached) return;
      on = 1 - on;
      Shard& shard = shards[on];
      asio::post(shard.io,
                 [this, &shard, d = std::make_shared<std::unique_ptr<TlsStream::Detached>>(std::move(detached))] {
                   stream = std::make_unique<TlsStream>(std::move(*d), shard.io, shard.buffer, recorders[on]);
                 });
    }
  } session(seed);

  auto [client_end, server_end] = connected_sockets(io_, session.shards[0].io);
  Recorder client_side;
  TlsStream client(std::move(client_end), agent(), buffer_, client_side);
  asio::post(session.shards[0].io, [&, context = pki_.server_context(),
                                    socket = std::make_shared<asio::ip::tcp::socket>(std::move(server_end))] {
    session.stream =
        std::make_unique<TlsStream>(std::move(*socket), context, session.shards[0].buffer, session.recorders[0]);
    session.stream->start();
  });
  client.start();
  ASSERT_TRUE(run_until(io_, [&] { return client_side.peer || client_side.closed; }));
  std::string sent(kTotal, '\0');
  Random(seed + 1).fill(std::as_writable_bytes(std::span(sent)));
  client.set_send_limits(1 << 20, 64 << 20);
  std::size_t at = 0;
  ASSERT_TRUE(run_until(io_, [&] {
    if (at < sent.size() && client.queued() < (1 << 20)) {
      const std::size_t size = std::min<std::size_t>(300'000, sent.size() - at);
      client.write(bytes_of(std::string_view(sent).substr(at, size)));
      at += size;
    }
    return session.total == kTotal || client_side.closed != 0;
  })) << session.total;
  // No more moves now. A client that has said goodbye need not hear what is still on its way.
  std::string told;
  for (int i = 0; i < session.moves; ++i) told += "moving\n";
  EXPECT_TRUE(run_until(io_, [&] { return client_side.received.size() >= told.size() || client_side.closed != 0; }));
  client.shutdown();
  EXPECT_TRUE(run_until(io_, [&] { return client_side.closed != 0 && session.closed != 0; }));
  EXPECT_FALSE(session.failed);
  EXPECT_TRUE(session.received == sent);
  EXPECT_GT(session.moves, 10);
  EXPECT_EQ(client_side.received, told) << "what was queued travels along";
}

TEST_F(TlsRough, APausedStreamKeepsWhatItHoldsWhenItMoves) {
  Pair pair(io_, pki_.server_context(), agent());
  pair.server_side.pause = true;
  ASSERT_TRUE(pair.handshake());
  const std::string sent(100'000, 'p');
  pair.client->write(bytes_of(sent));
  ASSERT_TRUE(run_until(io_, [&] { return pair.server_side.spaces == 1 && pair.client->queued() == 0; }));
  auto detached = pair.server->detach();
  ASSERT_NE(detached, nullptr);
  EXPECT_EQ(pair.server->detach(), nullptr);
  EXPECT_FALSE(pair.server->write(bytes_of("late")));
  asio::io_context other;
  Recorder recorder;
  TlsStream moved(std::move(detached), other, buffer_, recorder);
  EXPECT_EQ(moved.peer().machine, some_machine(1));
  ASSERT_TRUE(run_until(other, [&] { return recorder.received.size() == sent.size(); }));
  EXPECT_TRUE(recorder.received == sent);
  EXPECT_EQ(pair.server_side.closed, 0);
}

TEST_F(TlsRough, AStreamThatIsNeverAttachedIsClosed) {
  Pair pair(io_, pki_.server_context(), agent());
  ASSERT_TRUE(pair.handshake());
  pair.server->detach().reset();
  ASSERT_TRUE(run_until(io_, [&] { return pair.client_side.closed != 0; }));
  EXPECT_EQ(pair.client_side.error->code, Code::unavailable);
}

}  // namespace
}  // namespace tidemark::net
