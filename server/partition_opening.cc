// How a partition comes to serve, stops, and comes to serve again.
#include <pthread.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "server/logging.h"
#include "server/partition_host.h"
#include "server/session.h"
#include "server/shard.h"

namespace tidemark::server {
namespace {

constexpr auto kFormerGone = std::chrono::seconds(30);  // who reads from what was there before has as long to end

// The store's own threads come from this one, and are not to stay on the shard's core.
void use_all_cores() {
  cpu_set_t set;
  if (::sched_getaffinity(::getpid(), sizeof set, &set) == 0)
    ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set);
}

storage::PartitionOptions options_of(const Node& node, storage::OpenProgress& progress) {
  storage::PartitionOptions options;
  options.segment_size = node.config.storage.segment_size;
  options.reserve_segments = node.config.storage.reserve_segments;
  options.commits_in_flight_max = node.config.storage.commits_in_flight;
  options.free_space_min = free_space_min(node);
  options.index.cache_bytes = node.config.storage.index_cache;
  options.settler.settle_after_us = static_cast<WallMicros>(node.config.storage.settle_after) * 1'000'000;
  options.settler.bytes_per_second = node.config.storage.settle_rate;
  // Of the whole server in the configuration: its partitions share the disks.
  options.checker.verify_rate =
      std::max<std::uint64_t>(1, node.config.storage.verify_rate / node.superblock.partitions);
  options.checker.scrub_rate = std::max<std::uint64_t>(1, node.config.storage.scrub_rate / node.superblock.partitions);
  options.checker.scrub_interval_us = static_cast<WallMicros>(node.config.storage.scrub_interval) * 1'000'000;
  options.master_keys = node.master_keys;
  options.encrypt = node.config.storage.encryption;
  // What all of them may have to replay after a crash is limits::kReplayMax: a part of a partition's share comes
  // between two flushes of its index, a quarter may wait for it, the rest is what is in flight and what comes during a
  // flush.
  const std::uint64_t share = limits::kReplayMax / node.superblock.partitions;
  options.index_flush_bytes = share * 3 / 8;
  options.index_lag_max = index_lag_max(node);
  options.progress = &progress;
  return options;
}

void tell(PartitionId id, const storage::RecoveryResult& recovery) {
  spdlog::info("partition open{}{}{}{}{}{}", kv("partition", id.value()),
               kv("durable_lsn", recovery.durable_lsn.value()), kv("commits_replayed", recovery.commits),
               kv("replayed_bytes", recovery.replayed_bytes), kv("torn_bytes", recovery.torn_bytes),
               kv("damaged", recovery.damaged.size()));
  for (const auto& damaged : recovery.damaged)
    spdlog::error("damaged block found{}{}{}{}{}", kv("partition", id.value()),
                  kv("machine", damaged.machine.to_string()), kv("disk", damaged.disk.value()),
                  kv("epoch", damaged.epoch.value()), kv("segment", damaged.segment.value()));
}

}  // namespace

std::uint64_t index_lag_max(const Node& node) {
  return std::clamp<std::uint64_t>(limits::kReplayMax / node.superblock.partitions / 4, 2 * limits::kFramePayloadMax,
                                   storage::PartitionOptions().index_lag_max);
}

PartitionHost::State PartitionHost::state() const {
  const State state = state_;
  return state == State::opening && progress_.rebuilding ? State::rebuilding : state;
}

PartitionHost::Health PartitionHost::health() const {
  Health health{id_, state(), why_, {}};
  if (health.state == State::opening) health.why = "it is being opened";
  if (health.state == State::rebuilding) {
    health.percent = progress_.percent();
    health.why =
        "its index was missing or damaged, and is made again from the log: " + std::to_string(*health.percent) +
        " % done";
  }
  return health;
}

std::shared_ptr<storage::Partition> PartitionHost::share() const {
  const std::lock_guard lock(shared_mutex_);
  return shared_;
}

void PartitionHost::share(std::shared_ptr<storage::Partition> partition) {
  const std::lock_guard lock(shared_mutex_);
  shared_ = std::move(partition);
}

