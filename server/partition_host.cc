#include "server/partition_host.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "server/logging.h"
#include "server/session.h"
#include "server/shard.h"

namespace tidemark::server {

const char* to_string(PartitionHost::State state) {
  switch (state) {
    case PartitionHost::State::opening: return "opening";
    case PartitionHost::State::rebuilding: return "rebuilding";
    case PartitionHost::State::serving: return "serving";
    case PartitionHost::State::stopped: return "stopped";
    case PartitionHost::State::fenced: return "fenced";
  }
  return "stopped";
}

MachineId machine_id_of(const storage::pb::MachineRecord& record) {
  std::array<std::byte, MachineId::kSize> bytes{};
  const std::size_t size = std::min(record.machine().size(), bytes.size());
  std::memcpy(bytes.data(), record.machine().data(), size);
  return MachineId(bytes);
}

PartitionHost::PartitionHost(Shard& shard, PartitionId id)
    : shard_(shard), id_(id), delays_(shard, *this), space_(shard, *this) {}
PartitionHost::~PartitionHost() = default;

Status PartitionHost::trouble() const {
  if (state_ == State::serving) return {};
  return fail(Code::unavailable, "partition " + std::to_string(id_.value()), std::string("it is ") + to_string(state_),
              "`tidemark health` and the server's log say why");
}

Status PartitionHost::takes_data() const {
  TIDEMARK_TRY(serving());
  return delays_.space();
}

const storage::MachineState* PartitionHost::find(const MachineId& machine) const {
  return partition_ ? partition_->find(machine) : nullptr;
}

Session* PartitionHost::session_of(const MachineId& machine) const {
  const auto found = runtime_.find(machine);
  return found == runtime_.end() ? nullptr : found->second.session;
}

StatusRules PartitionHost::rules() const {
  const Node& node = shard_.node();
  return {.server_started_us = node.started_us,
          .no_point_minutes = node.config.alarms.no_point_minutes,
          .partition_trouble = state_ == State::serving ? std::string() : health().why};
}

StatusView PartitionHost::derive(const storage::MachineState& machine, Runtime& runtime, WallMicros now_us) {
  const MachineRoom& room = space_.room(machine_id_of(machine.record));
  runtime.observed.held_by = room.hold.reason;
  runtime.observed.held_remedy = room.hold.remedy;
  runtime.observed.paused = room.hold.kind == Watermark::Hold::paused;
  runtime.observed.near_quota = room.near_quota;
  StatusView view = derive_status(machine, runtime.observed, now_us, rules());
  if (view.state != runtime.state) {
    runtime.state = view.state;
    runtime.state_since_us = now_us;
  }
  return view;
}

MachineReport PartitionHost::report(const storage::MachineState& machine) {
  const MachineId id = machine_id_of(machine.record);
  Runtime& runtime = runtime_[id];
  MachineReport report;
  report.id = id;
  report.name = machine.record.name();
  report.status = derive(machine, runtime, shard_.node().clock.wall_us());
  report.state_since_us = runtime.state_since_us;
  report.connected = runtime.observed.connected;
  report.address = runtime.observed.address;
  report.agent_version = runtime.observed.agent_version;
  report.proven_us = runtime.observed.proven_us;
  report.differences = runtime.observed.differences;
  report.difference_us = runtime.observed.difference_us;
  report.durable_epoch = machine.durable_epoch;
  report.newest_point = machine.newest_point;
  report.newest_point_us = machine.newest_point_us;
  report.unchanged_as_of_us = machine.unchanged_as_of_us;
  for (const auto& disk : machine.record.disks()) report.disks.push_back({disk.disk(), disk.name(), disk.size()});
  report.quarantine = machine.record.quarantine();
  report.revoked = machine.record.revoked();
  report.damage = runtime.observed.damage;
  report.certificate_expires_us = runtime.observed.certificate_expires_us;
  report.partition = id_;
  report.is_clone = machine.record.has_clone();
  report.cloned = !machine.cloned.empty();
  const MachineRoom& room = space_.room(id);
  report.space = {.logical_bytes = room.logical_bytes,
                  .stored_bytes = room.stored_bytes,
                  .quota_bytes = machine.record.quota(),
                  .quota = room.quota.state(),
                  .growth = room.growth,
                  .hold = room.hold.kind,
                  .rate = room.hold.rate};
  if (const auto* removal = storage::machine_removal(machine.record))
    report.removal = {removal->requested_us(), removal->effective_us(), removal->by(), removal->reason()};
  return report;
}

std::vector<MachineReport> PartitionHost::reports() {
  std::vector<MachineReport> all;
  if (!partition_) {
    all = last_reports_;
    for (MachineReport& report : all) report.status.cause = health().why;
    return all;
  }
  partition_->for_each_machine([&](const storage::MachineState& machine) { all.push_back(report(machine)); });
  return all;
}

std::size_t PartitionHost::machine_count() const {
  std::size_t count = 0;
  if (partition_) partition_->for_each_machine([&](const storage::MachineState&) { ++count; });
  return count;
}

std::size_t PartitionHost::clone_count() const {
  std::size_t count = 0;
  if (partition_) partition_->for_each_clone([&](const storage::MachineState&) { ++count; });
  return count;
}

std::uint64_t PartitionHost::quarantined() const {
  std::uint64_t count = 0;
  if (partition_)
    partition_->for_each_machine([&](const storage::MachineState& machine) {
      if (!machine.record.removed() && !machine.record.quarantine().empty()) ++count;
    });
  return count;
}

void PartitionHost::put(const MachineId& machine, Change change, std::function<void(Status)> done) {
  auto write = [this, machine, change = std::move(change)](std::function<void(Status)> durable) -> Status {
    storage::pb::MachineRecord record;
    if (const auto* known = find(machine)) record = known->record;
    change(record);
    TIDEMARK_TRY(partition_->put_machine(record, std::move(durable)));
    retention_->record_changed(machine, record);
    return {};
  };
  puts_.push_back({std::move(write), std::move(done)});
  try_puts();
}

void PartitionHost::create_clones(storage::CloneBase base, std::vector<storage::CloneName> names, std::string by,
                                  WallMicros now_us, std::function<void(Status)> done) {
  auto write = [this, base = std::move(base), names = std::move(names), by = std::move(by),
                now_us](std::function<void(Status)> durable) -> Status {
    TIDEMARK_TRY(partition_->create_clones(base, names, by, now_us, std::move(durable)));
    for (const storage::CloneName& name : names) retention_->record_changed(name.id, find(name.id)->record);
    return {};
  };
  puts_.push_back({std::move(write), std::move(done)});
  try_puts();
}

void PartitionHost::append(std::function<Status(storage::Partition&)> write, std::function<void(Status)> done) {
  auto put = [this, write = std::move(write), done](const std::function<void(Status)>&) -> Status {
    TIDEMARK_TRY(write(*partition_));
    shard_.later([done] { done({}); });
    return {};
  };
  puts_.push_back({std::move(put), std::move(done)});
  try_puts();
}

// In order, as far as the log has room; the rest waits for the next turn.
void PartitionHost::try_puts() {
  while (!puts_.empty()) {
    PendingPut& next = puts_.front();
    Status written = serving();
    if (written) {
      // The answer may come from within the store: hand it on from the loop.
      written = next.write([this, done = next.done](Status status) { shard_.later([done, status] { done(status); }); });
      if (!written && written.error().code == Code::busy && partition_->waits_for_room()) return;
    }
    if (!written) shard_.later([done = next.done, written] { done(written); });
    puts_.pop_front();
  }
}

void PartitionHost::remove(const MachineId& machine, std::function<void(Status)> done) {
  const auto* const state = find(machine);
  if (state == nullptr) {
    shard_.later(
        [done = std::move(done), machine] { done(fail(Code::not_found, machine.to_string(), "no such machine")); });
    return;
  }
  const std::string name = state->record.name();
  expel(machine, {Code::permission_denied, name, "this machine was removed from the server", {}}, 0);
  put(
      machine,
      [](storage::pb::MachineRecord& record) {
        record.set_removed(true);
        record.set_revoked(true);
        record.clear_ladder();
        record.clear_former_ladders();
        record.clear_pins();
        record.clear_removals();
      },
      [this, machine, name, done = std::move(done)](Status removed) {
        if (removed) shard_.node().names.release(name, machine);
        done(std::move(removed));
      });
}

void PartitionHost::drop_points(const MachineId& machine, const std::vector<EpochNumber>& epochs) {
  if (state_ != State::serving) return;
  partition_->keep_points(machine);
  partition_->drop_points(machine, epochs);
}

void PartitionHost::expel(const MachineId& machine, const Error& why, std::uint32_t retry_after_ms) {
  if (Session* const session = session_of(machine)) session->end(why, retry_after_ms);
}

bool PartitionHost::settled(const MachineId& machine, Channel& waiting) {
  Runtime& runtime = runtime_[machine];
  if (runtime.settling == 0) return true;
  if (std::find(runtime.waiting.begin(), runtime.waiting.end(), &waiting) == runtime.waiting.end())
    runtime.waiting.push_back(&waiting);
  return false;
}

void PartitionHost::session_began(Session& session) {
  Runtime& runtime = runtime_[session.machine()];
  TIDEMARK_CHECK(runtime.session == nullptr);
  runtime.session = &session;
  ++sessions_;
}

void PartitionHost::session_ended(Session& session, bool appended) {
  const MachineId machine = session.machine();
  Runtime& runtime = runtime_[machine];
  TIDEMARK_CHECK(runtime.session == &session);
  runtime.session = nullptr;
  --sessions_;
  runtime.observed.connected = false;
  runtime.observed.state.clear();
  touched_.insert(machine);
  runtime.observed.last_seen_us = shard_.node().clock.wall_us();
  if (!appended || state_ != State::serving) return;
  if (find(machine) == nullptr) return;
  ++runtime.settling;
  partition_->when_durable(
      [this, machine](const Status&) { shard_.later([this, machine] { release_settled(machine); }); });
}

void PartitionHost::release_settled(const MachineId& machine) {
  Runtime& runtime = runtime_[machine];
  if (--runtime.settling > 0) return;
  const auto waiting = std::move(runtime.waiting);
  runtime.waiting.clear();
  for (Channel* const channel : waiting) channel->retry();
}

bool PartitionHost::room_for(Channel& channel, std::size_t bytes) {
  if (state_ != State::serving) return true;  // the store says what is wrong
  if ((waiting_.empty() || serving_room_) && puts_.empty() && partition_->room() >= bytes) return true;
  wait_for_room(channel, bytes);
  return false;
}

void PartitionHost::wait_for_room(Channel& channel, std::size_t bytes) { waiting_.push_back({&channel, bytes}); }

void PartitionHost::forget(Channel& channel, const MachineId& machine) {
  std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.channel == &channel; });
  std::erase(runtime_[machine].waiting, &channel);
  std::erase(waiting_for_opening_, &channel);
}

