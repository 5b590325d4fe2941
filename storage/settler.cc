// The settler's thread, and what it does step by step. Moving blocks stands in settler_move.cc.
#include "storage/settler.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <ranges>

#include "base/marks.h"
#include "base/thread_task.h"
#include "storage/epoch_progress.h"
#include "storage/segment_keeper.h"
#include "storage/settler_impl.h"

namespace tidemark::storage {

namespace {

constexpr std::chrono::seconds kTick{1};
constexpr std::chrono::seconds kRetry{10};
constexpr std::size_t kFoldRegions = 256;       // folded in one step
constexpr WallMicros kShortEvery = 10'000'000;  // with little space: between two folds, or tries of a segment
constexpr std::size_t kHistoryBytesMax = limits::kFramePayloadMax - 4096;

}  // namespace

Settler::Settler(FileSystem& files, std::string directory, PartitionId partition, std::uint32_t salt,
                 std::shared_ptr<ReadContext> context, Indexer& indexer, ColdManifest& manifest, const Clock& clock,
                 SettlerOptions options)
    : files_(files),
      directory_(std::move(directory)),
      partition_(partition),
      salt_(salt),
      context_(std::move(context)),
      indexer_(indexer),
      manifest_(manifest),
      clock_(clock),
      options_(options) {
  for (const SegmentId segment : manifest_.segments()) {
    next_cold_ = std::max(next_cold_, cold_number(segment) + 1);
  }
  // And those that were freed, but that a crash kept the index from forgetting: they are about to be freed once more,
  // and a new one of the same number would go with them.
  for (const auto& [segment, references] : index().segments()) {
    if (is_cold(segment)) next_cold_ = std::max(next_cold_, cold_number(segment) + 1);
  }
  if (options_.background) thread_ = std::thread([this] { run(); });
}

Settler::~Settler() { stop(); }

void Settler::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Settler::drop_points(const MachineId& machine, const std::vector<EpochNumber>& epochs) {
  if (epochs.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    auto& asked = drops_[machine];
    for (const EpochNumber epoch : epochs) asked.try_emplace(epoch, false);
  }
  wake_.notify_one();
}

void Settler::keep_points(const MachineId& machine) {
  const std::lock_guard lock(mutex_);
  const auto asked = drops_.find(machine);
  if (asked == drops_.end()) return;
  std::erase_if(asked->second, [](const auto& one) { return !one.second; });
  if (asked->second.empty()) drops_.erase(asked);
}

// --- what the log is to tell ---

void Settler::send(Record record) {
  const std::lock_guard lock(mutex_);
  ++in_flight_[record.machine].waiting;
  outbox_.push_back(std::move(record));
  to_append_.store(true, std::memory_order_release);
}

std::optional<Settler::Record> Settler::next_record() {
  if (!to_append_.load(std::memory_order_acquire)) return std::nullopt;
  const std::lock_guard lock(mutex_);
  if (outbox_.empty()) return std::nullopt;
  return outbox_.front();
}

void Settler::appended(Lsn lsn) {
  {
    const std::lock_guard lock(mutex_);
    Sent& sent = in_flight_[outbox_.front().machine];
    sent.last = lsn;
    --sent.waiting;
    outbox_.pop_front();
    to_append_.store(!outbox_.empty(), std::memory_order_relaxed);
  }
  wake_.notify_one();
}

// What was sent for this machine is not in the index yet: nothing more may be built on what the index says.
bool Settler::in_flight(const MachineId& machine) {
  const Lsn indexed = indexer_.indexed_lsn();
  const std::lock_guard lock(mutex_);
  const auto found = in_flight_.find(machine);
  if (found == in_flight_.end()) return false;
  if (found->second.waiting != 0 || found->second.last > indexed) return true;
  in_flight_.erase(found);
  return false;
}

// --- the loop ---

void Settler::run() {
  ::pthread_setname_np(::pthread_self(), "td-settler");
  // Behind everything else that runs here: CPU and disk.
  const auto thread = static_cast<id_t>(syscall(SYS_gettid));
  setpriority(PRIO_PROCESS, thread, 10);
  constexpr int kWhoProcess = 1, kClassIdle = 3, kClassShift = 13;
  syscall(SYS_ioprio_set, kWhoProcess, 0, kClassIdle << kClassShift);
  while (!stopping()) {
    if (work()) continue;
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, kTick, [&] { return stopping() || !drops_.empty(); });
    if (stopping() || drops_.empty()) continue;
    // Drops that cannot be done yet, or that the index has yet to hear of, are looked at again in a while, not at once.
    const ThreadTask task("td-drop");
    wake_.wait_for(lock, kTick / 10, [&] { return stopping(); });
  }
}

