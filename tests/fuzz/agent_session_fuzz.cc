// A whole agent session, fed arbitrary frames of a server and wishes of its owner (tests/fuzz/session_input.h).
// Whatever comes, the session never acknowledges to its owner what was not committed, and never overdraws its credit.
#include <cstdlib>

#include "tests/fuzz/session_input.h"
#include "wire/agent_session.h"
#include "wire/messages.h"

using namespace tidemark;
using wire::FrameType;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

struct Owner final : wire::AgentSession::Events {
  std::uint64_t next = 0;
  bool alarmed = false;
  void send(FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t frame_number) override {
    require(frame_number == next++);
    std::array<std::byte, limits::kFrameHeaderSize> header;
    wire::encode({type, static_cast<std::uint32_t>(payload.size()), disk, frame_number}, header);
    require(wire::decode_frame_header(header).has_value());
  }
  void on_welcome(const pb::Welcome&) override {}
  void on_history_diverged(const Error& why) override {
    require(why.code == Code::history_diverged);
    alarmed = true;
  }
  void on_disk_opened(const pb::DiskOpened&) override {}
  void on_epoch_begun(EpochNumber) override {}
  void on_durable(EpochNumber, const Hash128&) override {}
  void on_open_epoch_progress(const pb::OpenEpoch&) override {}
  void on_credit() override {}
  void on_digests(const pb::DigestReply&) override {}
  void on_throttle(std::uint32_t, const std::string&) override {}
  void on_resend(const pb::Resend& ranges) override { require(wire::check(ranges).has_value()); }
  void on_renewed(const std::string&) override {}
  void on_server_error(const Error&, std::uint32_t) override {}
  void on_goodbye(const std::string&, std::uint32_t) override {}
};

// What a well-behaved server would say, bent by one byte of the input.
std::string fitting(std::uint8_t choice, const wire::AgentSession& session) {
  pb::Durable durable;
  durable.set_epoch(session.memory().durable_epoch.value());
  if (durable.epoch() != 0) durable.set_digest(wire::hash_to_bytes(session.memory().durable_digest));
  const auto& waiting = session.memory().unacknowledged;
  if (!waiting.empty()) {
    const auto& commit = waiting[choice % waiting.size()];
    durable.set_epoch(commit.epoch.value());
    durable.set_digest(wire::hash_to_bytes(commit.digest));
  }
  if (session.open_epoch() && (choice & 0x40) != 0) {
    auto* open = durable.mutable_open_epoch();
    open->set_number(session.open_epoch()->value());
    open->set_kind(static_cast<pb::EpochKind>(1 + choice % 3));
    open->set_blocks(session.open_content().blocks);
    open->set_sum(wire::hash_to_bytes(session.open_content().sum));
  }
  return durable.SerializeAsString();
}

std::string welcome(std::uint8_t choice) {
  pb::Welcome welcome;
  welcome.set_protocol_version(1);
  welcome.set_durable_epoch(choice % 8);
  if (welcome.durable_epoch() != 0) welcome.set_durable_digest(wire::hash_to_bytes({welcome.durable_epoch(), 0}));
  welcome.set_next_epoch(10);
  welcome.set_credit(100'000);
  welcome.set_payload_max(limits::kFramePayloadMax);
  auto* disk = welcome.add_disks();
  disk->set_identity("serial");
  disk->set_name("vda");
  disk->set_size(1_GiB);
  if ((choice & 0x10) != 0) {
    auto* open = welcome.mutable_open_epoch();
    open->set_number(9);
    open->set_kind(pb::INITIAL);
    open->set_blocks(choice);
    open->set_sum(wire::hash_to_bytes({9, 9}));
  }
  return welcome.SerializeAsString();
}

void wish(wire::AgentSession& session, std::uint8_t choice, std::span<const std::byte> bytes) {
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  switch (choice % 10) {
    case 0: {
      pb::OpenDisk disk;
      disk.set_identity(text);
      disk.set_name("vd");
      disk.set_size(choice + 1u);
      (void)session.open_disk(disk);
      break;
    }
    case 1: {
      pb::EpochBegin begin;
      begin.set_number(session.resumable_epoch() ? session.resumable_epoch()->number() : session.next_epoch().value());
      begin.set_kind(static_cast<pb::EpochKind>(1 + (choice >> 4) % 3));
      for (const auto& info : session.disks()) {
        auto* disk = begin.add_disks();
        disk->set_disk(info.disk());
        disk->set_size(info.size());
      }
      (void)session.begin_epoch(begin);
      break;
    }
    case 2:
    case 3: {
      wire::BlockEncoder encoder(MachineId(), 0);
      encoder.start(DiskId(0), session.open_epoch().value_or(EpochNumber(1)));
      encoder.add_zeroes(choice, 1);
      const std::uint64_t credit = session.credit();
      if (session.send_blocks(DiskId(0), encoder.payload(), encoder.summary()))
        require(session.credit() == credit - encoder.payload().size());
      break;
    }
    case 4: (void)session.commit_epoch(1'700'000'000'000'000, pb::CRASH); break;
    case 5: (void)session.abort_epoch(text); break;
    case 6: (void)session.unchanged(choice); break;
    case 7: {
      pb::DigestRequest request;
      request.set_epoch(session.memory().durable_epoch.value());
      request.set_chunks(choice);
      (void)session.request_digests(request);
      break;
    }
    case 8: {
      pb::Progress progress;
      progress.set_cause(text);
      session.progress(progress);
      (void)session.renew(text);
      session.ping();
      break;
    }
    case 9:
      if (choice > 200) session.goodbye(text);
      break;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const ManualClock clock(1'700'000'000'000'000);
  wire::AgentMemory memory;
  memory.durable_epoch = EpochNumber(data[0] % 8);
  if (data[0] % 8 != 0) memory.durable_digest = {memory.durable_epoch.value(), 0};
  if ((data[0] & 0x10) != 0) {
    auto& open = memory.open_epoch.emplace();
    open.set_number(9);
    open.set_kind(pb::INITIAL);
    open.set_blocks(data[0]);
    open.set_sum(wire::hash_to_bytes({9, 9}));
  }
  Owner owner;
  wire::AgentSession session(MachineId(), owner, clock, memory);
  session.start({});

  fuzz::Input input(std::as_bytes(std::span(data, size)).subspan(1));
  std::uint64_t number = 0;
  fuzz::Input::Item item;
  for (int items = 0; items < fuzz::kItemsMax && input.next(item); ++items) {
    const std::uint8_t choice = item.bytes.empty() ? 0 : std::to_integer<std::uint8_t>(item.bytes[0]);
    if (item.what >= 128) {
      wish(session, choice, item.bytes);
    } else {
      std::string made;
      auto type = static_cast<FrameType>(item.what % 32);
      std::span<const std::byte> payload = item.bytes;
      if (item.what >= 96) {
        type = FrameType::durable;
        made = fitting(choice, session);
        payload = std::as_bytes(std::span(made));
      } else if (item.what >= 64) {
        type = FrameType::welcome;
        made = welcome(choice);
        payload = std::as_bytes(std::span(made));
      }
      if (!session.on_frame({type, static_cast<std::uint32_t>(payload.size()), DiskId(0), number++}, payload)) break;
    }
    require(session.memory().durable_epoch >= memory.durable_epoch);  // what was acknowledged is never forgotten
    if (session.diverged()) require(owner.alarmed);
  }
  return 0;
}
