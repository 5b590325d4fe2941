// A store, a machine and a connection as models, so that tests can play sessions. The store keeps what is durable apart
// from what is on its way; the connection is two pipes of bytes that a test delivers in pieces and cuts where it likes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "wire/agent_session.h"
#include "wire/frame_assembler.h"
#include "wire/messages.h"
#include "wire/server_session.h"

namespace tidemark::wire::rig {

inline constexpr WallMicros kStart = 1'700'000'000'000'000;
using Bytes = std::vector<std::byte>;

inline MachineId machine_id(int n = 1) {
  std::array<std::byte, MachineId::kSize> bytes{};
  bytes.back() = static_cast<std::byte>(n);
  return MachineId(bytes);
}

struct StoredEpoch {
  Hash128 digest;
  std::vector<Bytes> payloads;
  bool operator==(const StoredEpoch&) const = default;
};

// What a store knows for good.
struct StoreState {
  EpochNumber durable_epoch;
  Hash128 durable_digest;
  EpochNumber next_epoch{1};
  std::optional<pb::OpenEpoch> open;
  std::vector<pb::DiskSize> open_disks;
  std::vector<Bytes> open_payloads;
  std::vector<pb::DiskInfo> disks;
  std::map<std::uint64_t, StoredEpoch> epochs;
};

class Store {
 public:
  using Change = std::function<void(StoreState&)>;
  StoreState durable;
  std::deque<std::pair<Change, std::uint32_t>> pending;  // in log order, with payload bytes
  std::size_t room = SIZE_MAX;                           // changes that may be pending

  Status append(Change change, std::uint32_t bytes = 0) {
    if (pending.size() >= room) return fail(Code::busy, "log", "no room now");
    pending.emplace_back(std::move(change), bytes);
    return {};
  }
  // The payload bytes of the change that became durable.
  std::uint32_t settle_one() {
    auto [change, bytes] = std::move(pending.front());
    pending.pop_front();
    change(durable);
    return bytes;
  }
  void settle() {
    while (!pending.empty()) settle_one();
  }
};

// The server's end: its session over the model store. Frames go out through `send_bytes`.
class Server final : public ServerSession::Actions {
 public:
  Server(Store& store, const Clock& clock, ServerSession::Limits limits = {limits::kSessionCreditMin})
      : store_(store), session(machine_id(), *this, clock, limits) {}

  Store& store_;
  ServerSession session;
  Bytes out;                                            // encoded frames for the agent
  std::vector<std::pair<FrameType, std::string>> sent;  // the same, taken apart
  std::vector<std::string> calls;                       // of actions, in order
  std::vector<Error> alarms;
  std::vector<WallMicros> times;  // that commits and unchanged came with
  std::string redirect;
  std::optional<Error> refuse;  // what admit answers
  std::vector<pb::DigestRequest> digest_requests;
  bool keep_sent = true;

