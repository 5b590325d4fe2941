// An agent as tests script it: the protocol's agent end over a real connection, every event kept.
#pragma once

#include <gtest/gtest.h>

#include <asio/io_context.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "net/certificates.h"
#include "net/connect.h"
#include "net/tls_stream.h"
#include "net/token.h"
#include "wire/agent_session.h"
#include "wire/frame_assembler.h"
#include "wire/messages.h"

namespace tidemark::server {

// Turns the loop until `condition` holds. The bound is for a broken build, not for a slow machine.
inline bool run_until(asio::io_context& io, const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    io.restart();
    io.run_one_for(std::chrono::milliseconds(20));
  }
  return true;
}

// A connection that speaks frames and keeps what comes.
class Line final : public net::TlsStream::Handler {
 public:
  struct Received {
    wire::FrameHeader header;
    std::vector<std::byte> payload;
  };

  Line(asio::io_context& io, const std::string& address, std::shared_ptr<net::TlsContext> tls) : io_(io) {
    std::optional<Result<asio::ip::tcp::socket>> socket;
    const net::Connecting connecting(io, address, std::chrono::seconds(30),
                                     [&](auto result) { socket = std::move(result); });
    EXPECT_TRUE(run_until(io, [&] { return socket.has_value(); }));
    EXPECT_TRUE(*socket) << socket->error().message();
    stream_ = std::make_unique<net::TlsStream>(std::move(**socket), std::move(tls), buffer_, *this);
    stream_->start();
    EXPECT_TRUE(run_until(io, [&] { return connected || closed; }));
  }

  std::function<void(const Received&)> on_frame;
  std::vector<Received> frames;  // when nobody listens
  bool connected = false, closed = false;
  std::optional<Error> error;

  void write(wire::FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t number) {
    std::array<std::byte, limits::kFrameHeaderSize> head;
    wire::encode(
        {.type = type, .payload_size = static_cast<std::uint32_t>(payload.size()), .disk = disk, .number = number},
        head);
    stream_->write(head, payload);
  }
  void write_raw(std::span<const std::byte> bytes) { stream_->write(bytes); }
  void cut() {
    stream_->close();
    closed = true;
  }
  // The next frame of this type, or nothing when the connection ended before.
  std::optional<Received> wait_for(wire::FrameType type) {
    std::optional<Received> found;
    EXPECT_TRUE(run_until(io_, [&] {
      for (const auto& frame : frames)
        if (frame.header.type == type) found = frame;
      return found || closed;
    }));
    return found;
  }
  Error wait_for_error() {
    const auto frame = wait_for(wire::FrameType::error);
    if (!frame) return error.value_or(Error{Code::ok, "", "closed without a word", ""});
    return wire::from_message(wire::decode<pb::Error>(wire::FrameType::error, frame->payload).value());
  }

 private:
  void on_handshake(const net::Peer&) override { connected = true; }
  std::span<std::byte> read_space() override { return input_.space(); }
  void on_read(std::size_t size) override {
    const auto filled = input_.filled(size);
    EXPECT_TRUE(filled) << filled.error().message();
    if (const auto frame = input_.frame()) {
      Received received{frame->header, {frame->payload.begin(), frame->payload.end()}};
      input_.consume();
      frames.push_back(received);
      if (on_frame) on_frame(received);
    }
  }
  void on_writable() override {}
  void on_closed(const std::optional<Error>& why) override {
    closed = true;
    error = why;
  }

  asio::io_context& io_;
  wire::HeapPayloadPool pool_{4 << 20};
  wire::FrameAssembler input_{pool_};
  net::ReceiveBuffer buffer_;
  std::unique_ptr<net::TlsStream> stream_;
};

struct Identity {
  MachineId machine;
  net::Credentials credentials;
};

// Enrols with a token; the answer, or what the server said.
inline Result<Identity> enrol(asio::io_context& io, const std::string& token_text, const std::string& name) {
  const auto token = TIDEMARK_TRY(net::decode_token(token_text));
  const auto request = TIDEMARK_TRY(net::make_request(name));
  Line line(io, token.address, TIDEMARK_TRY(net::TlsContext::enrolling(token.ca_sha256)));
  pb::EnrollRequest message;
  message.set_protocol_version(1);
  message.set_secret(token.secret.data(), token.secret.size());
  message.set_machine_name(name);
  message.set_csr_pem(request.csr_pem);
  message.set_fingerprint(std::string(32, 'f'));
  message.set_agent_version("test");
  const std::string bytes = message.SerializeAsString();
  line.write(wire::FrameType::enroll_request, DiskId(0), std::as_bytes(std::span(bytes)), 0);
  const auto reply = line.wait_for(wire::FrameType::enroll_reply);
  if (!reply) return std::unexpected(line.wait_for_error());
  const auto enrolled = TIDEMARK_TRY(wire::decode<pb::EnrollReply>(wire::FrameType::enroll_reply, reply->payload));
  return Identity{
      MachineId::parse(enrolled.machine_id()).value(),
      {.certificate_pem = enrolled.certificate_pem(), .key_pem = request.key_pem, .ca_pem = enrolled.ca_pem()}};
}