bool Settler::step() { return !options_.background && work(); }

bool Settler::work() {
  if (options_.background && std::chrono::steady_clock::now() < retry_at_) return false;
  bool did = false;
  std::optional<Error> failed;  // one piece that fails does not keep the others
  for (const auto piece : {&Settler::drop_some, &Settler::settle_some, &Settler::compact_some, &Settler::fold_some}) {
    if (stopping()) return false;
    const Result<bool> result = (this->*piece)();
    if (!result && result.error().code == Code::cancelled) return false;
    if (!result && !failed) failed = result.error();
    did = did || (result && *result);
  }
  std::optional<Error> before;
  {
    const std::lock_guard lock(mutex_);
    before = std::exchange(stats_.error, failed);
  }
  if (failed) {
    if (before != failed) {
      spdlog::warn("event=settling_failed path={} error=\"{}\" retry_seconds={}", directory_, failed->message(),
                   kRetry.count());
    }
    retry_at_ = std::chrono::steady_clock::now() + kRetry;
    return false;
  }
  if (before) spdlog::info("event=settling_goes_on path={}", directory_);
  return did;
}

// --- dropping points ---

Result<bool> Settler::drop_some() {
  std::vector<std::pair<MachineId, std::map<EpochNumber, bool>>> asked;
  {
    const std::lock_guard lock(mutex_);
    asked.assign(drops_.begin(), drops_.end());
  }
  if (asked.empty()) return false;
  const ThreadTask task("td-drop");
  bool did = false;
  for (auto& [machine, epochs] : asked) {
    if (in_flight(machine)) continue;
    const auto newest = index().newest_epoch(machine);
    const auto record = index().machine(machine);
    std::vector<EpochNumber> going, waiting;
    EpochNumber through(index().homes(machine).value_or(pb::MachineHomes()).through());
    for (const EpochNumber epoch : std::views::keys(epochs)) {
      if (!record || record->removed() || !newest || epoch.value() >= newest->number()) continue;
      if (!TIDEMARK_TRY(index().epoch(machine, epoch))) {
        context_->uses.dropped(machine, epoch);  // gone: by a drop before, or it never was
        continue;
      }
      if (!context_->uses.drop(machine, epoch)) {
        leave_mark(Mark::drop_waits);
        waiting.push_back(epoch);
        continue;
      }
      going.push_back(epoch);
      through = std::max(through, epoch);
    }
    if (!going.empty()) {
      const bool sent = TIDEMARK_TRY(send_history(machine, through, going));
      if (!sent) {
        for (const EpochNumber epoch : going) context_->uses.dropped(machine, epoch);  // they are not: read them again
        going.clear();
      }
      did = did || sent;
    }
    const std::lock_guard lock(mutex_);
    auto& left = drops_[machine];
    // Those that go are looked at once more, when the index has it: then they may be forgotten.
    for (const EpochNumber epoch : std::views::keys(epochs)) {
      if (std::ranges::find(waiting, epoch) == waiting.end() && std::ranges::find(going, epoch) == going.end()) {
        left.erase(epoch);
      }
    }
    for (const EpochNumber epoch : going) left[epoch] = true;
    if (left.empty()) drops_.erase(machine);
    if (!going.empty()) {
      stats_.points_dropped += going.size();
      fold_wanted_.insert(machine);
    }
  }
  return did;
}

void Settler::set_gone(std::vector<GoneLsns> gone) {
  const std::lock_guard lock(mutex_);
  gone_ = std::move(gone);
}

// Ranges of which no record is left, nor the one that ended them (it may stand right behind), hide nothing any more,
// and no rebuild would come upon them.
void Settler::forget_gone(pb::AbortedRanges& aborted) {
  const std::lock_guard lock(mutex_);
  auto* ranges = aborted.mutable_ranges();
  const auto left = std::remove_if(ranges->begin(), ranges->end(), [&](const pb::AbortedRanges::Range& range) {
    const auto behind =
        std::ranges::upper_bound(gone_, range.first_lsn(), {}, [](const GoneLsns& gone) { return gone.first.value(); });
    return behind != gone_.begin() && range.last_lsn() + 1 < std::prev(behind)->end.value();
  });
  if (left == ranges->end()) return;
  leave_mark(Mark::aborts_forgotten);
  stats_.aborts_forgotten += static_cast<std::uint64_t>(ranges->end() - left);
  ranges->erase(left, ranges->end());
}