std::uint32_t PartitionHost::initial_credit() const {
  // All sessions together should not have more in flight than the commit buffers hold.
  const std::uint64_t share = limits::kCommitBuffers * limits::kCommitSizeMax / (sessions_ + 1);
  return static_cast<std::uint32_t>(
      std::clamp<std::uint64_t>(share, limits::kSessionCreditMin, shard_.node().config.limits.session_credit));
}

void PartitionHost::serve_room() {
  serving_room_ = true;
  for (std::size_t n = waiting_.size(); n > 0 && !waiting_.empty(); --n) {
    const Waiting first = waiting_.front();
    if (state_ == State::serving && (!puts_.empty() || partition_->room() < first.bytes)) break;
    waiting_.pop_front();
    first.channel->retry();
    if (!waiting_.empty() &&
        waiting_.back().channel == first.channel) {  // it did not fit after all: it keeps its place
      waiting_.push_front(waiting_.back());
      waiting_.pop_back();
      break;
    }
  }
  serving_room_ = false;
}

void PartitionHost::end_turn() {
  if (!partition_) return;
  if (!puts_.empty()) try_puts();
  if (!waiting_.empty()) serve_room();
  partition_->end_turn();
}

void PartitionHost::on_idle() {
  if (partition_ && state_ == State::serving) partition_->on_idle();
}

