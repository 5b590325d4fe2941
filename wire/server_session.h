// The server's end of a session, as a state machine without I/O: frames and events of the store go in, calls on
// Actions come out, so that tests can play every order of events. Runs on the shard that owns the machine; not
// thread-safe. Every rule of docs/protocol.md that concerns the server stands here and nowhere else.
//
//   hello -> ready <-> in epoch -> closed
//
// After on_* returns an error the session is over: the caller sends it as an Error frame, counts it and closes. There
// is one exception, Code::busy from on_frame: an action had no room now. The frame was not consumed and nothing
// changed; the caller keeps it, stops reading from this peer, and hands in the same frame again when there is room (or
// gives up and closes). A Hello that admit() answers with Code::busy is the same: the caller may wait or refuse.
#pragma once

#include <chrono>
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

// What the store knows of a machine, copied for the session at Hello. It must be settled: nothing that an earlier
// session of the machine appended may still be on its way to durability, or else digests would chain from the wrong
// epoch. admit() answers Code::busy until that is so.
struct MachineView {
  std::string name;
  EpochNumber durable_epoch;  // committed and durable
  Hash128 durable_digest;
  EpochNumber next_epoch{1};
  std::optional<pb::OpenEpoch> open_epoch;  // begun, neither committed nor aborted, as far as durable
  std::vector<pb::DiskInfo> disks;
  std::vector<pb::DiskSize> open_epoch_disks;  // as its EpochBegin had them; empty: not compared when it is resumed
  bool certificate_expires_soon = false;
  std::string redirect;  // host:port to send the machine to instead; nothing else counts then
};

class ServerSession {
 public:
  // What the session asks of its surroundings. Calls come only from inside on_*; each may fail, which ends the session
  // (Code::busy, having done nothing, does not: see above). None of them is answered before it returns: durability
  // comes later, through on_durable.
  class Actions {
   public:
    virtual ~Actions() = default;
    virtual void send(FrameType type, const google::protobuf::MessageLite& message) = 0;
    // Checks revocation, quarantine, fingerprint, one session per machine. An error is sent to the peer. Called again
    // for the same Hello when it, or an abort_epoch that followed it, answered Code::busy.
    virtual Result<MachineView> admit(const pb::Hello& hello) = 0;
    virtual Result<pb::DiskInfo> open_disk(const pb::OpenDisk& request) = 0;
    // A new epoch. One that is resumed is open in the store already: it is not begun again.
    virtual Status begin_epoch(const pb::EpochBegin& begin) = 0;
    // `payload` is checked. Valid only during the call.
    virtual Status append_blocks(EpochNumber epoch, DiskId disk, std::span<const std::byte> payload,
                                 const BlocksSummary& summary) = 0;
    // `time_us` is the cut's time in the server's clock.
    virtual Status commit_epoch(const pb::EpochCommit& commit, WallMicros time_us, const Hash128& digest) = 0;
    virtual Status abort_epoch(EpochNumber epoch, const std::string& reason) = 0;
    virtual Status unchanged(EpochNumber epoch, WallMicros as_of_us) = 0;
    virtual Status request_digests(const pb::DigestRequest& request) = 0;  // answered by on_digests
    virtual Status renew(const pb::RenewRequest& request) = 0;             // answered by the caller with send()
    virtual void progress(const pb::Progress& progress) = 0;
    // Agent and store disagree on what is durable: to be logged as an alarm and counted. The session goes on, so that
    // the agent learns the server's truth and rescans; until a RESCAN or INITIAL epoch is committed no DELTA is taken.
    virtual void on_history_diverged(const Error& why) = 0;
  };

  struct Limits {
    std::uint32_t credit = 0;  // bytes granted at first
    std::uint32_t payload_max = limits::kFramePayloadMax;
  };

  ServerSession(const MachineId& machine, Actions& actions, const Clock& clock, Limits limits);

