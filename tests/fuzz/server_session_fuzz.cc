// A whole server session, fed arbitrary frames and events of the store (tests/fuzz/session_input.h). Whatever comes,
// the actions are asked only for what the protocol allows, in an order that a store can follow.
#include <cstdlib>
#include <vector>

#include "tests/fuzz/session_input.h"
#include "wire/messages.h"
#include "wire/server_session.h"

using namespace tidemark;
using wire::FrameType;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

struct Store final : wire::ServerSession::Actions {
  wire::MachineView view;
  bool busy = false;
  std::optional<EpochNumber> open;
  wire::EpochContent content;
  std::uint64_t highest = 0;
  std::vector<std::pair<EpochNumber, Hash128>> committed;
  std::size_t told = 0;

  Status ok() { return busy ? Status(fail(Code::busy, "store", "no room now")) : Status(); }
  void send(FrameType type, const google::protobuf::MessageLite& message) override {
    require(wire::encode_control_frame(type, 0, message).has_value());
  }
  Result<wire::MachineView> admit(const pb::Hello&) override {
    if (busy) return fail(Code::busy, "machine", "not settled");
    return view;
  }
  Result<pb::DiskInfo> open_disk(const pb::OpenDisk& request) override {
    if (busy) return fail(Code::busy, "store", "no room now");
    pb::DiskInfo info;
    info.set_disk(static_cast<std::uint32_t>(view.disks.size()));
    for (const auto& known : view.disks)
      if (known.identity() == request.identity()) info.set_disk(known.disk());
    info.set_identity(request.identity());
    info.set_size(request.size());
    info.set_name(request.name());
    if (info.disk() == view.disks.size()) view.disks.push_back(info);
    view.disks[info.disk()] = info;
    require(view.disks.size() <= limits::kDisksPerMachineMax);
    return info;
  }
  Status begin_epoch(const pb::EpochBegin& begin) override {
    if (busy) return ok();
    require(!open && begin.number() > highest);
    highest = begin.number();
    open = EpochNumber(begin.number());
    content = {};
    return {};
  }
  Status append_blocks(EpochNumber epoch, DiskId, std::span<const std::byte> payload,
                       const wire::BlocksSummary& summary) override {
    if (busy) return ok();
    require(open == epoch && summary.blocks > 0 && !payload.empty());
    content.add(summary);
    return {};
  }
  Status commit_epoch(const pb::EpochCommit& commit, WallMicros time_us, const Hash128& digest) override {
    if (busy) return ok();
    require(open && open->value() == commit.number() && commit.blocks() == content.blocks && time_us >= 0);
    committed.emplace_back(*open, digest);
    open.reset();
    return {};
  }
  Status abort_epoch(EpochNumber epoch, const std::string&) override {
    if (busy) return ok();
    require(open == epoch);
    open.reset();
    return {};
  }
  Status unchanged(EpochNumber, WallMicros as_of_us) override {
    require(as_of_us >= 0 && !open);
    return {};
  }
  Status request_digests(const pb::DigestRequest& request) override {
    require(request.chunks() <= limits::kDigestChunksPerRequestMax);
    return ok();
  }
  Status renew(const pb::RenewRequest&) override { return ok(); }
  void progress(const pb::Progress&) override {}
  void on_history_diverged(const Error& why) override { require(why.code == Code::history_diverged); }
};

