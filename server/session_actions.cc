#include <spdlog/spdlog.h>

#include "base/limits.h"
#include "net/certificates.h"
#include "server/admit.h"
#include "server/logging.h"
#include "server/partition_host.h"
#include "server/session.h"
#include "server/shard.h"
#include "wire/messages.h"

namespace tidemark::server {
namespace {

constexpr std::size_t kControlRoom = 4_KiB;  // more than any control record but those that list disks

wire::MachineView view_of(const storage::MachineState& machine) {
  wire::MachineView view;
  view.name = machine.record.name();
  view.durable_epoch = machine.durable_epoch;
  view.durable_digest = machine.durable_digest;
  view.next_epoch = machine.next_epoch;
  if (machine.open_epoch) {
    const auto& entry = *machine.open_epoch;
    view.open_epoch = to_wire(entry);
    for (const auto& disk : entry.disks()) {
      pb::DiskSize& size = view.open_epoch_disks.emplace_back();
      size.set_disk(disk.disk());
      size.set_size(disk.size());
    }
  }
  for (const auto& disk : machine.record.disks()) {
    pb::DiskInfo& info = view.disks.emplace_back();
    info.set_disk(disk.disk());
    info.set_size(disk.size());
    info.set_identity(disk.identity());
    info.set_name(disk.name());
  }
  return view;
}

}  // namespace

// Room in the log, or a place in the queue for it.
Status Session::room_for(std::size_t bytes) {
  TIDEMARK_TRY(host_.serving());
  if (host_.room_for(*this, bytes)) return {};
  ++shard().counters().pauses_for_room;
  waits_ = true;
  return fail(Code::busy, {}, "the log has no room now");
}

Status Session::after_append(Status appended, std::size_t bytes) {
  if (appended) {
    appended_ = true;
  } else if (appended.error().code == Code::busy) {
    host_.wait_for_room(*this, bytes);
    ++shard().counters().pauses_for_room;
    waits_ = true;
  }
  return appended;
}

// One session per machine. A machine whose link was cut comes back before its old session has noticed: that one gives
// way. Anybody else is told that the place is taken.
Status Session::make_way(const pb::Hello& hello) {
  Session* const other = host_.session_of(machine());
  if (other == nullptr || other == this) return {};
  const pb::Hello& theirs = other->protocol_.hello();
  if (theirs.fingerprint() == hello.fingerprint() && theirs.boot_id() == hello.boot_id()) {
    spdlog::info("session replaced by a newer one{}{}{}", kv("machine", machine().to_string()),
                 kv("old", other->peer().address), kv("new", peer().address));
    ++shard().counters().sessions_replaced;
    other->drop();
    return {};
  }
  refuse(Refusal::second_session);
  return fail(Code::already_exists, machine().to_string(),
              "this machine has a session already, from " + other->peer().address,
              "if this is a clone, enrol it with a token of its own; if it restarted, its old session ends within " +
                  std::to_string(limits::kIdleSessionSeconds) + " seconds");
}

Result<wire::MachineView> Session::admit(const pb::Hello& hello) {
  if (host_.wait_for_opening(*this)) {
    waits_ = true;
    return fail(Code::busy, {}, "the machine's partition is being opened");
  }
  if (const auto serving = host_.serving(); !serving) {
    refuse(Refusal::unavailable);
    return std::unexpected(serving.error());
  }
  const auto* state = host_.find(machine());
  if (state == nullptr) {
    refuse(Refusal::removed);
    return fail(Code::not_found, machine().to_string(),
                "this server does not know the machine: it was removed, or never enrolled here",
                "enrol it with a new token");
  }
  const AdmitDecision decision = decide_admission(state->record, peer().certificate_serial, hello);
  const auto change = [serial = peer().certificate_serial, hello](storage::pb::MachineRecord& record) {
    auto again = decide_admission(record, serial, hello);
    if (again.store) record = std::move(again.record);
  };
  if (!decision.verdict) {
    refuse(decision.refusal);
    if (decision.store) {
      spdlog::warn("machine quarantined{}{}{}{}", kv("machine", state->record.name()), kv("id", machine().to_string()),
                   kv("peer", peer().address), kv("why", decision.record.quarantine()));
      host_.put(machine(), change, [](const Status&) {});
    }
    return std::unexpected(decision.verdict.error());
  }
  TIDEMARK_TRY(make_way(hello));
  if (!host_.settled(machine(), *this)) {
    TIDEMARK_TRY(host_.takes_data());  // what is to be settled waits for space: there is no knowing for how long
    waits_ = true;
    return fail(Code::busy, {}, "the machine's last session is being settled");
  }
  if (decision.store) {
    TIDEMARK_TRY(room_for(decision.record.ByteSizeLong() + kControlRoom));
    host_.put(machine(), change, [](const Status&) {});
    state = host_.find(machine());
  }
  if (!began_) {
    host_.session_began(*this);
    began_ = true;
  }
  Observed& observed = host_.observed(machine());
  observed.connected = true;
  observed.address = peer().address;
  observed.agent_version = hello.agent_version();
  observed.certificate_expires_us = peer().certificate_expires_us;
  observed.last_error.clear();
  observed.last_error_remedy.clear();
  spdlog::info("session admitted{}{}{}{}{}", kv("machine", state->record.name()), kv("id", machine().to_string()),
               kv("peer", peer().address), kv("agent", hello.agent_version()),
               kv("durable_epoch", state->durable_epoch.value()));
  wire::MachineView view = view_of(*state);
  const auto left_us = peer().certificate_expires_us - shard().node().clock.wall_us();
  view.certificate_expires_soon = left_us < std::chrono::microseconds(net::kRenewBefore).count();
  return view;
}

Result<pb::DiskInfo> Session::open_disk(const pb::OpenDisk& request) {
  const auto* state = host_.find(machine());
  const std::size_t bytes = (state == nullptr ? 0 : state->record.ByteSizeLong()) + kControlRoom;
  TIDEMARK_TRY(room_for(bytes));
  storage::pb::DiskRecord disk;
  disk.set_identity(request.identity());
  disk.set_size(request.size());
  disk.set_name(request.name());
  auto opened = host_.partition()->open_disk(machine(), disk);
  TIDEMARK_TRY(after_append(opened ? Status() : Status(std::unexpected(opened.error())), bytes));
  pb::DiskInfo info;
  info.set_disk(opened->disk());
  info.set_size(opened->size());
  info.set_identity(opened->identity());
  info.set_name(opened->name());
  return info;
}

Status Session::begin_epoch(const pb::EpochBegin& begin) {
  TIDEMARK_TRY(host_.takes_data());
  TIDEMARK_TRY(room_for(kControlRoom));
  storage::pb::EpochBeginRecord record;
  record.set_number(begin.number());
  record.set_kind(static_cast<std::uint32_t>(begin.kind()));
  for (const auto& disk : begin.disks()) {
    auto* size = record.add_disks();
    size->set_disk(disk.disk());
    size->set_size(disk.size());
  }
  return after_append(host_.partition()->begin_epoch(machine(), record), kControlRoom);
}

Status Session::append_blocks(EpochNumber, DiskId disk, std::span<const std::byte> payload,
                              const wire::BlocksSummary&) {
  TIDEMARK_TRY(host_.takes_data());
  TIDEMARK_TRY(room_for(payload.size()));
  TIDEMARK_TRY(after_append(host_.partition()->append_blocks(machine(), disk, payload), payload.size()));
  begin_holding();
  held_bytes_ += payload.size();
  return {};
}

Status Session::commit_epoch(const pb::EpochCommit& commit, WallMicros time_us, const Hash128& digest) {
  TIDEMARK_TRY(room_for(kControlRoom));
  storage::pb::EpochCommitRecord record;
  record.set_number(commit.number());
  record.set_time_us(time_us);
  record.set_agent_time_us(commit.cut_time_us());
  record.set_arrival_us(shard().node().clock.wall_us());
  record.set_rung_offset_us(host_.retention()->rung_time_us() - record.arrival_us());
  record.set_consistency(static_cast<std::uint32_t>(commit.consistency()));
  record.set_blocks(commit.blocks());
  record.set_digest(wire::hash_to_bytes(digest));
  const Time received = last_frame();
  TIDEMARK_TRY(after_append(host_.partition()->commit_epoch(machine(), record), kControlRoom));
  begin_holding();
  commits_.emplace_back(EpochNumber(commit.number()), received);
  return {};
}

Status Session::abort_epoch(EpochNumber epoch, const std::string& reason) {
  TIDEMARK_TRY(room_for(kControlRoom));
  storage::pb::EpochAbortRecord record;
  record.set_number(epoch.value());
  record.set_reason(reason);
  TIDEMARK_TRY(after_append(host_.partition()->abort_epoch(machine(), record), kControlRoom));
  ++shard().counters().epochs_aborted;
  spdlog::info("epoch aborted{}{}{}", kv("machine", machine().to_string()), kv("epoch", epoch.value()),
               kv("why", reason));
  return {};
}

Status Session::unchanged(EpochNumber, WallMicros as_of_us) {
  TIDEMARK_TRY(host_.serving());
  host_.partition()->set_unchanged(machine(), as_of_us);
  return {};
}

void Session::progress(const pb::Progress& progress) {
  Observed& observed = host_.observed(machine());  // the state is worked out anew at the next tick
  observed.state = progress.state();
  observed.done_bytes = progress.done_bytes();
  observed.total_bytes = progress.total_bytes();
  observed.rate_bytes_per_s = progress.rate_bytes_per_s();
  observed.backlog_bytes = progress.backlog_bytes();
  observed.cause = progress.cause();
  observed.remedy = progress.remedy();
  observed.proven_us = progress.proven_us();
  observed.differences = progress.differences();
  observed.difference = progress.difference();
  observed.difference_us = progress.difference_us();
}

void Session::on_history_diverged(const Error& why) {
  ++shard().counters().history_diverged;
  spdlog::error("history diverged{}{}{}", kv("machine", machine().to_string()), kv("peer", peer().address), kv(why));
}

Status Session::renew(const pb::RenewRequest& request) {
  auto job = [node = &shard().node(), shard = &shard(), id = id(), machine = machine(), csr = request.csr_pem()] {
    Result<std::pair<std::string, std::string>> result;
    auto issued = node->authority.issue_machine(csr, machine, node->clock.wall_us());
    if (issued) {
      result = {issued->certificate_pem, issued->info.serial};
    } else {
      result = std::unexpected(issued.error());
    }
    shard->post([shard, id, result = std::move(result)] {
      if (auto* session = shard->session(id)) session->renewal_issued(result);
    });
  };
  if (!shard().node().workers.post(std::move(job)))
    return fail(Code::busy, machine().to_string(), "too much is waiting to be signed", "it is tried again by itself");
  return {};
}

void Session::renewal_issued(const Result<std::pair<std::string, std::string>>& issued) {
  if (!issued) {
    end(issued.error(), 0);
    return;
  }
  // The answer goes out when the record is durable, so that a serial that is in use is always known.
  const auto change = [old_serial = peer().certificate_serial, serial = issued->second](
                          storage::pb::MachineRecord& record) { supersede_serial(record, old_serial, serial); };
  host_.put(machine(), change,
            [shard = &shard(), id = id(), pem = issued->first, serial = issued->second](const Status& status) {
              auto* session = shard->session(id);
              if (session == nullptr) return;
              if (!status) {
                session->end(status.error(), retry_after_ms(status.error().code));
                return;
              }
              ++shard->counters().renewals;
              spdlog::info("certificate renewed{}{}", kv("machine", session->machine().to_string()),
                           kv("serial", serial));
              pb::RenewReply reply;
              reply.set_certificate_pem(pem);
              static_cast<Channel*>(session)->send(wire::FrameType::renew_reply, reply);
            });
}

}  // namespace tidemark::server
