// A machine's session: the channel of its frames, the protocol's state machine (wire::ServerSession), and the store
// (PartitionHost) that does what the machine asks for. On the shard of the machine.
//
// session.cc: its life and what the store tells it. session_actions.cc: what the protocol asks of the store.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>

#include "server/channel.h"
#include "server/space_watch.h"
#include "storage/partition.h"
#include "wire/server_session.h"

namespace tidemark::server {

class PartitionHost;

// How far an epoch that is open durably is, as the protocol tells it.
pb::OpenEpoch to_wire(const storage::pb::OpenEpochEntry& entry);

class Session final : public Channel, private wire::ServerSession::Actions {
 public:
  Session(Shard& shard, PartitionHost& host, Arrival arrival);

  const MachineId& machine() const { return peer().machine; }
  // Bytes of blocks that the agent may still send, and that it will be granted later.
  std::uint64_t credit() const { return protocol_.credit(); }
  std::uint64_t credit_withheld() const { return withheld_; }

  // From the store.
  void epoch_durable(EpochNumber epoch, const Hash128& digest);
  void bytes_durable(std::uint64_t payload_bytes);
  // Durable progress of an initial epoch, when some is due. Called often.
  void tick(Time now);
  // The worker's answer to a DigestRequest.
  void digests_done(const Result<pb::DigestReply>& reply);
  void renewal_issued(const Result<std::pair<std::string, std::string>>& certificate_and_serial);
  // Something of it has been waiting to become durable for too long.
  bool behind(Time now) const;
  // Asks the agent to wait, for a few seconds from now; and, when that is over, to go on.
  void throttle(const std::string& why);
  // For want of space, every second: grants no more credit, or no faster than a rate, and tells the agent why.
  void hold(const SpaceHold& hold);
  void relieve();
  // What of its newest state is damaged in the store; the agent is asked for it, now and then again while it lasts.
  void ask_again(const std::vector<storage::WantedRange>& wanted);

 private:
  // --- the channel ---
  Frame on_frame(const wire::FrameHeader& header, std::span<const std::byte> payload) override;
  void on_ended(const std::optional<Error>& error) override;
  bool greeted() const override { return protocol_.ready(); }

  // --- wire::ServerSession::Actions ---
  void send(wire::FrameType type, const google::protobuf::MessageLite& message) override {
    Channel::send(type, message);
  }
  Result<wire::MachineView> admit(const pb::Hello& hello) override;
  Result<pb::DiskInfo> open_disk(const pb::OpenDisk& request) override;
  Status begin_epoch(const pb::EpochBegin& begin) override;
  Status append_blocks(EpochNumber epoch, DiskId disk, std::span<const std::byte> payload,
                       const wire::BlocksSummary& summary) override;
  Status commit_epoch(const pb::EpochCommit& commit, WallMicros time_us, const Hash128& digest) override;
  Status abort_epoch(EpochNumber epoch, const std::string& reason) override;
  Status unchanged(EpochNumber epoch, WallMicros as_of_us) override;
  Status request_digests(const pb::DigestRequest& request) override;
  Status renew(const pb::RenewRequest& request) override;
  void progress(const pb::Progress& progress) override;
  void on_history_diverged(const Error& why) override;

  Status make_way(const pb::Hello& hello);
  Status room_for(std::size_t bytes);
  Status after_append(Status appended, std::size_t bytes);
  void start_digests();
  void begin_holding();
  void send_progress(Time now);
  void refuse(Refusal why);
  void grant();

  PartitionHost& host_;
  wire::ServerSession protocol_;
  bool began_ = false;     // the host counts it as the machine's session
  bool appended_ = false;  // something of it went to the log
  bool waits_ = false;     // the frame at hand was answered busy by us, and somebody will call retry()
  std::deque<std::pair<EpochNumber, Time>> commits_;  // received, not yet durable
  std::uint64_t held_bytes_ = 0;                      // of blocks, in the log, not durable
  Time moved_{};                     // when some of what is held (blocks, commits) last became durable, or it began
  std::optional<Time> waits_since_;  // the frame at hand has found no room
  bool throttled_ = false;
  std::vector<storage::WantedRange> asked_;  // of the agent, to send again
  Time asked_at_{};
  SpaceHold hold_;
  std::uint64_t withheld_ = 0;  // credit to be returned
  double grants_ = 0;           // bytes that may be returned now, when slowed
  Time granted_{};
  std::uint64_t unreported_bytes_ = 0;  // durable, of an initial epoch, since the agent was told
  Time reported_;
  std::deque<pb::DigestRequest> digests_;  // the first one may be with a worker
  bool digesting_ = false;
};

}  // namespace tidemark::server