// A commit that fits, so that epochs get through.
std::string fitting_commit(const Store& store, const wire::ServerSession& session, Hash128 previous) {
  pb::EpochCommit commit;
  commit.set_number(session.open_epoch() ? session.open_epoch()->value() : 1);
  commit.set_cut_time_us(1'700'000'000'000'000);
  commit.set_consistency(pb::CRASH);
  commit.set_blocks(store.content.blocks);
  commit.set_digest(wire::hash_to_bytes(
      wire::epoch_digest(previous, EpochNumber(commit.number()), commit.cut_time_us(), pb::CRASH, store.content)));
  return commit.SerializeAsString();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const MachineId machine;
  const ManualClock clock(1'700'000'000'000'000);
  Store store;
  store.view.name = "fuzz";
  if ((data[0] & 1) != 0) {  // a machine with a past
    store.view.durable_epoch = EpochNumber(4);
    store.view.durable_digest = {4, 4};
    store.view.next_epoch = EpochNumber(5);
    auto& disk = store.view.disks.emplace_back();
    disk.set_identity("serial");
    disk.set_name("vda");
    disk.set_size(1_GiB);
  }
  if ((data[0] & 2) != 0) {  // and an open epoch
    auto& open = store.view.open_epoch.emplace();
    open.set_number(6);
    open.set_kind((data[0] & 4) != 0 ? pb::INITIAL : pb::DELTA);
    open.set_blocks(3);
    open.set_sum(wire::hash_to_bytes({3, 3}));
    store.open = EpochNumber(6);
    store.content = {3, {3, 3}};
    store.highest = 6;
    store.view.next_epoch = EpochNumber(7);
  }
  store.highest = std::max(store.highest, store.view.next_epoch.value() - 1);
  Hash128 previous = store.view.durable_digest;
  wire::ServerSession session(machine, store, clock, {limits::kSessionCreditMin});

  fuzz::Input input(std::as_bytes(std::span(data, size)).subspan(1));
  std::uint64_t number = 0;
  fuzz::Input::Item item;
  for (int items = 0; items < fuzz::kItemsMax && input.next(item); ++items) {
    const std::uint8_t choice = item.bytes.empty() ? 0 : std::to_integer<std::uint8_t>(item.bytes[0]);
    if (item.what < 32) {
      wire::FrameHeader header;
      header.type = static_cast<FrameType>(item.what);
      header.payload_size = static_cast<std::uint32_t>(item.bytes.size());
      header.number = number;
      const Status status = session.on_frame(header, item.bytes);
      if (status)
        ++number;
      else if (status.error().code != Code::busy)
        return 0;
    } else if (item.what < 96) {  // fitting blocks
      wire::BlockEncoder encoder(machine, 0);
      encoder.start(DiskId(0), session.open_epoch().value_or(EpochNumber(1)));
      encoder.add_zeroes(choice, 1 + choice % 7);
      const auto& payload = encoder.payload();
      const Status status =
          session.on_frame({FrameType::blocks, static_cast<std::uint32_t>(payload.size()), DiskId(0), number}, payload);
      if (status)
        ++number;
      else if (status.error().code != Code::busy)
        return 0;
    } else if (item.what < 128) {  // a fitting commit
      const std::string commit = fitting_commit(store, session, previous);
      const std::size_t before = store.committed.size();
      const Status status =
          session.on_frame({FrameType::epoch_commit, static_cast<std::uint32_t>(commit.size()), DiskId(0), number},
                           std::as_bytes(std::span(commit)));
      if (status)
        ++number;
      else if (status.error().code != Code::busy)
        return 0;
      if (store.committed.size() > before) previous = store.committed.back().second;
    } else if (item.what < 160) {
      store.busy = (choice & 1) != 0;
    } else if (item.what < 192 && store.told < store.committed.size()) {
      const auto& [epoch, digest] = store.committed[store.told++];
      session.on_durable(epoch, digest, std::nullopt);
    } else if (item.what < 208) {
      session.on_credit_returned(choice * 100u);
    } else if (item.what < 224) {
      pb::Resend resend;
      auto* range = resend.add_ranges();
      range->set_first_granule(choice);
      range->set_granules(1 + choice);
      session.resend(resend);
      session.throttle(choice, std::string(reinterpret_cast<const char*>(item.bytes.data()), item.bytes.size()));
    } else {
      session.on_digests({});
    }
    require(!session.open_epoch() || session.open_content() == store.content);
  }
  return 0;
}
