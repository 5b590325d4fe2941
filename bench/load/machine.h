// One simulated machine: a real TLS session and the agent's own state machine, writing what the plan says. It comes
// back after a cut, as an agent does, and knows then what is durable.
//
// Memory: between frames it holds no payload; a frame is made only when credit and the send queue have room for it.
// Belongs to the thread of its io_context, with everything it is given.
#pragma once

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/random.h"
#include "bench/load/content.h"
#include "bench/load/counters.h"
#include "bench/load/enroll.h"
#include "bench/load/plan.h"
#include "net/connect.h"
#include "net/tls_stream.h"
#include "wire/agent_session.h"
#include "wire/frame_assembler.h"

namespace tidemark::bench {

struct LoadOptions {
  Plan plan;
  Content content;
  int zstd_level = 0;                           // 0: send as it is
  std::chrono::microseconds epoch_interval{0};  // open loop, an epoch is due this often; 0: when the last is durable
};

// Of one thread, shared by its machines.
struct MachineHost {
  asio::io_context& io;
  net::ReceiveBuffer& buffer;
  const LoadOptions& options;
  LoadCounters& counters;
  std::string address;
  std::function<void()> on_settled;  // a machine was welcomed, or gave up
};

// From which epoch on a machine's steps have been its epochs at a constant distance.
struct StepMark {
  std::uint64_t epoch;
  std::uint32_t step;
};

class Machine final : public net::TlsStream::Handler, public wire::AgentSession::Events {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Machine(MachineHost& host, std::uint32_t number, Identity identity);
  ~Machine();

  void connect();
  // Gone at once, with or without a farewell; connect() brings it back. `forget`: without its session ticket.
  void disconnect(bool orderly, bool forget);
  void activate(bool active);  // begins, or stops after the epoch at hand; an epoch of bulk is cut short
  bool quiet() const;          // nothing of an epoch is under way
  bool ready() const { return state_ == State::ready; }
  bool given_up() const { return state_ == State::failed; }
  void finish();  // no more reconnecting

  // Age of the newest moment that is durable. Nothing while inactive, or before the first epoch.
  std::optional<std::chrono::microseconds> staleness(Time now) const;

  // For verification, once quiet.
  const Identity& identity() const { return identity_; }
  std::uint32_t number() const { return number_; }
  const std::vector<StepMark>& marks() const { return marks_; }
  std::uint64_t durable_epoch() const { return memory_.durable_epoch.value(); }
  // Of bulk: how many writes of the last step, in its order, are in the newest epoch.
  std::uint64_t cut_short_at() const { return cut_short_at_; }

 private:
  enum class State : std::uint8_t { away, connecting, hello, opening, ready, failed };

  void on_connected(Result<asio::ip::tcp::socket> socket);
  void lost(const Error& error, std::uint32_t retry_after_ms);
  void come_back(std::chrono::milliseconds after);
  void close_stream(bool farewell = false);
  void after_opened();
  void begin(pb::EpochKind kind);
  void schedule();
  void schedule_at(Time when);
  void pump();
  bool send_frame();
  bool commit();
  void stay_alive();

  void on_handshake(const net::Peer& peer) override;
  std::span<std::byte> read_space() override { return assembler_->space(); }
  void on_read(std::size_t size) override;
  void on_writable() override { pump(); }
  void on_closed(const std::optional<Error>& error) override;

  void send(wire::FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t number) override;
  void on_welcome(const pb::Welcome& welcome) override;
  void on_history_diverged(const Error& why) override;
  void on_disk_opened(const pb::DiskOpened& disk) override;
  void on_epoch_begun(EpochNumber) override {}
  void on_durable(EpochNumber epoch, const Hash128& digest) override;
  void on_open_epoch_progress(const pb::OpenEpoch& open) override;
  void on_credit() override { pump(); }
  void on_digests(const pb::DigestReply&) override {}
  void on_throttle(std::uint32_t pause_ms, const std::string& reason) override;
  void on_resend(const pb::Resend&) override {}
  void on_renewed(const std::string&) override {}
  void on_server_error(const Error& error, std::uint32_t retry_after_ms) override;
  void on_goodbye(const std::string& reason, std::uint32_t retry_after_ms) override;

  MachineHost& host_;
  const std::uint32_t number_;
  Identity identity_;
  std::string address_;
  Random random_;  // of pauses only
  wire::HeapPayloadPool pool_{limits::kControlPayloadMax * 2};
  std::optional<wire::FrameAssembler> assembler_;
  wire::AgentMemory memory_;
  std::optional<wire::AgentSession> session_;
  std::shared_ptr<net::TlsContext> tls_;
  std::unique_ptr<net::Connecting> connecting_;
  std::unique_ptr<net::TlsStream> stream_;
  asio::steady_timer timer_;        // reconnecting, due epochs, keeping alive
  asio::steady_timer pause_timer_;  // the server's wish
  State state_ = State::away;
  std::uint32_t attempts_ = 0, redirects_ = 0;
  Time wished_{};  // to connect
  std::vector<DiskId> disks_;

  bool active_ = false, finishing_ = false, paused_ = false;
  bool sending_ = false;                       // blocks of the open epoch are still to be sent
  bool committed_ = false;                     // its Durable is awaited
  bool gone_ = true;                           // the connection is: what its last calls still say does not count
  bool first_done_ = false;                    // the machine is known: its next epochs are deltas
  std::uint32_t step_ = 0, durable_step_ = 0;  // the last one that was begun; that is durable
  Plan::Cursor cursor_;
  std::optional<PlannedWrite> next_write_;
  std::uint64_t writes_in_step_ = 0, blocks_in_step_ = 0, plain_in_step_ = 0;  // sent; blocks of zeroes are merged
  std::uint64_t told_blocks_ = 0, told_plain_ = 0;                             // of these counted as durable already
  std::uint64_t cut_short_at_ = UINT64_MAX;
  Time due_{}, origin_{};          // of step_; of due times
  std::uint32_t origin_step_ = 0;  // which step was due at origin_
  std::optional<Time> durable_cut_;
  std::vector<StepMark> marks_;
};

}  // namespace tidemark::bench
