// The checker's thread, and what others ask it. What it reads stands in checker_verify.cc and checker_scrub.cc, what
// it makes of damage in checker_damage.cc.
#include "storage/checker.h"

#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "storage/checker_impl.h"
#include "storage/epoch_progress.h"
#include "storage/integrity_file.h"

namespace tidemark::storage {

namespace {

constexpr std::chrono::seconds kTick{1};
constexpr std::chrono::seconds kRetry{10};
constexpr std::chrono::seconds kSaveEvery{30};

}  // namespace

Checker::Checker(FileSystem& files, std::string directory, PartitionId partition, std::uint32_t salt,
                 std::shared_ptr<ReadContext> context, Indexer& indexer, ColdManifest& manifest, const Clock& clock,
                 CheckerOptions options)
    : files_(files),
      directory_(std::move(directory)),
      partition_(partition),
      salt_(salt),
      context_(std::move(context)),
      indexer_(indexer),
      manifest_(manifest),
      clock_(clock),
      options_(options),
      scratch_(std::make_unique<Scratch>(context_->keys)) {
  restore();
  saved_at_ = clock_.monotonic();
  if (options_.background) thread_ = std::thread([this] { run(); });
}

Checker::~Checker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Checker::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  save(true);
}

void Checker::run() {
  pthread_setname_np(pthread_self(), "tm-check");
  // Behind everything else that runs here; of the disk it gets the least share there is, but not nothing.
  const auto thread = static_cast<id_t>(syscall(SYS_gettid));
  setpriority(PRIO_PROCESS, thread, 15);
  constexpr int kWhoProcess = 1, kClassBestEffort = 2, kLowest = 7, kClassShift = 13;
  syscall(SYS_ioprio_set, kWhoProcess, 0, kClassBestEffort << kClassShift | kLowest);
  while (!stopping()) {
    if (work()) continue;
    std::unique_lock lock(mutex_);
    std::chrono::steady_clock::duration pause = kTick;
    if (const auto now = std::chrono::steady_clock::now(); state_.scrub().running() && now >= retry_at_) {
      pause = std::clamp<std::chrono::steady_clock::duration>(scrub_at_ - now, std::chrono::milliseconds(1), kTick);
    }
    wake_.wait_for(lock, pause, [&] { return stopping() || scrub_asked_.has_value(); });
  }
}

bool Checker::step() { return !options_.background && !stopping() && work(); }

// New data first: what was stored now is looked at before what was looked at already.
bool Checker::work() {
  if (options_.background && std::chrono::steady_clock::now() < retry_at_) return false;
  bool did = false;
  std::optional<Error> failed;  // one piece that fails does not keep the others
  for (const auto piece : {&Checker::verify_log, &Checker::verify_cold, &Checker::scrub_some}) {
    if (stopping()) return false;
    const Result<bool> result = (this->*piece)();
    if (!result && result.error().code == Code::cancelled) return false;
    if (!result && !failed) failed = result.error();
    did = did || (result && *result);
  }
  if (const auto located = locate_damage(); !located && !failed) failed = located.error();
  save(false);
  std::optional<Error> before;
  {
    const std::lock_guard lock(mutex_);
    before = std::exchange(stats_.error, failed);
    stats_.checked_lsn = mark_of(state_).lsn;
  }
  if (failed) {
    if (before != failed) {
      spdlog::warn("event=checking_failed path={} error=\"{}\" retry_seconds={}", directory_, failed->message(),
                   kRetry.count());
    }
    retry_at_ = std::chrono::steady_clock::now() + kRetry;
    return false;
  }
  if (before) spdlog::info("event=checking_goes_on path={}", directory_);
  return did;
}

void Checker::hold_rate(std::uint64_t bytes, std::uint64_t rate) {
  if (!options_.background || rate == 0 || bytes == 0) return;
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, std::chrono::microseconds(bytes * 1'000'000 / rate), [&] { return stopping(); });
}

// --- what is kept ---

