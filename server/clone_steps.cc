// The shard's side of a clone's writer: its steps go into the log, in order, as there is room.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "server/clone_writer.h"
#include "server/logging.h"
#include "server/nbd_service.h"
#include "server/shard.h"
#include "wire/messages.h"

namespace tidemark::server {

void CloneWriter::take(std::vector<Step> steps) {
  for (Step& step : steps) pending_.push_back(std::move(step));
  advance();
}

void CloneWriter::advance() {
  if (advancing_ || pending_.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    if (broken_) return pending_.clear();
  }
  advancing_ = true;
  place_.host->append(
      [self = shared_from_this()](storage::Partition& partition) -> Status {
        while (!self->pending_.empty()) {
          TIDEMARK_TRY(self->write(partition, self->pending_.front()));
          self->pending_.pop_front();
        }
        return {};
      },
      [self = shared_from_this()](const Status& taken) {
        self->advancing_ = false;
        if (!taken) return self->failed(taken.error());
        bool had_room = true;
        {
          const std::lock_guard lock(self->mutex_);
          had_room = !self->no_room_.has_value();
          self->no_room_.reset();
        }
        if (!had_room) spdlog::info("clone can be written to again{}", kv("clone", self->place_.name));
        self->advance();
      });
}

// What wants for space is tried again at every tick; everything else is for good.
void CloneWriter::failed(const Error& why) {
  std::map<EpochNumber, Waiters> told;
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    auto& trouble = why.code == Code::no_space || why.code == Code::busy ? no_room_ : broken_;
    first = !trouble.has_value();
    trouble = why;
    // Those whose commit is in the log already hear of it when it is durable.
    const EpochNumber from = pending_.empty() ? EpochNumber() : pending_.front().epoch;
    for (auto& [epoch, waiters] : waiters_)
      if (broken_ || epoch >= from) told[epoch] = std::move(waiters);
    for (const auto& [epoch, waiters] : told) waiters_.erase(epoch);
  }
  if (first) spdlog::warn("clone cannot be written to{}{}", kv("clone", place_.name), kv(why));
  for (const auto& [epoch, waiters] : told)
    for (const auto& done : waiters) done(std::unexpected(why));
  work();
}

Status CloneWriter::write(storage::Partition& partition, const Step& step) {
  switch (step.kind) {
    case Step::Kind::begin: {
      TIDEMARK_TRY(place_.host->takes_data());
      storage::pb::EpochBeginRecord begin;
      begin.set_number(step.epoch.value());
      begin.set_kind(pb::DELTA);
      for (const auto& [disk, size] : sizes_) {
        auto* const one = begin.add_disks();
        one->set_disk(disk.value());
        one->set_size(size);
      }
      return partition.begin_epoch(place_.id, begin);
    }
    case Step::Kind::blocks: return partition.append_blocks(place_.id, step.disk, step.payload);
    case Step::Kind::commit: break;
  }
  storage::pb::EpochCommitRecord commit;
  commit.set_number(step.epoch.value());
  commit.set_time_us(step.time_us);
  commit.set_agent_time_us(step.time_us);
  commit.set_arrival_us(step.time_us);
  commit.set_consistency(pb::CRASH);
  commit.set_digest(wire::hash_to_bytes(step.digest));
  TIDEMARK_TRY(partition.commit_epoch(place_.id, commit));
  partition.when_durable([self = shared_from_this(), epoch = step.epoch](const Status& status) {
    self->place_.shard->later([self, epoch, status] { self->durable(epoch, status); });
  });
  return {};
}

void CloneWriter::durable(EpochNumber epoch, const Status& status) {
  Waiters told;
  {
    const std::lock_guard lock(mutex_);
    if (status) durable_ = std::max(durable_, epoch);
    if (!status && !broken_) broken_ = status.error();
    for (auto one = waiters_.begin(); one != waiters_.end() && one->first <= epoch; one = waiters_.erase(one))
      std::move(one->second.begin(), one->second.end(), std::back_inserter(told));
  }
  for (const auto& done : told) done(status);
  want_refresh();
}

}  // namespace tidemark::server
