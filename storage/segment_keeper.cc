#include "storage/segment_keeper.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/marks.h"

namespace tidemark::storage {
namespace {

constexpr std::string_view kSegmentSuffix = ".segment";
constexpr std::string_view kReservePrefix = "reserve-";
constexpr std::string_view kFormatPrefix = "format-";
constexpr std::size_t kFormatChunk = 1_MiB;

std::string reserve_name(std::uint64_t serial) {
  return fmt::format("{}{:06}{}", kReservePrefix, serial, kSegmentSuffix);
}

std::string format_name(std::uint64_t serial) { return fmt::format("{}{:06}.tmp", kFormatPrefix, serial); }

class Keeper final : public SegmentKeeper {
 public:
  Keeper(FileSystem& files, SegmentKeeperOptions options) : files_(files), options_(std::move(options)) {
    last_id_ = options_.last_id;
  }
  ~Keeper() override {
    stop_ = true;
    {
      const std::lock_guard lock(mutex_);
    }  // a worker between its check and its wait must not miss it
    work_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  Status start() {
    TIDEMARK_TRY(tidy());
    if (options_.background) thread_ = std::thread([this] { run(); });
    return {};
  }

  std::shared_ptr<Segment> take() override {
    if (!options_.background)
      while (!on_deck() && work_once()) {
      }
    std::shared_ptr<Segment> segment;
    {
      const std::lock_guard lock(mutex_);
      segment = std::exchange(on_deck_, nullptr);
    }
    work_.notify_one();
    return segment;
  }

  void recycle(SegmentId id) override { enqueue({id, true}); }
  void discard(SegmentId id) override { enqueue({id, false}); }

  void expect_large_commits(bool large) override {
    {
      const std::lock_guard lock(mutex_);
      large_ = large;
    }
    work_.notify_one();
  }

  void retry() override {
    {
      const std::lock_guard lock(mutex_);
      error_.reset();
      dry_failed_ = false;
    }
    work_.notify_one();
  }

  void set_notice(std::function<void()> notice) override {
    const std::lock_guard lock(mutex_);
    notice_ = std::move(notice);
  }

  bool step() override {
    TIDEMARK_CHECK(!options_.background);
    return work_once();
  }

  // On the keeper's thread, or without one in the caller.
  bool work_once() { return work_once(false); }

  Stats stats() const override {
    const std::lock_guard lock(mutex_);
    Stats stats = stats_;
    stats.ready = static_cast<std::uint32_t>(reserve_.size()) + (on_deck_ ? 1 : 0);
    stats.error = error_;
    return stats;
  }
  std::uint64_t segment_size() const override { return options_.segment_size; }

 private:
  enum class Work : std::uint8_t { none, clear, name, format, drop_blank };
  struct Dead {
    SegmentId id;
    bool keep;  // as reserve, if it fits and is wanted
  };

  std::string path_of(const std::string& name) const { return options_.directory + "/" + name; }

  bool on_deck() const {
    const std::lock_guard lock(mutex_);
    return on_deck_ != nullptr;
  }

  void enqueue(Dead dead) {
    {
      const std::lock_guard lock(mutex_);
      dead_.push_back(dead);
    }
    work_.notify_one();
  }

  static bool is_blank(const std::string& name) { return name.starts_with(kFormatPrefix); }

  bool dry() const { return !on_deck_ && reserve_.empty(); }  // with the mutex

  Work next_work() const {  // with the mutex
    if (!dead_.empty()) return Work::clear;
    // Small commits are on their way again: what is merely allocated makes room for what is written. Not where nothing
    // may be made in its place.
    if (!large_ && !error_ && std::ranges::any_of(reserve_, is_blank)) return Work::drop_blank;
    // Why there is no other one need not keep us from making the only one.
    if (error_ && !(dry() && error_->code == Code::no_space && !dry_failed_)) return Work::none;
    if (!on_deck_ && !reserve_.empty()) return Work::name;
    if (reserve_.size() + (on_deck_ ? 1 : 0) < std::max(1U, options_.reserve)) return Work::format;
    return Work::none;
  }

  // One piece of work; `quick`: none that takes long.
  bool work_once(bool quick) {
    std::unique_lock lock(mutex_);
    const Work work = next_work();
    if (work == Work::none || (quick && work == Work::format)) return false;
    const auto [what, done] = perform(work, lock);
    if (!done) {
      leave_mark(Mark::no_segment);
      // Said once, not at every retry: stats go on to tell.
      if (said_ != done.error().code)
        spdlog::warn("storage: cannot {} directory={} error=\"{}\"", what, options_.directory, done.error().message());
      said_ = done.error().code;
      error_ = done.error();
    } else if (work == Work::format && !error_ && std::exchange(said_, Code::ok) != Code::ok) {
      spdlog::info("storage: segments are formatted again directory={}", options_.directory);
    }
    if (work == Work::clear && done) return true;
    const auto notice = notice_;
    lock.unlock();
    if (notice) notice();
    return true;
  }

  // Enters and leaves with the lock held; the files are touched without it.
  std::pair<std::string_view, Status> perform(Work work, std::unique_lock<std::mutex>& lock) {
    switch (work) {
      case Work::clear: {
        const Dead dead = dead_.front();
        dead_.pop_front();
        const std::size_t ready = reserve_.size();
        lock.unlock();
        auto name = clear(dead, dead.keep && ready < reserve_max());
        lock.lock();
        if (!name) return {"put a dead segment away", std::unexpected(std::move(name).error())};
        ++(name->empty() ? stats_.removed : stats_.recycled);
        if (!name->empty()) {
          reserve_.push_back(*name);
          error_.reset();  // there is one to go on with, whatever kept us from making another
        }
        return {};
      }
      case Work::name: {
        const std::string name = reserve_.front();
        reserve_.pop_front();
        const SegmentId id = last_id_ = last_id_.next();
        lock.unlock();
        auto segment = put_on_deck(name, id);
        lock.lock();
        if (!segment) {
          // Whatever name it has now, it may be either after a crash: out of the way with it.
          dead_.push_back({id, false});
          return {"put a segment on deck", std::unexpected(std::move(segment).error())};
        }
        on_deck_ = std::move(*segment);
        return {};
      }
      case Work::format: {
        const std::uint64_t serial = ++serial_;
        const bool last_resort = dry(), blank = large_;
        lock.unlock();
        auto formatted = format(serial, blank, last_resort ? options_.free_space_hard : options_.free_space_min);
        lock.lock();
        if (!formatted) {
          dry_failed_ = last_resort;
          return {"format a segment", formatted};
        }
        if (stop_) return {};
        reserve_.push_back(blank ? format_name(serial) : reserve_name(serial));
        ++(blank ? stats_.allocated : stats_.formatted);
        return {};
      }
      case Work::drop_blank: {
        const auto blank = std::ranges::find_if(reserve_, is_blank);
        const std::string name = std::move(*blank);
        reserve_.erase(blank);
        lock.unlock();
        const Status removed = files_.remove(path_of(name));  // else when the directory is opened again
        lock.lock();
        return {"remove a segment that is merely allocated", removed};
      }
      case Work::none: break;
    }
    return {};
  }

  // The reserve's name that it has now; empty: it is removed.
  Result<std::string> clear(const Dead& dead, bool wanted) {
    const std::string path = segment_path(options_.directory, dead.id);
    if (!TIDEMARK_TRY(files_.exists(path))) return std::string();
    if (wanted && TIDEMARK_TRY(size_of(path)) == options_.segment_size) {
      std::string name = reserve_name(++serial_);
      TIDEMARK_TRY(files_.rename(path, path_of(name)));
      TIDEMARK_TRY(files_.sync_directory(options_.directory));
      return name;
    }
    TIDEMARK_TRY(files_.remove(path));
    TIDEMARK_TRY(files_.sync_directory(options_.directory));
    return std::string();
  }

  Result<std::uint64_t> size_of(const std::string& path) {
    const auto file = TIDEMARK_TRY(files_.open(path, OpenMode::read, true));
    return file->size();
  }

  Result<std::shared_ptr<Segment>> put_on_deck(const std::string& name, SegmentId id) {
    const std::string path = segment_path(options_.directory, id);
    TIDEMARK_TRY(files_.rename(path_of(name), path));
    // Before it is handed out: a log whose file could come back from a crash under its old name would be lost.
    TIDEMARK_TRY(files_.sync_directory(options_.directory));
    return std::make_shared<Segment>(id, options_.segment_size,
                                     TIDEMARK_TRY(files_.open(path, OpenMode::read_write, true)));
  }

  // Of recycled segments more are kept than are made, while there is space.
  std::size_t reserve_max() const {
    const std::size_t reserve = std::max(1U, options_.reserve);
    const auto space = files_.space(options_.directory);
    return space && space->available < options_.free_space_min ? 1 : 2 * reserve;
  }

  Status format(std::uint64_t serial, bool blank, std::uint64_t to_stay_free) {
    const SpaceInfo space = TIDEMARK_TRY(files_.space(options_.directory));
    if (space.available < to_stay_free + options_.segment_size)
      return fail(Code::no_space, options_.directory,
                  fmt::format("has {} MiB left, a new segment takes {} and {} are to stay free", space.available >> 20,
                              options_.segment_size >> 20, to_stay_free >> 20),
                  "free space on its file system, or enlarge it");
    const std::string path = path_of(format_name(serial));
    const Status written = blank ? allocate(path) : write_zeroes(path);
    if (!written || stop_) {
      // Best effort: what cannot be removed now is removed when the directory is opened again.
      if (const Status removed = files_.remove(path); !removed && removed.error().code != Code::not_found)
        spdlog::warn("storage: a half-formatted segment stays error=\"{}\"", removed.error().message());
      return written;
    }
    if (blank) return {};  // it keeps that name, and is nothing after a restart
    TIDEMARK_TRY(files_.rename(path, path_of(reserve_name(serial))));
    return files_.sync_directory(options_.directory);
  }

  Status allocate(const std::string& path) {
    const auto file = TIDEMARK_TRY(files_.open(path, OpenMode::create, true));
    TIDEMARK_TRY(file->allocate(options_.segment_size));
    return file->sync();
  }

  Status write_zeroes(const std::string& path) {
    const auto file = TIDEMARK_TRY(files_.open(path, OpenMode::create, true));
    TIDEMARK_TRY(file->allocate(options_.segment_size));
    AlignedBuffer zeroes(std::min<std::uint64_t>(kFormatChunk, options_.segment_size));
    std::memset(zeroes.data(), 0, zeroes.size());
    for (std::uint64_t at = 0; at < options_.segment_size && !stop_; at += zeroes.size()) {
      TIDEMARK_TRY(file->write_at(at, zeroes.span().first(std::min(zeroes.size(), options_.segment_size - at))));
      // A log that waits for the next segment does not wait for the formatting of the one after it.
      while (!stop_ && work_once(true)) {
      }
    }
    return file->sync();
  }

  // Before anything is handed out: every file is in the log, in reserve, or gone.
  Status tidy() {
    bool changed = false;
    std::vector<std::string> to_reserve;
    const std::vector<std::string> names = TIDEMARK_TRY(files_.list(options_.directory));
    for (const std::string& name : names) {
      const auto id = parse_segment_name(name);
      const bool reserve = is_reserve_name(name);
      if (id) last_id_ = std::max(last_id_, *id);
      if (reserve) {
        std::uint64_t serial = 0;
        std::from_chars(name.data() + kReservePrefix.size(), name.data() + name.size(), serial);
        serial_ = std::max(serial_, serial);
      }
      if (id && std::ranges::find(options_.live, *id) != options_.live.end()) continue;
      if (!id && !reserve && !name.starts_with(kFormatPrefix)) continue;  // not ours
      const bool fits = (id || reserve) && TIDEMARK_TRY(size_of(path_of(name))) == options_.segment_size;
      if (fits && reserve) {
        reserve_.push_back(name);
      } else if (fits) {
        to_reserve.push_back(name);
      } else {
        TIDEMARK_TRY(files_.remove(path_of(name)));
        changed = true;
      }
    }
    for (const std::string& name : to_reserve) {
      reserve_.push_back(reserve_name(++serial_));
      TIDEMARK_TRY(files_.rename(path_of(name), path_of(reserve_.back())));
      changed = true;
    }
    if (changed) TIDEMARK_TRY(files_.sync_directory(options_.directory));
    return {};
  }

  void run() {
    // At the shards' own priority: it needs little CPU, and a shard that waits for a segment waits for this thread.
    pthread_setname_np(pthread_self(), "td-segments");
    while (!stop_) {
      if (work_once()) continue;
      std::unique_lock lock(mutex_);
      work_.wait(lock, [this] { return stop_ || next_work() != Work::none; });
    }
  }

  FileSystem& files_;
  const SegmentKeeperOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
  std::function<void()> notice_;
  std::shared_ptr<Segment> on_deck_;
  std::deque<std::string> reserve_;  // names
  std::deque<Dead> dead_;            // bounded by the segments there are
  std::optional<Error> error_;
  bool dry_failed_ = false;  // it came when none was ready
  Code said_ = Code::ok;     // of the error that was logged last
  Stats stats_;
  SegmentId last_id_;
  bool large_ = false;
  std::uint64_t serial_ = 0;  // of the last reserve name; of the thread that works
};

}  // namespace

std::string segment_path(const std::string& directory, SegmentId id) {
  return fmt::format("{}/{:016x}{}", directory, id.value(), kSegmentSuffix);
}

std::optional<SegmentId> parse_segment_name(std::string_view name) {
  constexpr std::size_t kDigits = 16;
  if (name.size() != kDigits + kSegmentSuffix.size() || !name.ends_with(kSegmentSuffix)) return std::nullopt;
  name = name.substr(0, kDigits);
  if (name.find_first_not_of("0123456789abcdef") != std::string_view::npos) return std::nullopt;
  std::uint64_t id = 0;
  std::from_chars(name.data(), name.data() + name.size(), id, 16);
  return SegmentId(id);
}

bool is_reserve_name(std::string_view name) {
  return name.starts_with(kReservePrefix) && name.ends_with(kSegmentSuffix);
}

Result<std::unique_ptr<SegmentKeeper>> SegmentKeeper::open(FileSystem& files, SegmentKeeperOptions options) {
  if (options.segment_size == 0 || options.segment_size % limits::kIoAlignment != 0)
    return fail(Code::invalid_argument, "segment size", "is not a multiple of 4 KiB");
  auto keeper = std::make_unique<Keeper>(files, std::move(options));
  TIDEMARK_TRY(keeper->start());
  return keeper;
}

}  // namespace tidemark::storage
