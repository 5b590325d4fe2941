#include "server/offline.h"

#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "server/config.h"
#include "server/directory.h"
#include "storage/rebuild_index.h"
#include "storage/system_files.h"

namespace tidemark::server {
namespace {

using storage::OpenProgress;

std::atomic<bool> interrupted{false};

Directory canonical(const std::string& data) {
  std::error_code error;
  const auto path = std::filesystem::canonical(data, error);
  return Directory(error ? data : path.string());
}

Result<std::unique_ptr<storage::FileLock>> lock_data(const Directory& directory) {
  auto lock = storage::system_files().lock(directory.lock());
  if (!lock && lock.error().code == Code::busy)
    return fail(Code::busy, directory.path(), "a tidemarkd serves this data directory", "stop it first");
  return lock;
}

// Says every half a second, on a terminal, or every ten, how far a rebuild is; hands Ctrl-C on to it.
class Teller {
 public:
  Teller(PartitionId partition, OpenProgress& progress)
      : partition_(partition), progress_(progress), thread_([this] { run(); }) {}
  ~Teller() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    thread_.join();
    if (written_ && terminal_) fmt::print(stderr, "\n");
  }
  Teller(const Teller&) = delete;
  Teller& operator=(const Teller&) = delete;

 private:
  void run() {
    constexpr auto kStep = std::chrono::milliseconds(500);
    for (int step = 1;; ++step) {
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, kStep, [this] { return done_; })) return;
      if (interrupted) progress_.cancelled = true;
      if (!progress_.rebuilding || (!terminal_ && step % 20 != 0)) continue;
      written_ = true;
      fmt::print(stderr, "{}partition {}: {} % read{}", terminal_ ? "\r" : "", partition_.value(), progress_.percent(),
                 terminal_ ? "" : "\n");
    }
  }

  const PartitionId partition_;
  OpenProgress& progress_;
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  bool written_ = false;  // of thread_
  std::thread thread_;
};

void print(PartitionId id, const storage::RebuildReport& report, bool check) {
  fmt::print("partition {}: {} machines, {} epochs, from {} commits ({} MiB) of the log and {} cold segments{}\n",
             id.value(), report.machines, report.epochs, report.commits, report.log_bytes >> 20, report.cold_segments,
             check ? "" : "; the new index is in place");
  if (report.damaged_blocks != 0)
    fmt::print("partition {}: {} damaged blocks were met on the way; `tidemark verify` tells which points need them\n",
               id.value(), report.damaged_blocks);
  if (!check) return;
  if (report.differences.empty()) fmt::print("partition {}: the index shows the same\n", id.value());
  for (const std::string& difference : report.differences)
    fmt::print("partition {}: differs: {}\n", id.value(), difference);
}

Result<std::vector<PartitionId>> chosen(const Superblock& superblock, const RebuildRequest& request) {
  std::vector<PartitionId> all;
  for (std::uint32_t i = 0; i < superblock.partitions && request.partitions.empty(); ++i) all.emplace_back(i);
  for (const std::uint32_t number : request.partitions) {
    if (number >= superblock.partitions)
      return fail(Code::invalid_argument, "--partition", fmt::format("is {}", number),
                  fmt::format("there are 0 to {}", superblock.partitions - 1));
    all.emplace_back(number);
  }
  return all;
}

}  // namespace

Result<bool> rebuild_indexes(const std::string& data, const RebuildRequest& request) {
  const Directory directory = canonical(data);
  const Superblock superblock = TIDEMARK_TRY(read_superblock(directory));
  const auto lock = TIDEMARK_TRY(lock_data(directory));
  const auto partitions = TIDEMARK_TRY(chosen(superblock, request));
  std::error_code unknown;
  const std::string config_path = !request.config.empty()                                ? request.config
                                  : std::filesystem::exists(directory.config(), unknown) ? directory.config()
                                                                                         : std::string();
  storage::IndexOptions options;
  if (!config_path.empty()) options.cache_bytes = TIDEMARK_TRY(load_config(config_path)).storage.index_cache;
  spdlog::set_level(spdlog::level::err);  // what is told here is told by print()
  for (const int signal : {SIGINT, SIGTERM}) ::signal(signal, [](int) { interrupted = true; });
  bool well = true;
  for (const PartitionId id : partitions) {
    OpenProgress progress;
    const auto report = [&] {
      const Teller teller(id, progress);
      return storage::rebuild_index(
          storage::system_files(), partition_path(directory, superblock, id), id, superblock.server_id, options,
          request.check ? storage::RebuildMode::check : storage::RebuildMode::replace, progress);
    }();
    if (report) {
      print(id, *report, request.check);
      well = well && report->differences.empty();
    } else if (report.error().code == Code::cancelled) {
      return fail(Code::cancelled, fmt::format("partition {}", id.value()), "interrupted",
                  "its index is what it was; start again when it suits");
    } else {
      fmt::print(stderr, "tidemarkd: partition {}: {}\n", id.value(), report.error().message());
      well = false;
    }
    std::fflush(stdout);
  }
  return well;
}

Status add_data_directory(const std::string& data, const std::string& path, std::uint32_t partitions) {
  const Directory directory = canonical(data);
  const Superblock before = TIDEMARK_TRY(read_superblock(directory));
  const auto lock = TIDEMARK_TRY(lock_data(directory));
  const auto after = TIDEMARK_TRY(add_directory(storage::system_files(), directory, path, partitions, Clock::system()));
  const std::uint32_t more = after.partitions - before.partitions;
  if (more == 0) {
    fmt::print("{} is known, and is looked for here from now on\n", path);
  } else {
    fmt::print("added {} with {} partition{}, {} in all; new machines go to where there is most room\n", path, more,
               more == 1 ? "" : "s", after.partitions);
  }
  fmt::print("next: tidemarkd run --data {}\n", directory.path());
  return {};
}

}  // namespace tidemark::server