// What a state is called is worked out when something happened to the machine, so that its time is right; the alarm
// comes from nothing happening, and is looked for in all of them.
void PartitionHost::tick_second(WallMicros now_us) {
  if (opening_ && state() == State::rebuilding) release_opening();
  let_go();
  look_after_index();
  if (!partition_) return;
  tell_delays();
  tell_damage();
  if (state_ == State::serving) retention_->tick();
  if (state_ == State::serving) space_.tick();
  for (const MachineId& id : std::exchange(touched_, {}))
    if (const auto* machine = find(id)) static_cast<void>(derive(*machine, runtime_[id], now_us));
  if (++ticks_ % kAlarmEverySeconds != 0) return;
  alarms_ = 0;
  lag_seconds_max_ = 0;
  std::size_t machines = 0;
  const StatusRules rules = this->rules();
  partition_->for_each_machine([&](const storage::MachineState& machine) {
    const MachineId id = machine_id_of(machine.record);
    Runtime& runtime = runtime_[id];
    machines += machine.record.removed() ? 0 : 1;
    const bool alarm = no_new_point(machine, runtime.observed, now_us, rules);
    if (alarm) ++alarms_;
    if (machine.newest_point.value() != 0) {
      const WallMicros held_us = std::max(machine.newest_point_us, machine.unchanged_as_of_us);
      lag_seconds_max_ = std::max(lag_seconds_max_, static_cast<double>(now_us - held_us) / 1e6);
    }
    if (alarm == runtime.alarm) return;
    runtime.alarm = alarm;
    if (alarm) {
      const StatusView view = derive(machine, runtime, now_us);
      spdlog::warn("no new point for too long{}{}{}{}{}{}", kv("machine", machine.record.name()),
                   kv("id", id.to_string()), kv("minutes", rules.no_point_minutes), kv("state", view.state),
                   kv("cause", view.cause), kv("remedy", view.remedy));
    } else {
      spdlog::info("points come again{}{}", kv("machine", machine.record.name()), kv("id", id.to_string()));
    }
  });
  if (state_ == State::serving) shard_.node().occupancy.tell(id_, machines);
}