Status PartitionHost::serving() const {
  if (state_ == State::serving) return {};
  const Health health = this->health();
  const bool soon = health.state == State::opening || health.state == State::rebuilding;
  return fail(
      Code::unavailable, "partition " + std::to_string(id_.value()),
      "the part of the server that holds this machine is " + std::string(to_string(health.state)) + ": " + health.why,
      soon ? "it is tried again by itself"
           : "the server's operator must look at it; nothing that was acknowledged is given up");
}

void PartitionHost::open(storage::IoQueue& queue) {
  queue_ = &queue;
  if (const Status well = shard_.node().directories.state_of(id_); !well) {
    by_directory_ = true;
    return not_opened(well.error());
  }
  begin_opening();
}

// What was there before goes first: two stores cannot have one directory. Its end may have to wait for the disk, and
// for whoever reads from it.
void PartitionHost::begin_opening() {
  progress_.cancelled = progress_.rebuilding = false;
  progress_.done = progress_.total = 0;
  state_ = State::opening;
  why_.clear();
  by_directory_ = false;
  share(nullptr);
  opening_ = std::make_unique<Opening>();
  opening_->thread = std::thread([this, opening = opening_.get(), held = std::exchange(partition_, nullptr),
                                  former = end_, index_damage = index_damage_]() mutable {
    ::pthread_setname_np(::pthread_self(), ("tm-open-" + std::to_string(id_.value())).c_str());
    use_all_cores();
    held.reset();
    const auto until = std::chrono::steady_clock::now() + kFormerGone;
    const auto over = [&] { return former == nullptr || former->over(); };
    while (!over() && !progress_.cancelled && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const Node& node = shard_.node();
    storage::PartitionOptions options = options_of(node, progress_);
    options.index_damage = index_damage;
    if (over()) {
      opening->result = storage::Partition::open(node.files, Directory(node.directories.path_of(id_)).partition(id_),
                                                 id_, node.superblock.server_id, options, *queue_, node.clock, *this);
    } else {
      opening->result = fail(Code::busy, "partition " + std::to_string(id_.value()),
                             "an export or another read still holds what it was before", "end that, and open it again");
    }
    shard_.post([this, opening] {
      if (opening_.get() == opening) opened();
    });
  });
}

void PartitionHost::opened() {
  const auto opening = std::exchange(opening_, nullptr);
  opening->thread.join();
  auto& result = *opening->result;
  if (const Status well = shard_.node().directories.state_of(id_); result && !well) {
    by_directory_ = true;
    result = std::unexpected(well.error());
  }
  if (result) {
    adopt(std::move(*result));
  } else {
    not_opened(result.error());
  }
  release_opening();
}

void PartitionHost::not_opened(const Error& why) {
  state_ = why.code == Code::corrupt ? State::fenced : State::stopped;
  why_ = why.message();
  shard_.node().occupancy.closed(id_);
  spdlog::error("partition not opened{}{}{}", kv("partition", id_.value()), kv("state", to_string(state_)), kv(why));
}

void PartitionHost::adopt(storage::Partition::Opened opened) {
  end_ = std::make_shared<EndApart<storage::Partition>>(std::move(opened.partition));
  partition_ = end_->share(shard_.node().stopping);
  share(partition_);
  index_rebuilt_ = !opened.index_rebuilt.empty();
  index_damage_.clear();
  last_reports_.clear();
  damage_version_ = 0;
  damaged_.clear();
  tell(id_, opened.recovery);
  const auto load_name = [&](const storage::MachineState& machine) {
    const auto id = machine_id_of(machine.record);
    if (!shard_.node().names.load(machine.record.name(), id))
      spdlog::warn("two machines have one name: use the id{}{}", kv("name", machine.record.name()),
                   kv("machine", id.to_string()));
  };
  partition_->for_each_machine(load_name);
  partition_->for_each_clone(load_name);
  shard_.node().occupancy.tell(id_, machine_count());
  state_ = State::serving;  // who sees that finds the machines by their names
  if (retention_) {
    retention_->opened_again();
  } else {
    retention_ = std::make_unique<RetentionRunner>(shard_, *this);
  }
}

bool PartitionHost::wait_for_opening(Channel& waiting) {
  if (state() != State::opening) return false;
  if (std::find(waiting_for_opening_.begin(), waiting_for_opening_.end(), &waiting) == waiting_for_opening_.end())
    waiting_for_opening_.push_back(&waiting);
  return true;
}

void PartitionHost::release_opening() {
  for (Channel* const channel : std::exchange(waiting_for_opening_, {})) channel->retry();
}

Status PartitionHost::reopen() {
  const std::string object = "partition " + std::to_string(id_.value());
  if (state_ == State::serving) return fail(Code::already_exists, object, "it serves");
  if (opening_) return fail(Code::already_exists, object, "it is being opened");
  TIDEMARK_TRY(shard_.node().directories.state_of(id_));
  if (partition_ && !partition_->quiet())
    return fail(Code::busy, object, "writes that it began have not come back from the disk yet",
                "try again; if the disk hangs, only a restart of the server helps");
  spdlog::info("partition is opened again{}", kv("partition", id_.value()));
  begin_opening();
  return {};
}

// A partition whose index turns out to be damaged stops, and is opened again with one that is made from the log.
void PartitionHost::look_after_index() {
  if (state_ == State::serving) {
    const auto damage = partition_->index_damage();
    if (!damage) return;
    index_damage_ = damage->what;
    spdlog::error("index is damaged: it is made again{}{}", kv("partition", id_.value()), kv(*damage));
    partition_->stop(Error{Code::unavailable, "partition " + std::to_string(id_.value()),
                           "its index is damaged, and is made again from the log", "it serves again by itself"});
  }
  if (index_damage_.empty() || state_ != State::stopped || by_directory_ || opening_) return;
  if (partition_ && !partition_->quiet()) return;
  if (const Status begun = reopen(); !begun)
    spdlog::warn("partition not opened again{}{}", kv("partition", id_.value()), kv(begun.error()));
}

void PartitionHost::directory_failed(const Error& why) {
  by_directory_ = true;
  if (state_ == State::serving) partition_->stop(why);
}

// Its files are closed, so that the file system can be unmounted and mended.
void PartitionHost::let_go() {
  if (!by_directory_ || !partition_ || state_ == State::serving || opening_ || !partition_->quiet()) return;
  last_reports_ = reports();
  share(nullptr);
  partition_.reset();
}

void PartitionHost::directory_back() {
  if (!by_directory_ || state_ == State::serving || opening_) return;
  if (const Status begun = reopen(); !begun)
    spdlog::warn("partition not opened again{}{}", kv("partition", id_.value()), kv(begun.error()));
}

void PartitionHost::on_stopped(const Error& why) {
  if (state_ != State::serving) return;
  state_ = State::stopped;
  why_ = why.message();
  shard_.node().occupancy.closed(id_);
  spdlog::error("partition stopped{}{}", kv("partition", id_.value()), kv(why));
  shard_.later([this] {
    const auto trouble = serving();
    if (trouble) return;
    std::vector<Session*> sessions;
    for (auto& [machine, runtime] : runtime_)
      if (runtime.session != nullptr) sessions.push_back(runtime.session);
    for (Session* const session : sessions) session->end(trouble.error(), retry_after_ms(Code::unavailable));
    try_puts();
  });
}

void PartitionHost::close() {
  progress_.cancelled = true;
  if (opening_) {
    opening_->thread.join();
    if (*opening_->result) adopt(std::move(**opening_->result));
    opening_.reset();
  }
  if (partition_) {
    if (const auto closed = partition_->close(); !closed && state_ == State::serving)
      spdlog::error("partition not closed well{}{}", kv("partition", id_.value()), kv(closed.error()));
  }
  state_ = State::stopped;
  why_ = "the server stops";
  share(nullptr);
  partition_.reset();
  if (end_) end_->wait();
}

}  // namespace tidemark::server
