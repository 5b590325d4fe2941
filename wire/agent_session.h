// The agent's end of a session, as a state machine without I/O: the mirror of wire/server_session.h. Frames of the
// server and wishes of the agent go in, frames and notifications come out. Not thread-safe.
//
// Wishes may be made from within Events, send() excepted; the session itself must not be destroyed there.
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
#include "wire/history.h"
#include "wire/tidemark.pb.h"

namespace tidemark::wire {

// What an agent remembers across sessions, in its state file.
struct AgentMemory {
  EpochNumber durable_epoch;
  Hash128 durable_digest;
  std::optional<pb::OpenEpoch> open_epoch;
  // Commits that were sent and not acknowledged. Kept from session to session of one run; saving them is not needed for
  // safety, it only sharpens adopted_unknown().
  struct Commit {
    EpochNumber epoch;
    Hash128 digest;
  };
  std::vector<Commit> unacknowledged;
};

class AgentSession {
 public:
  class Events {
   public:
    virtual ~Events() = default;
    // One frame to put on the connection, in this order. `payload` is valid only during the call.
    virtual void send(FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t frame_number) = 0;
    // The session is ready, or, when welcome.redirect() says so, over: go there. Comes after on_history_diverged and
    // after on_durable for an epoch whose Durable an earlier session missed.
    virtual void on_welcome(const pb::Welcome& welcome) = 0;
    // The server knows less than it once acknowledged to this agent, or another history: an alarm; the agent rescans.
    virtual void on_history_diverged(const Error& why) = 0;
    virtual void on_disk_opened(const pb::DiskOpened& disk) = 0;
    virtual void on_epoch_begun(EpochNumber epoch) = 0;
    virtual void on_durable(EpochNumber epoch, const Hash128& digest) = 0;
    virtual void on_open_epoch_progress(const pb::OpenEpoch& open) = 0;
    virtual void on_credit() = 0;  // more may be sent: see credit()
    virtual void on_digests(const pb::DigestReply& reply) = 0;
    // Send no blocks for so long from now; 0: go on. The newest one counts.
    virtual void on_throttle(std::uint32_t pause_ms, const std::string& reason) = 0;
    // These ranges are to be part of the next epoch, changed or not. The newest word counts; disks may be unknown.
    virtual void on_resend(const pb::Resend& ranges) = 0;
    virtual void on_renewed(const std::string& certificate_pem) = 0;
    virtual void on_server_error(const Error& error, std::uint32_t retry_after_ms) = 0;
    virtual void on_goodbye(const std::string& reason, std::uint32_t retry_after_ms) = 0;
  };

  AgentSession(const MachineId& machine, Events& events, const Clock& clock, AgentMemory memory);

  void start(pb::Hello hello);  // fills in version, clock, machine and memory, sends it
  // An error: the server broke the protocol; the caller sends it as an Error frame and closes.
  Status on_frame(const FrameHeader& header, std::span<const std::byte> payload);

  // Wishes. Each fails without effect when the protocol does not allow it now.

  // A new disk or a new size is refused while an epoch is open, a resumable one included.
  Status open_disk(const pb::OpenDisk& disk);
  // Resumes Welcome's open epoch when the number is the same, with its sum. After a divergence only RESCAN or INITIAL.
  // Blocks may follow at once, without waiting for on_epoch_begun.
  Status begin_epoch(const pb::EpochBegin& begin);
  // Fails with Code::busy when credit() is smaller than the payload.
  Status send_blocks(DiskId disk, std::span<const std::byte> payload, const BlocksSummary& summary);
  // Fails with Code::busy when kUnacknowledgedCommitsMax commits wait for Durable.
  Status commit_epoch(std::int64_t cut_time_us, pb::Consistency consistency);
  // The open epoch, or the one that could be resumed. Save memory() afterwards.
  Status abort_epoch(const std::string& reason);
  // Fails with Code::busy until the newest commit is durable.
  Status unchanged(std::int64_t as_of_us);
  // Fails with Code::busy when kDigestRequestsMax are unanswered.
  Status request_digests(const pb::DigestRequest& request);
  Status renew(const std::string& csr_pem);
  void progress(const pb::Progress& progress);
  void ping();
  void goodbye(const std::string& reason);
  void send_error(const Error& error);

  bool ready() const;   // welcomed, and the session is not over
  bool closed() const;  // Error, Goodbye or a redirect went either way
  // Since Welcome, until a RESCAN or INITIAL epoch was committed. The alarm comes back in the next session unless that
  // epoch became durable.
  bool diverged() const;
  // Welcome's durable epoch is newer than memory and not among what memory says was sent: whoever tracks changes since
  // the remembered epoch has no base and must compare digests.
  bool adopted_unknown() const;
  std::uint64_t credit() const;
  const pb::Welcome& welcome() const;
  const std::vector<pb::DiskInfo>& disks() const;  // of Welcome, with what was opened since
  EpochNumber next_epoch() const;                  // the lowest number a new epoch may take, past everything remembered
  const std::optional<pb::OpenEpoch>& resumable_epoch() const;  // of Welcome, neither begun nor aborted yet
  const AgentMemory& memory() const;  // to be saved whenever on_durable or on_open_epoch_progress was called
  std::optional<EpochNumber> open_epoch() const;
  const EpochContent& open_content() const;

 private:
  enum class State : std::uint8_t { idle, hello_sent, ready, closed };
  void send_message(FrameType type, const google::protobuf::MessageLite& message);
  Status try_send(FrameType type, const google::protobuf::MessageLite& message);
  Status dispatch(const FrameHeader& header, std::span<const std::byte> payload);
  Status on_welcome(std::span<const std::byte> payload);
  Status on_disk_opened(std::span<const std::byte> payload);
  Status on_epoch_begun(std::span<const std::byte> payload);
  Status on_durable(std::span<const std::byte> payload);
  Status on_progress_of_open(const pb::OpenEpoch& open);
  Status on_credit(std::span<const std::byte> payload);
  Status on_digests(std::span<const std::byte> payload);
  Status on_leave(const FrameHeader& header, std::span<const std::byte> payload);
  Status need_ready(const char* wish) const;

  MachineId machine_;
  Events& events_;
  const Clock& clock_;
  AgentMemory memory_;
  pb::Welcome welcome_;
  State state_ = State::idle;
  bool diverged_ = false;
  bool adopted_unknown_ = false;
  std::uint64_t next_sent_ = 0;
  std::uint64_t next_received_ = 0;
  std::uint64_t credit_ = 0;
  std::vector<pb::DiskInfo> disks_;
  std::optional<pb::OpenEpoch> resumable_;
  EpochNumber next_epoch_{1};
  // The open epoch.
  std::optional<EpochNumber> epoch_;
  pb::EpochKind epoch_kind_{};
  std::vector<pb::DiskSize> epoch_disks_;
  EpochContent content_;
  std::optional<pb::OpenEpoch> progress_;  // last told of it in this session
  // The server's history, in this session: it may lie below memory_ after a divergence.
  EpochNumber durable_;
  Hash128 durable_digest_;
  EpochNumber last_committed_;
  Hash128 last_digest_;
  // What the server still has to answer.
  std::vector<pb::OpenDisk> opening_;
  std::vector<EpochNumber> beginning_;
  std::vector<pb::DigestRequest> digest_requests_;
  std::uint32_t renewals_ = 0;
  std::uint32_t renewals_answered_ = 0;
  std::vector<std::byte> buffer_;  // for messages
};

}  // namespace tidemark::wire