void Checker::restore() {
  auto read = read_integrity(files_, directory_);
  if (!read) {
    spdlog::warn("event=integrity_lost path={} error=\"{}\" note=\"everything is checked once more\"", directory_,
                 read.error().message());
    return;
  }
  pb::IntegrityRecord record = std::move(*read);
  if (record.checked().lsn() > index().mark().lsn.value()) {
    // The log is older than what it tells of: nobody has read what will be written from here on.
    spdlog::warn("event=integrity_too_new path={} lsn={} index_lsn={} note=\"everything is checked once more\"",
                 directory_, record.checked().lsn(), index().mark().lsn.value());
    return;
  }
  for (const auto& known : record.extents()) {
    const auto machine = machine_from_bytes(known.machine());
    if (!machine) continue;
    context_->damage.restore({.machine = *machine,
                              .volume = VolumeId(known.volume()),
                              .disk = DiskId(known.disk()),
                              .epoch = EpochNumber(known.epoch()),
                              .first_granule = known.first_granule(),
                              .granules = known.granules(),
                              .segment = SegmentId(known.segment()),
                              .offset = known.offset(),
                              .stored_size = known.stored_size(),
                              .what = known.what(),
                              .found_us = known.found_us()});
  }
  for (const auto& known : record.segments()) {
    segments_.push_back({.segment = SegmentId(known.segment()),
                         .first_byte = known.first_byte(),
                         .end_byte = known.end_byte(),
                         .what = known.what(),
                         .found_us = known.found_us()});
  }
  for (const std::string& machine : record.unlisted()) {
    if (const auto id = machine_from_bytes(machine)) context_->damage.restore_unlisted(*id);
  }
  record.clear_extents();
  record.clear_segments();
  record.clear_unlisted();
  state_ = std::move(record);
  stats_.checked_lsn = mark_of(state_).lsn;
}

void Checker::save(bool now) {
  const bool damage = context_->damage.version() != saved_version_;
  if (!dirty_ && !damage) return;
  if (!now && !save_soon_ && !damage && clock_.monotonic() - saved_at_ < kSaveEvery) return;
  saved_at_ = clock_.monotonic();
  pb::IntegrityRecord record;
  const std::uint64_t version = context_->damage.version();
  {
    const std::lock_guard lock(mutex_);
    record = state_;
    for (const DamagedSegment& known : segments_) {
      auto& segment = *record.add_segments();
      segment.set_segment(known.segment.value());
      segment.set_first_byte(known.first_byte);
      segment.set_end_byte(known.end_byte);
      segment.set_what(known.what);
      segment.set_found_us(known.found_us);
    }
  }
  for (const DamagedExtent& known : context_->damage.all()) {
    auto& extent = *record.add_extents();
    extent.set_machine(machine_to_bytes(known.machine));
    extent.set_volume(known.volume.value());
    extent.set_disk(known.disk.value());
    extent.set_epoch(known.epoch.value());
    extent.set_first_granule(known.first_granule);
    extent.set_granules(known.granules);
    extent.set_segment(known.segment.value());
    extent.set_offset(known.offset);
    extent.set_stored_size(known.stored_size);
    extent.set_what(known.what);
    extent.set_found_us(known.found_us);
  }
  for (const MachineId& machine : context_->damage.unlisted()) record.add_unlisted(machine_to_bytes(machine));
  const auto written = write_integrity(files_, directory_, record);
  if (!written) {
    if (!save_failed_)
      spdlog::warn("event=integrity_not_saved path={} error=\"{}\"", directory_, written.error().message());
    save_failed_ = true;
    return;  // dirty still: tried again at the next turn
  }
  save_failed_ = false;
  save_soon_ = false;
  dirty_ = false;
  saved_version_ = version;
}

// --- any thread ---

void Checker::start_scrub() {
  {
    const std::lock_guard lock(mutex_);
    scrub_asked_ = true;
  }
  wake_.notify_one();
}

void Checker::stop_scrub() {
  {
    const std::lock_guard lock(mutex_);
    scrub_asked_ = false;
  }
  wake_.notify_one();
}

