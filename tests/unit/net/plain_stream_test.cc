#include "net/plain_stream.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <asio/io_context.hpp>
#include <cstring>
#include <string>
#include <thread>

#include "base/units.h"

namespace tidemark::net {
namespace {

class Receiver final : public TlsStream::Handler {
 public:
  void on_handshake(const Peer&) override { ADD_FAILURE() << "there is none"; }
  std::span<std::byte> read_space() override {
    return paused ? std::span<std::byte>() : std::span(space).first(at_once);
  }
  void on_read(std::size_t size) override { received.append(reinterpret_cast<const char*>(space.data()), size); }
  void on_writable() override { ++writable; }
  void on_closed(const std::optional<Error>& why) override {
    ++closed;
    error = why;
  }

  std::array<std::byte, 64_KiB> space{};
  std::size_t at_once = 64_KiB;
  bool paused = false;
  std::string received;
  int writable = 0, closed = 0;
  std::optional<Error> error;
};

class PlainStreamTest : public testing::Test {
 protected:
  PlainStreamTest() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    peer_ = ends[1];
    stream_ = std::make_unique<PlainStream>(
        PlainStream::Socket(io_, asio::generic::stream_protocol(AF_UNIX, 0), ends[0]), handler_);
  }
  ~PlainStreamTest() override { hang_up(); }

  void hang_up() {
    if (peer_ >= 0) ::close(std::exchange(peer_, -1));
  }
  template <typename Condition>
  bool run_until(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition() && std::chrono::steady_clock::now() < end) {
      io_.restart();
      io_.run_one_for(std::chrono::milliseconds(50));
    }
    return condition();
  }
  // What would be done without anything new from outside.
  void settle() {
    io_.restart();
    io_.poll();
  }
  void peer_sends(const std::string& text) {
    ASSERT_EQ(::send(peer_, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }
  // What there is for the peer, without waiting; false at the end of the stream.
  bool peer_takes(std::string& to) {
    char buffer[65536];
    for (;;) {
      const ssize_t n = ::recv(peer_, buffer, sizeof buffer, MSG_DONTWAIT);
      if (n == 0) return false;
      if (n < 0) return true;
      to.append(buffer, static_cast<std::size_t>(n));
    }
  }

  asio::io_context io_;
  Receiver handler_;
  int peer_ = -1;
  std::unique_ptr<PlainStream> stream_;
};

TEST_F(PlainStreamTest, WhatComesGoesIntoTheHandlersSpaceHoweverSmall) {
  handler_.at_once = 3;
  stream_->start();
  peer_sends("what a disk is asked for");
  ASSERT_TRUE(run_until([&] { return handler_.received.size() == 24; }));
  EXPECT_EQ(handler_.received, "what a disk is asked for");
  EXPECT_EQ(stream_->counters().bytes_received, 24u);
}

TEST_F(PlainStreamTest, NothingIsReadWithoutSpaceAndNothingIsLost) {
  handler_.paused = true;
  stream_->start();
  peer_sends("later");
  settle();
  settle();
  EXPECT_EQ(handler_.received, "");
  handler_.paused = false;
  stream_->resume_reading();
  ASSERT_TRUE(run_until([&] { return handler_.received == "later"; }));
}

TEST_F(PlainStreamTest, MoreThanTheSocketHoldsArrivesInOrderAndTheOwnerGoesWhenItIsSent) {
  std::string expected;
  auto owner = std::make_shared<std::string>(3_MiB, 'b');
  const std::weak_ptr<std::string> alive = owner;
  stream_->write("first ");
  stream_->write("head ", owner, std::as_bytes(std::span(*owner)));
  expected = "first head " + *owner;
  for (int i = 0; i < 200; ++i) {  // more pieces than one call can gather
    stream_->write(std::to_string(i) + " ");
    expected += std::to_string(i) + " ";
  }
  owner.reset();
  EXPECT_EQ(stream_->queued(), expected.size());
  settle();
  EXPECT_GT(stream_->queued(), 0u) << "the peer has taken nothing yet";
  EXPECT_FALSE(alive.expired());
  EXPECT_EQ(handler_.writable, 0);
  std::string got;
  ASSERT_TRUE(run_until([&] {
    peer_takes(got);
    return got.size() >= expected.size() && handler_.writable > 0;
  }));
  EXPECT_EQ(got, expected);
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(stream_->queued(), 0u);
  EXPECT_EQ(stream_->counters().bytes_sent, expected.size());
}

TEST_F(PlainStreamTest, ShutdownSendsWhatIsQueuedFirst) {
  stream_->start();
  const std::string text(2_MiB, 'x');
  stream_->write(text);
  stream_->shutdown();
  stream_->write("not this any more");
  std::string got;
  bool open = true;
  ASSERT_TRUE(run_until([&] {
    open = peer_takes(got);
    return !open;
  }));
  EXPECT_EQ(got, text);
  EXPECT_EQ(handler_.closed, 1);
  EXPECT_FALSE(handler_.error);
}

TEST_F(PlainStreamTest, ThePeersEndIsToldOnceAndIsNoError) {
  stream_->start();
  hang_up();
  ASSERT_TRUE(run_until([&] { return handler_.closed == 1; }));
  EXPECT_FALSE(handler_.error);
  settle();
  EXPECT_EQ(handler_.closed, 1);
}

TEST_F(PlainStreamTest, APeerThatLeftWithoutItsAnswersIsAnError) {
  stream_->write(std::string(3_MiB, 'x'));
  settle();
  hang_up();
  ASSERT_TRUE(run_until([&] { return handler_.closed == 1; }));
  EXPECT_TRUE(handler_.error);
}

TEST_F(PlainStreamTest, CloseIsAtOnceAndTellsNobody) {
  stream_->start();
  stream_->write("never sent");
  stream_->close();
  settle();
  EXPECT_EQ(handler_.closed, 0);
  std::string got;
  EXPECT_FALSE(peer_takes(got));
  EXPECT_EQ(got, "");
}

TEST_F(PlainStreamTest, TheSocketIsGivenOutOnlyWithNothingUnderWay) {
  stream_->write("queued");
  EXPECT_FALSE(stream_->release());
  std::string got;
  ASSERT_TRUE(run_until([&] {
    peer_takes(got);
    return got == "queued";
  }));
  auto socket = stream_->release();
  ASSERT_TRUE(socket);
  EXPECT_FALSE(stream_->release());
  stream_.reset();
  ASSERT_EQ(::send(socket->native_handle(), "raw", 3, 0), 3);
  peer_takes(got);
  EXPECT_EQ(got, "queuedraw");
}

}  // namespace
}  // namespace tidemark::net