class ScriptedAgent final : private wire::AgentSession::Events {
 public:
  ScriptedAgent(asio::io_context& io, const std::string& address, Identity who, wire::AgentMemory memory = {},
                char fingerprint = 'f', char boot = 'b')
      : io_(io),
        identity(std::move(who)),
        line(io, address, net::TlsContext::agent(identity.credentials).value()),
        session(identity.machine, *this, Clock::system(), std::move(memory)) {
    line.on_frame = [this](const Line::Received& frame) {
      const auto taken = session.on_frame(frame.header, frame.payload);
      EXPECT_TRUE(taken) << taken.error().message();
    };
    pb::Hello hello;
    hello.set_agent_version("test");
    hello.set_machine_name("scripted");
    hello.set_fingerprint(std::string(32, fingerprint));
    hello.set_boot_id(std::string(16, boot));
    session.start(std::move(hello));
  }
  // True: welcomed. False: the server said no, see server_error.
  bool welcomed() {
    EXPECT_TRUE(run_until(io_, [&] { return session.ready() || line.closed || server_error; }));
    return session.ready();
  }
  bool until(const std::function<bool()>& condition) {
    return run_until(io_, [&] { return condition() || line.closed; }) && condition();
  }
  std::uint32_t open_disk(const std::string& name, std::uint64_t size) {
    pb::OpenDisk open;
    open.set_identity("id-" + name);
    open.set_name(name);
    open.set_size(size);
    const std::size_t before = opened.size();
    EXPECT_TRUE(session.open_disk(open));
    EXPECT_TRUE(until([&] { return opened.size() > before; }));
    return opened.empty() ? 0 : opened.back().disk();
  }
  void begin(std::uint64_t number, pb::EpochKind kind) {
    pb::EpochBegin message;
    message.set_number(number);
    message.set_kind(kind);
    for (const auto& disk : session.disks()) {
      auto* size = message.add_disks();
      size->set_disk(disk.disk());
      size->set_size(disk.size());
    }
    const auto begun = session.begin_epoch(message);
    EXPECT_TRUE(begun) << begun.error().message();
    epoch = EpochNumber(number);
  }
  // One granule or more, as one frame.
  void send(std::uint32_t disk, std::uint64_t first_granule, std::span<const std::byte> plain) {
    wire::BlockEncoder encoder(identity.machine);
    encoder.start(DiskId(disk), epoch);
    for (std::size_t at = 0; at < plain.size(); at += limits::kBlockPlainSizeMax)
      encoder.add(first_granule + at / limits::kGranuleSize,
                  plain.subspan(at, std::min(plain.size() - at, limits::kBlockPlainSizeMax)));
    EXPECT_TRUE(until([&] { return session.credit() >= encoder.payload().size(); }));
    const auto sent = session.send_blocks(DiskId(disk), encoder.payload(), encoder.summary());
    EXPECT_TRUE(sent) << sent.error().message();
  }
  bool commit(pb::Consistency consistency = pb::CRASH) {
    const auto committed = session.commit_epoch(Clock::system().wall_us(), consistency);
    EXPECT_TRUE(committed) << committed.error().message();
    return until([&] { return durable >= epoch; });
  }

 private:
  asio::io_context& io_;

 public:
  Identity identity;
  Line line;
  wire::AgentSession session;
  EpochNumber epoch, durable;
  std::vector<pb::DiskOpened> opened;
  std::vector<pb::DigestReply> digests;
  std::vector<pb::Resend> resends;
  std::optional<pb::OpenEpoch> open_progress;
  std::optional<Error> server_error, diverged;
  std::optional<std::string> goodbye, renewed;
  std::uint32_t retry_after_ms = 0;

 private:
  void send(wire::FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t number) override {
    line.write(type, disk, payload, number);
  }
  void on_welcome(const pb::Welcome&) override {}
  void on_history_diverged(const Error& why) override { diverged = why; }
  void on_disk_opened(const pb::DiskOpened& disk) override { opened.push_back(disk); }
  void on_epoch_begun(EpochNumber) override {}
  void on_durable(EpochNumber number, const Hash128&) override { durable = number; }
  void on_open_epoch_progress(const pb::OpenEpoch& open) override { open_progress = open; }
  void on_credit() override {}
  void on_digests(const pb::DigestReply& reply) override { digests.push_back(reply); }
  void on_throttle(std::uint32_t, const std::string&) override {}
  void on_resend(const pb::Resend& ranges) override { resends.push_back(ranges); }
  void on_renewed(const std::string& certificate) override { renewed = certificate; }
  void on_server_error(const Error& error, std::uint32_t retry) override {
    server_error = error;
    retry_after_ms = retry;
  }
  void on_goodbye(const std::string& reason, std::uint32_t retry) override {
    goodbye = reason;
    retry_after_ms = retry;
  }
};

}  // namespace tidemark::server