// All that is left of the machine's epochs up to `through`.
Result<bool> Settler::send_history(const MachineId& machine, EpochNumber through,
                                   const std::vector<EpochNumber>& without) {
  pb::HistoryRecord record;
  record.set_through(through.value());
  auto epochs = TIDEMARK_TRY(index().epochs(machine, 0, true, through));
  std::reverse(epochs.begin(), epochs.end());
  for (pb::EpochEntry& entry : epochs) {
    const EpochNumber number(entry.number());
    if (std::ranges::find(without, number) == without.end()) *record.add_epochs() = std::move(entry);
  }
  if (auto aborted = index().aborted(machine)) {
    forget_gone(*aborted);
    *record.mutable_aborted() = *std::move(aborted);
  }
  std::string payload = record.SerializeAsString();
  if (payload.size() > kHistoryBytesMax) {
    if (too_many_points_.insert(machine).second) {
      spdlog::warn("event=too_many_points path={} machine={} points={} remedy=\"{}\"", directory_, machine.to_string(),
                   record.epochs_size(), "set a shorter dense window: until then its old segments stay");
    }
    const std::lock_guard lock(mutex_);
    stats_.too_many_points = too_many_points_.size();
    return false;
  }
  if (too_many_points_.erase(machine) != 0) {
    const std::lock_guard lock(mutex_);
    stats_.too_many_points = too_many_points_.size();
  }
  send({.type = RecordType::history, .machine = machine, .payload = std::move(payload)});
  return true;
}

// --- folding ---

Result<bool> Settler::fold_some() {
  if (!fold_) {
    const WallMicros now = clock_.wall_us();
    std::vector<MachineId> wanted;
    {
      const std::lock_guard lock(mutex_);
      wanted.assign(fold_wanted_.begin(), fold_wanted_.end());
    }
    for (const MachineId& machine : wanted) {
      const auto last = folded_.find(machine);
      const WallMicros every =
          short_of_space() ? std::min(options_.fold_every_us, kShortEvery) : options_.fold_every_us;
      const bool soon = last != folded_.end() && now >= last->second && now - last->second < every;
      if (soon || in_flight(machine)) continue;
      const auto record = index().machine(machine);
      {
        const std::lock_guard lock(mutex_);
        fold_wanted_.erase(machine);
      }
      if (!record || record->removed()) {
        folded_.erase(machine);
        continue;
      }
      folded_[machine] = now;
      fold_.emplace(Fold{.machine = machine, .volumes = {}, .region = 0});
      for (const pb::DiskRecord& disk : record->disks()) fold_->volumes.push_back(VolumeId(disk.volume()));
      break;
    }
    if (!fold_) return false;
  }
  const ThreadTask task("td-fold");
  if (fold_->volumes.empty()) {
    fold_.reset();
    return true;
  }
  const VolumeId volume = fold_->volumes.back();
  const auto regions = TIDEMARK_TRY(index().regions(volume, fold_->region, kFoldRegions));
  const Machine machine = TIDEMARK_TRY(load_machine(index(), fold_->machine, EpochNumber(UINT64_MAX)));
  std::vector<RegionChange> changes;
  for (const std::uint32_t region : regions) {
    if (stopping() || machine.points.empty()) break;
    if (auto change = TIDEMARK_TRY(fold_region(machine, volume, region, nullptr)))
      changes.push_back(std::move(*change));
  }
  TIDEMARK_TRY(change(changes, {}));
  if (regions.size() < kFoldRegions) {
    fold_->volumes.pop_back();
    fold_->region = 0;
  } else {
    fold_->region = regions.back() + 1;
  }
  return true;
}

Result<std::optional<RegionChange>> Settler::fold_region(
    const Machine& machine, VolumeId volume, std::uint32_t region,
    const std::function<Status(Version&, std::vector<Version>&)>& move) {
  auto history = TIDEMARK_TRY(index().history(machine.id, volume, region, machine.points.back()));
  if (history.keys.empty()) return std::nullopt;
  const std::size_t before = history.versions.size();
  drop_hidden(history.versions, machine.points);
  const std::size_t dropped = before - history.versions.size();
  bool moved = false;
  if (move) {
    std::vector<Version> placed;
    placed.reserve(history.versions.size());
    for (Version& version : history.versions) {
      const SegmentId segment = version.segment;
      const std::size_t at = placed.size();
      TIDEMARK_TRY(move(version, placed));
      moved = moved || placed.size() != at + 1 || placed[at].segment != segment;
    }
    history.versions = std::move(placed);
  }
  RegionChange change{.machine = machine.id,
                      .volume = volume,
                      .region = region,
                      .remove = std::move(history.keys),
                      .put = encode_versions(history.versions, machine.points)};
  if (dropped == 0 && !moved && change.put.size() == change.remove.size()) return std::nullopt;
  const std::lock_guard lock(mutex_);
  ++stats_.regions_folded;
  stats_.versions_dropped += dropped;
  return change;
}