ScrubStatus Checker::scrub() const {
  const std::lock_guard lock(mutex_);
  const auto& scrub = state_.scrub();
  ScrubStatus status{.running = scrub_asked_.value_or(scrub.running()),
                     .started_us = scrub.started_us(),
                     .bytes = scrub.bytes(),
                     .blocks = scrub.blocks(),
                     .damaged = scrub.damaged(),
                     .volumes_done = volumes_done_,
                     .volumes = volumes_,
                     .segments = scrub.segments(),
                     .completed_us = scrub.completed_us(),
                     .completed_started_us = scrub.completed_started_us(),
                     .completed_bytes = scrub.completed_bytes(),
                     .completed_blocks = scrub.completed_blocks(),
                     .completed_damaged = scrub.completed_damaged(),
                     .next_us = 0};
  if (!status.running && options_.scrub_interval_us != 0 && scrub.wait_from_us() != 0) {
    status.next_us = scrub.wait_from_us() + options_.scrub_interval_us;
  }
  return status;
}

std::vector<DamageReport> Checker::damage() const {
  std::vector<DamageReport> reports;
  {
    const std::lock_guard lock(mutex_);
    reports = reports_;
  }
  // What was found since they were made.
  std::set<std::pair<SegmentId, std::uint32_t>> known;
  for (const DamageReport& report : reports) known.insert(report.extent.place());
  for (DamagedExtent& extent : context_->damage.all()) {
    if (!known.contains(extent.place())) reports.push_back({.extent = std::move(extent)});
  }
  std::ranges::sort(reports, [](const DamageReport& a, const DamageReport& b) {
    return std::tuple(a.extent.machine, a.extent.disk, a.extent.first_granule, a.extent.place()) <
           std::tuple(b.extent.machine, b.extent.disk, b.extent.first_granule, b.extent.place());
  });
  return reports;
}

std::vector<DamagedSegment> Checker::damaged_segments() const {
  const std::lock_guard lock(mutex_);
  return segments_;
}

std::map<MachineId, MachineDamage> Checker::machines() const {
  const std::lock_guard lock(mutex_);
  return machines_;
}

VerifiedPoints Checker::verified(const MachineId& machine) const {
  constexpr EpochNumber kEver(~std::uint64_t{0});
  VerifiedPoints points;
  std::uint64_t version = 0;
  std::vector<std::pair<SegmentId, std::uint32_t>> made;
  {
    // The mark first: what it went past was reported before.
    const std::lock_guard lock(mutex_);
    points.checked_ = mark_of(state_).lsn;
    points.all_in_doubt_ = state_.scrub_needed_lsn() != 0 || state_.cold_checked() < state_.cold_needed();
    version = reports_version_;
    for (const DamageReport& report : reports_) {
      made.push_back(report.extent.place());
      if (report.extent.machine != machine) continue;
      if (!report.located || report.open) {
        points.affected_.emplace_back(report.extent.epoch, kEver);
      } else if (report.first != EpochNumber()) {
        points.affected_.emplace_back(report.first, report.newest ? kEver : report.last);
      }
    }
  }
  points.unlisted_ = context_->damage.unlisted().contains(machine);
  points.all_in_doubt_ = points.all_in_doubt_ || points.unlisted_;
  if (context_->damage.version() == version) return points;
  std::ranges::sort(made);
  for (const DamagedExtent& extent : context_->damage.all()) {
    if (extent.machine == machine && !std::ranges::binary_search(made, extent.place())) {
      points.affected_.emplace_back(extent.epoch, kEver);
    }
  }
  return points;
}

bool VerifiedPoints::damaged(const pb::EpochEntry& epoch) const {
  const EpochNumber number(epoch.number());
  return std::ranges::any_of(affected_,
                             [&](const auto& range) { return range.first <= number && number <= range.second; });
}

Checker::Stats Checker::stats() const {
  const std::lock_guard lock(mutex_);
  Stats stats = stats_;
  stats.damage_found = context_->damage.found();
  stats.damaged_extents = context_->damage.size();
  stats.damaged_segments = segments_.size();
  return stats;
}

}  // namespace tidemark::storage
