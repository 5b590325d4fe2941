// One simulated machine with one disk: a real TLS session and the agent's own state machine, sending blocks made on
// the spot. All sessions of a run share one thread and its buffers.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/random.h"
#include "bench/load/enroll.h"
#include "net/connect.h"
#include "net/tls_stream.h"
#include "wire/agent_session.h"
#include "wire/frame_assembler.h"

namespace tidemark::bench {

enum class Profile : std::uint8_t {
  idle,   // connects and stays
  bulk,   // an initial sync that never pauses: 64 KiB blocks in frames of about 1 MiB
  small,  // epochs of `blocks_per_epoch` random blocks, the next one begins when the last is durable
};

struct LoadOptions {
  Profile profile = Profile::bulk;
  std::uint64_t disk_size = 64ULL << 30;
  std::uint32_t block_size = 4096;      // small
  std::uint32_t blocks_per_epoch = 32;  // small
  double compressible = 0;              // share of every block that is zeroes
  int zstd_level = 0;
  std::chrono::milliseconds epoch_interval{0};  // small: open loop, an epoch is due this often; 0: closed loop
};

// What all sessions count into; one thread.
struct LoadCounters {
  std::uint64_t connected = 0, epochs_durable = 0, blocks_sent = 0, plain_bytes_durable = 0, errors = 0;
  std::uint64_t plain_bytes_sent = 0;
  std::vector<std::uint32_t> ack_us;  // from the moment an epoch was due to its Durable
  std::string first_error;
};

class LoadSession final : public net::TlsStream::Handler, public wire::AgentSession::Events {
 public:
  LoadSession(asio::io_context& io, net::ReceiveBuffer& buffer, std::string address, Identity identity,
              const LoadOptions& options, LoadCounters& counters, std::uint64_t seed);
  ~LoadSession();

  void start();
  void finish();  // sends nothing new; a bulk session commits what it has
  bool finished() const { return finished_; }

 private:
  using Time = std::chrono::steady_clock::time_point;

  void on_connected(Result<asio::ip::tcp::socket> socket);
  void fail_with(const Error& error);
  void pump();
  bool send_bulk_frame();
  void begin_small_epoch(Time due);
  std::span<const std::byte> plain_block(std::size_t size);

  void on_handshake(const net::Peer& peer) override;
  std::span<std::byte> read_space() override { return assembler_.space(); }
  void on_read(std::size_t size) override;
  void on_writable() override { pump(); }
  void on_closed(const std::optional<Error>& error) override;

  void send(wire::FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t number) override;
  void on_welcome(const pb::Welcome& welcome) override;
  void on_history_diverged(const Error& why) override { fail_with(why); }
  void on_disk_opened(const pb::DiskOpened& disk) override;
  void on_epoch_begun(EpochNumber epoch) override;
  void on_durable(EpochNumber epoch, const Hash128& digest) override;
  void on_open_epoch_progress(const pb::OpenEpoch& open) override;
  void on_credit() override { pump(); }
  void on_digests(const pb::DigestReply&) override {}
  void on_throttle(std::uint32_t, const std::string&) override {}
  void on_resend(const pb::Resend&) override {}
  void on_renewed(const std::string&) override {}
  void on_server_error(const Error& error, std::uint32_t retry_after_ms) override;
  void on_goodbye(const std::string&, std::uint32_t) override {}

  asio::io_context& io_;
  net::ReceiveBuffer& buffer_;
  std::string address_;
  Identity identity_;
  const LoadOptions& options_;
  LoadCounters& counters_;
  Random random_;
  wire::HeapPayloadPool pool_{limits::kControlPayloadMax * 2};
  wire::FrameAssembler assembler_;
  wire::AgentSession session_;
  wire::BlockEncoder encoder_;
  std::unique_ptr<net::Connecting> connecting_;
  std::unique_ptr<net::TlsStream> stream_;
  asio::steady_timer timer_;
  std::vector<std::byte> plain_;
  std::vector<std::byte> frame_;  // bulk: made, waiting for credit
  std::optional<wire::BlocksSummary> frame_summary_;
  DiskId disk_;
  std::uint64_t next_granule_ = 0;
  std::uint64_t durable_blocks_ = 0;
  Time due_{};
  bool initial_done_ = false, begun_ = false, writable_ = true, finishing_ = false, finished_ = false;
};

}  // namespace tidemark::bench
