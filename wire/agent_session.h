// The agent's end of a session, as a state machine without I/O: the mirror of wire/server_session.h. Frames of the
// server and wishes of the agent go in, frames and notifications come out. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "wire/block.h"
#include "wire/frame.h"
#include "wire/tidemark.pb.h"

namespace tidemark::wire {

// What an agent remembers across sessions, in its state file.
struct AgentMemory {
  EpochNumber durable_epoch;
  Hash128 durable_digest;
  std::optional<pb::OpenEpoch> open_epoch;
};

class AgentSession {
 public:
  class Events {
   public:
    virtual ~Events() = default;
    // One frame to put on the connection, in this order. `payload` is valid only during the call.
    virtual void send(FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t frame_number) = 0;
    virtual void on_welcome(const pb::Welcome& welcome) = 0;
    // The server knows less than it once acknowledged to this agent, or another history: an alarm; the agent rescans.
    virtual void on_history_diverged(const Error& why) = 0;
    virtual void on_disk_opened(const pb::DiskOpened& disk) = 0;
    virtual void on_epoch_begun(EpochNumber epoch) = 0;
    virtual void on_durable(EpochNumber epoch, const Hash128& digest) = 0;
    virtual void on_open_epoch_progress(const pb::OpenEpoch& open) = 0;
    virtual void on_credit() = 0;  // more may be sent: see credit()
    virtual void on_digests(const pb::DigestReply& reply) = 0;
    virtual void on_throttle(std::uint32_t pause_ms, const std::string& reason) = 0;
    virtual void on_renewed(const std::string& certificate_pem) = 0;
    virtual void on_server_error(const Error& error, std::uint32_t retry_after_ms) = 0;
    virtual void on_goodbye(const std::string& reason, std::uint32_t retry_after_ms) = 0;
  };

  AgentSession(const MachineId& machine, Events& events, const Clock& clock, AgentMemory memory);

  void start(pb::Hello hello);  // fills in version, clock and memory, sends it
  // An error: the server broke the protocol; the caller sends it as an Error frame and closes.
  Status on_frame(const FrameHeader& header, std::span<const std::byte> payload);

  // Wishes. Each fails without effect when the protocol does not allow it now.
  Status open_disk(const pb::OpenDisk& disk);
  // Resumes Welcome's open epoch when the number is the same, with its sum.
  Status begin_epoch(const pb::EpochBegin& begin);
  // Fails with Code::busy when credit() is smaller than the payload.
  Status send_blocks(DiskId disk, std::span<const std::byte> payload, const BlocksSummary& summary);
  Status commit_epoch(std::int64_t cut_time_us, pb::Consistency consistency);
  Status abort_epoch(const std::string& reason);
  Status unchanged(std::int64_t as_of_us);
  Status request_digests(const pb::DigestRequest& request);
  Status renew(const std::string& csr_pem);
  void progress(const pb::Progress& progress);
  void ping();
  void goodbye(const std::string& reason);
  void send_error(const Error& error);

  bool ready() const;  // welcomed, not diverged
  std::uint64_t credit() const;
  const pb::Welcome& welcome() const;
  const AgentMemory& memory() const;  // to be saved whenever on_durable or on_open_epoch_progress was called
  std::optional<EpochNumber> open_epoch() const;
  const EpochContent& open_content() const;

 private:
  void send_message(FrameType type, const google::protobuf::MessageLite& message);
  Status on_welcome(std::span<const std::byte> payload);
  Status on_durable(std::span<const std::byte> payload);

  MachineId machine_;
  Events& events_;
  const Clock& clock_;
  AgentMemory memory_;
  pb::Welcome welcome_;
  enum class State : std::uint8_t { idle, hello_sent, ready, closed } state_ = State::idle;
  std::uint64_t next_sent_ = 0;
  std::uint64_t next_received_ = 0;
  std::uint64_t credit_ = 0;
  std::optional<EpochNumber> epoch_;
  EpochContent content_;
  Hash128 last_digest_;
  std::vector<std::pair<EpochNumber, Hash128>> committed_;  // sent, not yet durable
};

}  // namespace tidemark::wire
