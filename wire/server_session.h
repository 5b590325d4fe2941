// The server's end of a session, as a state machine without I/O: frames and events of the store go in, calls on
// Actions come out, so that tests can play every order of events. Runs on the shard that owns the machine; not
// thread-safe. Every rule of docs/protocol.md that concerns the server stands here and nowhere else.
//
//   hello -> ready <-> in epoch -> closed
//
// After on_* returns an error the session is over: the caller sends it as an Error frame, counts it and closes.
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

// What the store knows of a machine, copied for the session at Hello.
struct MachineView {
  std::string name;
  EpochNumber durable_epoch;  // committed and durable
  Hash128 durable_digest;
  EpochNumber next_epoch{1};
  std::optional<pb::OpenEpoch> open_epoch;  // begun, neither committed nor aborted, as far as durable
  std::vector<pb::DiskInfo> disks;
};

class ServerSession {
 public:
  // What the session asks of its surroundings. Calls come only from inside on_*; each may fail, which ends the session.
  // None of them is answered before it returns: durability comes later, through on_durable.
  class Actions {
   public:
    virtual ~Actions() = default;
    virtual void send(FrameType type, const google::protobuf::MessageLite& message) = 0;
    // Checks revocation, quarantine, fingerprint, one session per machine. An error is sent to the peer.
    virtual Result<MachineView> admit(const pb::Hello& hello) = 0;
    virtual Result<pb::DiskInfo> open_disk(const pb::OpenDisk& request) = 0;
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
  // Payload bytes left the buffers: they are granted again.
  void on_credit_returned(std::uint32_t bytes);
  void on_digests(const pb::DigestReply& reply);
  // The store's answer came after the session asked for it to be throttled.
  void throttle(std::uint32_t pause_ms, const std::string& reason);

  bool ready() const;   // Hello was answered with Welcome
  bool closed() const;  // Goodbye came
  std::optional<EpochNumber> open_epoch() const;
  std::int64_t clock_offset_us() const;  // the agent's clock less ours
  const pb::Hello& hello() const;

 private:
  enum class State : std::uint8_t { hello, ready, closed };
  Status on_hello(std::span<const std::byte> payload);
  Status on_blocks(const FrameHeader& header, std::span<const std::byte> payload);
  Status on_begin(std::span<const std::byte> payload);
  Status on_commit(std::span<const std::byte> payload);

  MachineId machine_;
  Actions& actions_;
  const Clock& clock_;
  Limits limits_;
  State state_ = State::hello;
  pb::Hello hello_;
  MachineView view_;
  std::uint64_t next_frame_ = 0;
  std::int64_t clock_offset_us_ = 0;
  std::uint64_t credit_ = 0;
  // The open epoch, as received (durable or not).
  std::optional<EpochNumber> epoch_;
  EpochContent content_;
  Hash128 last_digest_;  // of the newest epoch committed in or before this session, durable or not
};

}  // namespace tidemark::wire
