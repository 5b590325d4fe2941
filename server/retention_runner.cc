#include "server/retention_runner.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>

#include "server/audit.h"
#include "server/logging.h"
#include "server/partition_host.h"
#include "server/retention_json.h"
#include "server/shard.h"

namespace tidemark::server {
namespace {

constexpr auto kIndexTimeout = std::chrono::seconds(30);
constexpr WallMicros kRetryAfter = 60'000'000;
constexpr WallMicros kCheckedWithin = 5'000'000;  // what is new is read back within seconds

storage::RetentionClock start_clock(Shard& shard, PartitionHost& host, storage::RetentionClock::Back back) {
  const Node& node = shard.node();
  std::optional<WallMicros> seen = node.seen_time.at_start();
  if (!seen) {
    host.partition()->for_each_machine([&](const storage::MachineState& machine) {
      const WallMicros of_it = std::max(storage::seen_time(machine.record), machine.durable_time_us);
      seen = std::max(seen.value_or(of_it), of_it);
    });
  }
  return {seen, node.clock.wall_us(), node.clock.monotonic(), back};
}

void write(Node& node, const AuditEntry& entry) {
  if (const auto written = node.audit.append(entry); !written)
    spdlog::error("audit log not written{}{}{}", kv("action", entry.action), kv("object", entry.object),
                  kv(written.error()));
}

}  // namespace

storage::Guards guards_of(const storage::MachineState& machine) {
  storage::Guards guards;
  for (const auto& [epoch, clones] : machine.cloned) guards.in_use.push_back(epoch);
  return guards;
}

RetentionRunner::RetentionRunner(Shard& shard, PartitionHost& host)
    : shard_(shard),
      host_(host),
      retention_(start_clock(shard, host, storage::RetentionClock::Back::follow)),
      rung_clock_(start_clock(shard, host, storage::RetentionClock::Back::hold)) {
  opened_again();
  tell_clock();
}

void RetentionRunner::opened_again() {
  going_.clear();  // whatever was asked of the former one and not done yet is asked again
  const auto know = [&](const storage::MachineState& machine) {
    retention_.record_changed(machine_id_of(machine.record), machine.record);
  };
  host_.partition()->for_each_machine(know);
  host_.partition()->for_each_clone(know);
}

RetentionRunner::~RetentionRunner() {
  for (const AuditEntry& entry : unaudited_) write(shard_.node(), entry);
}

WallMicros RetentionRunner::rung_time_us() { return rung_clock_.now_us(shard_.node().clock.monotonic()); }

void RetentionRunner::audit(AuditEntry entry) {
  unaudited_.push_back(std::move(entry));
  write_audit();
}

// What finds the workers busy waits for the next tick.
void RetentionRunner::write_audit() {
  while (!unaudited_.empty()) {
    if (!shard_.node().workers.post([node = &shard_.node(), entry = unaudited_.front()] { write(*node, entry); }))
      return;
    unaudited_.pop_front();
  }
}

void RetentionRunner::record_changed(const MachineId& machine, const storage::pb::MachineRecord& record) {
  if (record.removed()) {
    retention_.forget(machine);
    going_.erase(machine);
  } else {
    retention_.record_changed(machine, record);
  }
}

void RetentionRunner::tell_clock() {
  const auto held = retention_.clock().held();
  if (held.has_value() == told_held_) return;
  told_held_ = held.has_value();
  if (held) {
    spdlog::info("the clock is ahead of what the store has seen: nothing expires by it yet{}{}{}{}",
                 kv("partition", host_.id().value()), kv("clock", format_rfc3339(held->wall_us)),
                 kv("retention_clock", format_rfc3339(now_us())), kv("believed_at", format_rfc3339(held->believed_us)));
  } else {
    spdlog::info("the clock is believed again{}{}", kv("partition", host_.id().value()),
                 kv("retention_clock", format_rfc3339(now_us())));
  }
}

void RetentionRunner::tick() {
  Node& node = shard_.node();
  retention_.observe(node.clock.wall_us(), node.clock.monotonic());
  rung_clock_.observe(node.clock.wall_us(), node.clock.monotonic());
  tell_clock();
  write_audit();
  node.seen_time.note(now_us(), node.clock.monotonic(), node.workers);
  if (looking_) return;
  std::vector<Look> looks;
  for (const MachineId& id : retention_.due(kLooksAtOnce)) {
    const auto* machine = host_.find(id);
    if (machine == nullptr) {
      retention_.forget(id);
      continue;
    }
    looks.push_back({id, machine->record, guards_of(*machine)});
  }
  if (!looks.empty()) look(std::move(looks));
}

void RetentionRunner::look(std::vector<Look> looks) {
  looking_ = true;
  auto shared = std::make_shared<std::vector<Look>>(std::move(looks));
  // The partition is let go when the job has run, with the job.
  auto job = [this, shared, partition = host_.share(), shard = &shard_, now = now_us()] {
    std::vector<Looked> all;
    for (Look& look : *shared) {
      if (shard->node().stopping) return;
      Looked one{.look = std::move(look), .error = {}, .decision = {}, .gone = {}};
      auto entries = partition->epochs(one.look.machine, 0, true, kIndexTimeout);
      if (entries) {
        std::vector<storage::LadderEpoch> epochs;
        epochs.reserve(entries->size());
        for (auto at = entries->rbegin(); at != entries->rend(); ++at)
          if (at->number() != 0) epochs.push_back(storage::ladder_epoch(*at));  // 0: what a clone stands on
        storage::Guards guards = one.look.guards;
        storage::guard_newest_verified(guards, *entries);
        one.decision = storage::decide(epochs, one.look.record, guards, now);
        one.gone = storage::gone_removals(one.look.record, epochs);
        auto tidied = one.look.record;
        one.tidy = storage::tidy_retention(tidied, one.gone, now);
      } else {
        one.error = entries.error();
      }
      all.push_back(std::move(one));
    }
    auto results = std::make_shared<std::vector<Looked>>(std::move(all));
    shard->post([this, results] { decided(std::move(*results)); });
  };
  if (shard_.node().workers.post(job)) return;
  // The workers have enough to do: again later.
  looking_ = false;
  for (const Look& one : *shared) retention_.decided(one.machine, now_us());
}

void RetentionRunner::decided(std::vector<Looked> all) {
  looking_ = false;
  for (Looked& one : all) decided(one);
}

void RetentionRunner::decided(Looked& one) {
  const MachineId& id = one.look.machine;
  const auto* machine = host_.find(id);
  if (machine == nullptr) return retention_.forget(id);
  if (one.error) {
    if (one.error->code != Code::not_found)
      spdlog::info("retention waits{}{}", kv("machine", id.to_string()), kv(*one.error));
    return retention_.decided(id, now_us() + kRetryAfter);
  }
  std::optional<WallMicros> next = one.decision.next_due_us;
  const auto sooner = [&](WallMicros at) { next = std::min(next.value_or(at), at); };

  if (const auto* removal = storage::machine_removal(machine->record)) {
    if (removal->effective_us() <= now_us()) {
      // Clones hold it up; when they are dropped it is looked at again.
      if (machine->cloned.empty()) remove_machine(one.look, *removal);
      return retention_.decided(id, now_us() + kRetryAfter);  // should the record not become durable
    }
    sooner(removal->effective_us());
  }

  drop(id, *machine, one.decision);
  const bool by_removal =
      std::any_of(machine->record.removals().begin(), machine->record.removals().end(), [&](const auto& removal) {
        return std::binary_search(one.decision.drop.begin(), one.decision.drop.end(), EpochNumber(removal.epoch()));
      });
  if (by_removal) sooner(now_us());  // to see it gone, and say so
  if (one.decision.waits_for_check) sooner(now_us() + kCheckedWithin);

  if (one.tidy) {
    for (const EpochNumber gone : one.gone)
      audit({.who = "server",
             .uid = {},
             .pid = {},
             .action = "point.removed",
             .object = machine->record.name() + " epoch:" + std::to_string(gone.value()),
             .error = {},
             .details = {}});
    host_.put(
        id,
        [gone = one.gone, now = now_us()](storage::pb::MachineRecord& record) {
          storage::tidy_retention(record, gone, now);
        },
        [](const Status&) {});
  }
  retention_.decided(id, next);
}

// What the store is asked to drop is going until a look finds it gone.
void RetentionRunner::drop(const MachineId& id, const storage::MachineState& machine, storage::Decision& decision) {
  // What was pinned or cloned while the look was under way stays.
  std::set<EpochNumber> pinned;
  for (const auto& [epoch, clones] : machine.cloned) pinned.insert(epoch);
  for (const auto& pin : machine.record.pins())
    if (storage::is_in_force(pin, now_us())) pinned.insert(EpochNumber(pin.epoch()));
  Ranges going;
  bool joins = false;  // whatever stands between two that go is going or gone
  const auto add = [&](EpochNumber number) {
    if (joins) {
      going.back().second = number;
    } else {
      going.emplace_back(number, number);
    }
    joins = true;
  };
  std::vector<EpochNumber> drops;
  auto keep = decision.keep.begin();
  const auto keep_before = [&](EpochNumber number) {
    for (; keep != decision.keep.end() && *keep < number; ++keep) {
      joins = false;
      if (this->going(id, *keep)) add(*keep);  // held only since it was asked for
      joins = false;
    }
  };
  for (const EpochNumber number : decision.drop) {
    keep_before(number);
    if (pinned.contains(number)) {
      joins = false;
      continue;
    }
    if (!this->going(id, number)) ++dropped_;
    add(number);
    drops.push_back(number);
  }
  keep_before(EpochNumber(UINT64_MAX));
  if (going.empty()) {
    going_.erase(id);
  } else {
    going_[id] = std::move(going);
  }
  host_.drop_points(id, drops);
}

void RetentionRunner::remove_machine(const Look& look, const storage::pb::RemovalRecord& removal) {
  const MachineId id = look.machine;
  const std::string name = host_.find(id)->record.name();
  const std::string details = "asked for by " + removal.by() + " at " + format_rfc3339(removal.requested_us());
  host_.remove(id, [this, id, name, details](const Status& removed) {
    spdlog::info("machine removed{}{}", kv("machine", name), kv("id", id.to_string()));
    audit({.who = "server",
           .uid = {},
           .pid = {},
           .action = "machine.removed",
           .object = name + " " + id.to_string(),
           .error = removed ? std::nullopt : std::optional(removed.error()),
           .details = details});
  });
}

RetentionRunner::Ranges RetentionRunner::going(const MachineId& machine) const {
  const auto found = going_.find(machine);
  return found == going_.end() ? Ranges() : found->second;
}

bool RetentionRunner::going(const MachineId& machine, EpochNumber epoch) const {
  const auto found = going_.find(machine);
  if (found == going_.end()) return false;
  const auto& ranges = found->second;
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), epoch,
                                      [](EpochNumber number, const auto& range) { return number < range.first; });
  return after != ranges.begin() && epoch <= std::prev(after)->second;
}

}  // namespace tidemark::server