  void send(FrameType type, const google::protobuf::MessageLite& message) override {
    const auto frame = encode_control_frame(type, number_++, message);
    ASSERT_TRUE(frame) << frame.error().message();
    out.insert(out.end(), frame->begin(), frame->end());
    if (keep_sent) sent.emplace_back(type, message.SerializeAsString());
  }
  Result<MachineView> admit(const pb::Hello&) override {
    if (refuse) return std::unexpected(*refuse);
    if (!store_.pending.empty()) return fail(Code::busy, "machine", "its last session is not settled");
    MachineView view;
    view.name = "web1";
    view.durable_epoch = store_.durable.durable_epoch;
    view.durable_digest = store_.durable.durable_digest;
    view.next_epoch = store_.durable.next_epoch;
    view.open_epoch = store_.durable.open;
    view.open_epoch_disks = store_.durable.open_disks;
    view.disks = store_.durable.disks;
    view.redirect = redirect;
    return view;
  }
  Result<pb::DiskInfo> open_disk(const pb::OpenDisk& request) override {
    calls.push_back("open_disk " + request.name());
    if (store_.pending.size() >= store_.room) return fail(Code::busy, "log", "no room now");
    // The catalog is applied at once; only its durability comes later, and losing it loses nothing acknowledged.
    auto& disks = store_.durable.disks;
    auto known =
        std::find_if(disks.begin(), disks.end(), [&](const auto& d) { return d.identity() == request.identity(); });
    if (known == disks.end()) {
      known = disks.emplace(disks.end());
      known->set_disk(static_cast<std::uint32_t>(disks.size() - 1));
    }
    known->set_identity(request.identity());
    known->set_name(request.name());
    known->set_size(request.size());
    return *known;
  }
  Status begin_epoch(const pb::EpochBegin& begin) override {
    calls.push_back("begin " + std::to_string(begin.number()));
    return store_.append([begin](StoreState& state) {
      state.next_epoch = EpochNumber(begin.number()).next();
      state.open.emplace();
      state.open->set_number(begin.number());
      state.open->set_kind(begin.kind());
      state.open->set_sum(hash_to_bytes({}));
      state.open_disks.assign(begin.disks().begin(), begin.disks().end());
      state.open_payloads.clear();
    });
  }
  Status append_blocks(EpochNumber epoch, DiskId, std::span<const std::byte> payload,
                       const BlocksSummary& summary) override {
    calls.push_back("append " + std::to_string(epoch.value()));
    return store_.append(
        [bytes = Bytes(payload.begin(), payload.end()), summary](StoreState& state) {
          EpochContent content{state.open->blocks(), checked_hash(state.open->sum())};
          content.add(summary);
          state.open->set_blocks(content.blocks);
          state.open->set_sum(hash_to_bytes(content.sum));
          state.open_payloads.push_back(bytes);
        },
        static_cast<std::uint32_t>(payload.size()));
  }
  Status commit_epoch(const pb::EpochCommit& commit, WallMicros time_us, const Hash128& digest) override {
    calls.push_back("commit " + std::to_string(commit.number()));
    const Status appended = store_.append([number = EpochNumber(commit.number()), digest](StoreState& state) {
      state.durable_epoch = number;
      state.durable_digest = digest;
      state.epochs[number.value()] = {digest, std::move(state.open_payloads)};
      state.open.reset();
      state.open_payloads.clear();
    });
    if (appended) times.push_back(time_us);
    return appended;
  }
  Status abort_epoch(EpochNumber epoch, const std::string&) override {
    calls.push_back("abort " + std::to_string(epoch.value()));
    return store_.append([](StoreState& state) {
      state.open.reset();
      state.open_payloads.clear();
    });
  }
  Status unchanged(EpochNumber epoch, WallMicros as_of_us) override {
    calls.push_back("unchanged " + std::to_string(epoch.value()));
    times.push_back(as_of_us);
    return {};
  }
  Status request_digests(const pb::DigestRequest& request) override {
    digest_requests.push_back(request);
    return {};
  }
  Status renew(const pb::RenewRequest&) override {
    calls.push_back("renew");
    return {};
  }
  void progress(const pb::Progress& progress) override { calls.push_back("progress " + progress.state()); }
  void on_history_diverged(const Error& why) override { alarms.push_back(why); }

  void settle_one_if_any() {
    if (!store_.pending.empty()) settle_one(false);
  }
  // One pending change becomes durable, and whoever must know is told.
  void settle_one(bool tell_progress) {
    const EpochNumber before = store_.durable.durable_epoch;
    const std::uint32_t bytes = store_.settle_one();
    if (bytes != 0) session.on_credit_returned(bytes);
    if (before != store_.durable.durable_epoch || (tell_progress && store_.durable.open))
      session.on_durable(store_.durable.durable_epoch, store_.durable.durable_digest, store_.durable.open);
  }

 private:
  std::uint64_t number_ = 0;
};

// The agent's end: its session, with what it was told.
class Agent final : public AgentSession::Events {
 public:
  Agent(AgentMemory memory, const Clock& clock) : session(machine_id(), *this, clock, std::move(memory)) {}