// Applied in pieces that the indexer does not feel.
Status Settler::change(std::vector<RegionChange>& changes, std::vector<SegmentId> added) {
  constexpr std::size_t kAtOnce = 128;
  for (std::size_t at = 0; at < changes.size() || !added.empty(); at += kAtOnce) {
    const std::size_t count = std::min(kAtOnce, changes.size() - std::min(at, changes.size()));
    const std::span piece = std::span(changes).subspan(std::min(at, changes.size()), count);
    const bool last = at + count >= changes.size();
    TIDEMARK_TRY(indexer_.call([&](Index& index) { return index.change(piece, added, last); }));
    if (last) break;
  }
  changes.clear();
  return {};
}

// --- choosing what to settle ---

bool Settler::was_tried(SegmentId segment) const {
  const auto found = tried_.find(segment);
  if (found == tried_.end()) return false;
  const WallMicros passed = clock_.wall_us() - found->second.at_us;
  const WallMicros pause = options_.settle_after_us / 6;
  return found->second.indexed == index().mark().lsn ||
         (passed >= 0 && passed < (short_of_space() ? std::min(pause, kShortEvery) : pause));
}

void Settler::tried(SegmentId segment) { tried_[segment] = {.indexed = index().mark().lsn, .at_us = clock_.wall_us()}; }

Status Settler::settle_each(const std::vector<SegmentId>& victims) {
  const auto passing = [](const Error& error) { return error.code == Code::cancelled || error.code == Code::no_space; };
  Status settled = settle(victims);
  if (settled || passing(settled.error())) return settled;
  for (const SegmentId segment : victims) {
    settled = settle({segment});
    if (settled) continue;
    if (passing(settled.error())) return settled;
    tried(segment);
    spdlog::error("event=segment_not_settled path={} segment={:#x} error=\"{}\"", directory_, segment.value(),
                  settled.error().message());
  }
  return {};
}

Result<bool> Settler::compact_some() {
  if (waits_for_space()) return false;
  const auto segments = index().segments();
  std::erase_if(extents_, [&](const auto& known) { return !index().knows_segment(known.first); });
  std::vector<std::pair<double, SegmentId>> worst;
  for (const auto& [segment, references] : segments) {
    if (!is_cold(segment) || references == 0 || was_tried(segment)) continue;
    auto extents = extents_.find(segment);
    if (extents == extents_.end()) {
      const std::string path = cold_path(directory_ + "/cold", segment);
      const auto file = files_.open(path, OpenMode::read, false);
      const auto table = file ? read_cold_table(**file, segment, partition_, salt_)
                              : Result<std::vector<ColdExtent>>(std::unexpected(file.error()));
      if (!table) {
        tried(segment);  // what it holds may be read, but is not built on
        spdlog::error("event=cold_segment_damaged path={} error=\"{}\"", path, table.error().message());
        continue;
      }
      extents = extents_.emplace(segment, table->size()).first;
    }
    const double live =
        static_cast<double>(references) / static_cast<double>(std::max<std::uint64_t>(1, extents->second));
    if (live < 1 - options_.garbage_max) worst.emplace_back(live, segment);
  }
  if (worst.empty()) return false;
  std::ranges::sort(worst);
  std::vector<SegmentId> victims;
  for (const auto& [live, segment] : worst) {
    if (victims.size() < victims_now(options_.cold_segment_size)) victims.push_back(segment);
  }
  TIDEMARK_TRY(settle_each(victims));
  // What is left in them could not be read.
  for (const SegmentId segment : victims) {
    if (TIDEMARK_TRY(index().live_references(segment)) != 0) tried(segment);
  }
  return true;
}

void Settler::hold_rate(std::uint64_t bytes) {
  if (!options_.background || options_.bytes_per_second == 0) return;
  const std::chrono::microseconds pause(bytes * 1'000'000 / options_.bytes_per_second);
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, pause, [&] { return stopping(); });
}

Settler::Stats Settler::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace tidemark::storage
