#include "tests/replay/store.h"

#include <sys/stat.h>

#include <filesystem>

#include "base/check.h"
#include "storage/system_files.h"
#include "storage/uring_queue.h"

namespace tidemark::replay {

using storage::Partition;

namespace {

constexpr char kServer[] = "0123456789abcdef";
constexpr int kTurnsMax = 64;

std::uint64_t space_of(const std::filesystem::path& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512 : 0;
}

}  // namespace

Store::Store(std::string directory, storage::PartitionOptions options, ManualClock& clock)
    : directory_(std::move(directory)), options_(std::move(options)), clock_(clock) {
  options_.background = false;
  files_ = std::make_unique<CountingFiles>(storage::system_files());
}

Store::~Store() { leave(); }

Status Store::create() {
  TIDEMARK_TRY(files_->make_directory(directory_));
  return Partition::create(*files_, directory_ + "/p0", PartitionId(0), kServer);
}

Status Store::open() {
  TIDEMARK_CHECK(!partition_);
  stopped_.reset();
  queue_ = std::make_unique<CountingQueue>(TIDEMARK_TRY(storage::make_uring_queue(64)), *files_);
  auto opened = TIDEMARK_TRY(
      Partition::open(*files_, directory_ + "/p0", PartitionId(0), kServer, options_, *queue_, clock_, *this));
  partition_ = std::move(opened.partition);
  return {};
}

void Store::leave() {
  if (partition_) index_written_ += partition_->stats().index.written_bytes;
  partition_.reset();
  queue_.reset();
}

void Store::crash() { leave(); }

Status Store::close() {
  pump();
  const Status closed = partition_->close();
  leave();
  return closed;
}

void Store::lose_index() { std::filesystem::remove_all(directory_ + "/p0/index"); }

void Store::pump() {
  for (;;) {
    partition_->end_turn();
    queue_->submit();
    if (queue_->in_flight() == 0) return;
    queue_->wait();
    queue_->submit();
  }
}

Status Store::retry(const std::function<Status()>& what) {
  for (int turn = 0;; ++turn) {
    Status done = what();
    if (done || done.error().code != Code::busy || turn == kTurnsMax) return done;
    partition_->end_turn();
    queue_->submit();
    if (queue_->in_flight() != 0) queue_->wait();
  }
}

Status Store::background() {
  // Each turn may leave records to append, and segments to give back.
  for (int turn = 0; turn < kTurnsMax; ++turn) {
    const Lsn before = partition_->stats().last_lsn;
    partition_->on_idle();
    pump();
    if (turn > 0 && partition_->stats().last_lsn == before) break;
  }
  if (stopped_) return std::unexpected(*stopped_);
  const auto stats = partition_->stats();
  if (stats.settler.error) return std::unexpected(*stats.settler.error);
  if (stats.index_error) return std::unexpected(*stats.index_error);
  return {};
}

std::uint64_t Store::index_written() const {
  return index_written_ + (partition_ ? partition_->stats().index.written_bytes : 0);
}

Store::Stored Store::stored() const {
  Stored stored;
  std::error_code unknown;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_ + "/p0", unknown)) {
    if (!entry.is_regular_file(unknown)) continue;
    const std::string path = entry.path().string(), name = entry.path().filename().string();
    const std::uint64_t bytes = space_of(entry.path());
    if (path.find("/log/") != std::string::npos) {
      (name.ends_with(".segment") && !name.starts_with("reserve") ? stored.log : stored.reserve) += bytes;
    } else if (path.find("/cold/") != std::string::npos) {
      stored.cold += bytes;
    } else if (path.find("/index/") != std::string::npos) {
      stored.index += bytes;
    } else {
      stored.other += bytes;
    }
  }
  return stored;
}

}  // namespace tidemark::replay