  AgentSession session;
  Bytes out;  // encoded frames for the server
  std::vector<FrameType> sent;
  std::vector<Error> alarms;
  std::vector<EpochNumber> durable;
  std::vector<EpochNumber> begun;
  std::vector<pb::DiskOpened> opened;
  std::vector<pb::OpenEpoch> progress;
  std::vector<Error> errors;
  std::vector<std::pair<std::uint32_t, std::string>> throttles;
  std::vector<pb::Resend> resends;
  int welcomes = 0, digests = 0, goodbyes = 0, renewals = 0;

  void send(FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t frame_number) override {
    sent.push_back(type);
    Bytes header(limits::kFrameHeaderSize);
    encode({type, static_cast<std::uint32_t>(payload.size()), disk, frame_number},
           std::span(header).first<limits::kFrameHeaderSize>());
    out.insert(out.end(), header.begin(), header.end());
    out.insert(out.end(), payload.begin(), payload.end());
  }
  void on_welcome(const pb::Welcome&) override { ++welcomes; }
  void on_history_diverged(const Error& why) override { alarms.push_back(why); }
  void on_disk_opened(const pb::DiskOpened& disk) override { opened.push_back(disk); }
  void on_epoch_begun(EpochNumber epoch) override { begun.push_back(epoch); }
  void on_durable(EpochNumber epoch, const Hash128&) override { durable.push_back(epoch); }
  void on_open_epoch_progress(const pb::OpenEpoch& open) override { progress.push_back(open); }
  void on_credit() override {}
  void on_digests(const pb::DigestReply&) override { ++digests; }
  void on_throttle(std::uint32_t pause_ms, const std::string& reason) override {
    throttles.emplace_back(pause_ms, reason);
  }
  void on_resend(const pb::Resend& ranges) override { resends.push_back(ranges); }
  void on_renewed(const std::string&) override { ++renewals; }
  void on_server_error(const Error& error, std::uint32_t) override { errors.push_back(error); }
  void on_goodbye(const std::string&, std::uint32_t) override { ++goodbyes; }

  static pb::Hello hello() {
    pb::Hello hello;
    hello.set_agent_version("test");
    hello.set_machine_name("web1");
    hello.set_fingerprint(std::string(kFingerprintSize, 'f'));
    hello.set_boot_id(std::string(kBootIdSize, 'b'));
    return hello;
  }
};

// One direction of a connection: bytes on their way to a session.
class Inbox {
 public:
  explicit Inbox(PayloadPool& pool) : assembler_(pool) {}

  // Moves up to `count` bytes of `pipe` into frames and hands these to `session`. Code::busy: a frame waits, call
  // again.
  template <typename Session>
  Status deliver(Bytes& pipe, std::size_t count, Session& session) {
    std::size_t taken = 0;
    Status status;
    for (;;) {
      if (const auto frame = assembler_.frame()) {
        status = session.on_frame(frame->header, frame->payload);
        if (!status) break;
        assembler_.consume();
        continue;
      }
      const auto space = assembler_.space();
      const std::size_t piece = std::min({space.size(), count - taken, pipe.size() - taken});
      if (piece == 0) break;
      std::memcpy(space.data(), pipe.data() + taken, piece);
      taken += piece;
      status = assembler_.filled(piece);
      if (!status) break;
    }
    pipe.erase(pipe.begin(), pipe.begin() + static_cast<std::ptrdiff_t>(taken));
    return status;
  }

 private:
  FrameAssembler assembler_;
};

inline pb::OpenDisk disk_request(const std::string& name, std::uint64_t size = 1_GiB) {
  pb::OpenDisk request;
  request.set_identity("serial-" + name);
  request.set_name(name);
  request.set_size(size);
  return request;
}

inline pb::EpochBegin begin_request(std::uint64_t number, pb::EpochKind kind, const std::vector<pb::DiskInfo>& disks) {
  pb::EpochBegin begin;
  begin.set_number(number);
  begin.set_kind(kind);
  for (const auto& info : disks) {
    auto* disk = begin.add_disks();
    disk->set_disk(info.disk());
    disk->set_size(info.size());
  }
  return begin;
}

}  // namespace tidemark::wire::rig