// The checker works out on its own thread what is damaged; here it is shown, and the agents are asked for it.
void PartitionHost::tell_damage() {
  const storage::Checker& checker = partition_->checker();
  if (const std::uint64_t version = checker.version(); version != damage_version_) {
    damage_version_ = version;
    const auto before = std::exchange(damaged_, checker.machines());
    for (const auto& [id, damage] : before)
      if (!damaged_.contains(id)) observed(id).damage = {};
    for (const auto& [id, damage] : damaged_)
      observed(id).damage = {.extents = damage.extents,
                             .bytes = damage.bytes,
                             .points = damage.points,
                             .newest = damage.newest,
                             .unlisted = damage.unlisted};
    for (const auto& [id, damage] : before)
      if (Session* const session = session_of(id); session != nullptr && !damaged_.contains(id)) session->ask_again({});
  }
  for (const auto& [id, damage] : damaged_)
    if (Session* const session = session_of(id)) session->ask_again(damage.wanted);
}

void PartitionHost::ask_for_damaged(Session& session) {
  const auto damaged = damaged_.find(session.machine());
  if (damaged != damaged_.end()) session.ask_again(damaged->second.wanted);
}

void PartitionHost::tell_delays() {
  std::vector<Session*> sessions;
  for (auto& [machine, runtime] : runtime_)
    if (runtime.session != nullptr) sessions.push_back(runtime.session);
  delays_.tick(sessions);
}

void PartitionHost::on_epoch_durable(const MachineId& machine, EpochNumber epoch, const Hash128& digest) {
  ++shard_.counters().epochs_durable;
  touched_.insert(machine);
  if (retention_) retention_->epoch_committed(machine);
  if (Session* const session = session_of(machine)) session->epoch_durable(epoch, digest);
}

void PartitionHost::on_bytes_durable(const MachineId& machine, std::uint64_t payload_bytes) {
  space_.received(machine, payload_bytes);
  if (Session* const session = session_of(machine)) session->bytes_durable(payload_bytes);
}

void PartitionHost::on_room() {
  // end_turn() looks at the queue in every turn; this call comes from the store in the middle of one.
}

}  // namespace tidemark::server