  // One whole frame, its header decoded and its payload complete.
  Status on_frame(const FrameHeader& header, std::span<const std::byte> payload);
  // Epochs up to `epoch` are durable (they were committed earlier); `open` tells how far the open one is, when asked
  // for.
  void on_durable(EpochNumber epoch, const Hash128& digest, const std::optional<pb::OpenEpoch>& open);
  // Payload bytes left the buffers: they are granted again. Small grants may be gathered, but never while the agent
  // could be waiting for them.
  void on_credit_returned(std::uint32_t bytes);
  void on_digests(const pb::DigestReply& reply);
  // The agent is to send no blocks for so long (at most kThrottlePauseMaxMs), because of `reason`; 0: it may go on. The
  // newest word counts. Nothing enforces it but credit.
  void throttle(std::uint32_t pause_ms, const std::string& reason);

  // What the newest durable epoch shows in these ranges is lost here, and is to come again with the agent's next epoch.
  // The newest word counts. False: nothing was sent, since the agent does not understand it or the session is over.
  bool resend(const pb::Resend& ranges);

  bool ready() const;   // Hello was answered with Welcome
  bool closed() const;  // Goodbye or Error came, or the machine was redirected
  std::optional<EpochNumber> open_epoch() const;
  std::uint64_t credit() const { return credit_; }  // bytes that the agent may still send
  const EpochContent& open_content() const;         // as received, durable or not
  bool history_diverged() const;                    // and not yet made good by a rescan
  // Two clocks that differ by no more than this count as equal.
  static constexpr std::chrono::microseconds kClockTolerance{1'000'000};
  std::int64_t clock_offset_us() const;  // the agent's clock less ours
  const pb::Hello& hello() const;
  const MachineView& machine() const;              // as of Hello, kept up with what this session changed
  const std::optional<Error>& peer_error() const;  // what the agent sent as an Error frame before it left

 private:
  enum class State : std::uint8_t { hello, ready, closed };
  Status dispatch(const FrameHeader& header, std::span<const std::byte> payload);
  Status on_hello(std::span<const std::byte> payload);
  Status on_open_disk(std::span<const std::byte> payload);
  Status on_begin(std::span<const std::byte> payload);
  Status on_blocks(const FrameHeader& header, std::span<const std::byte> payload);
  Status on_commit(std::span<const std::byte> payload);
  Status on_abort(std::span<const std::byte> payload);
  Status on_unchanged(std::span<const std::byte> payload);
  Status on_digest_request(std::span<const std::byte> payload);
  Status on_renew(std::span<const std::byte> payload);
  Status on_leave(const FrameHeader& header, std::span<const std::byte> payload);
  WallMicros to_server_clock(std::int64_t agent_us) const;
  void finish_epoch();
  const pb::DiskInfo* find_disk(std::uint32_t disk) const;

  MachineId machine_;
  Actions& actions_;
  const Clock& clock_;
  Limits limits_;
  State state_ = State::hello;
  pb::Hello hello_;
  MachineView view_;
  std::optional<Error> peer_error_;
  std::uint64_t next_frame_ = 0;
  std::int64_t clock_offset_us_ = 0;
  std::uint64_t credit_ = 0;       // what the agent may still send
  std::uint64_t credit_held_ = 0;  // returned, not yet granted again
  std::uint32_t digest_requests_ = 0;
  std::uint32_t renewals_ = 0;
  bool diverged_ = false;
  // The open epoch, as received (durable or not).
  std::optional<EpochNumber> epoch_;
  pb::EpochKind epoch_kind_{};
  std::vector<pb::DiskSize> epoch_disks_;
  EpochContent content_;
  EpochNumber last_committed_;               // the newest epoch committed in or before this session, durable or not
  Hash128 last_digest_;                      // its digest
  std::vector<EpochNumber> unacknowledged_;  // committed, not yet durable
  // A blocks frame whose append answered busy need not be hashed again.
  struct Checked {
    std::uint64_t number;
    std::span<const std::byte> payload;
    BlocksSummary summary;
  };
  std::optional<Checked> checked_;
};

}  // namespace tidemark::wire
