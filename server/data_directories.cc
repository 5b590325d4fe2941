#include "server/data_directories.h"

#include <fcntl.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "base/check.h"
#include "server/logging.h"

namespace tidemark::server {
namespace {

constexpr auto kLookEvery = std::chrono::seconds(5);
constexpr auto kLookAgain = std::chrono::seconds(1);
constexpr int kFailuresBelieved = 2;

// A file system that was mounted read-only, or turned so after an error, refuses this.
Status can_be_written(const std::string& lock_path) {
  const int fd = ::open(lock_path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0 && errno == EROFS)
    return fail(Code::io, lock_path, "the file system is read-only",
                "the kernel's log says why; mount it to be written again");
  if (fd < 0) return fail_errno(errno, lock_path, "open");
  ::close(fd);
  return {};
}

}  // namespace

DataDirectories::DataDirectories(storage::FileSystem& files, const Directory& main, const Superblock& superblock)
    : files_(files), server_id_(superblock.server_id) {
  auto first = std::make_unique<Entry>();
  first->view.path = main.path();
  for (std::uint32_t i = 0; i < superblock.partitions; ++i)
    if (home_of(main, superblock, PartitionId(i)) == main.path()) first->view.partitions.emplace_back(i);
  if (!first->view.partitions.empty()) entries_.push_back(std::move(first));
  for (const DataDirectory& further : superblock.directories) {
    auto entry = std::make_unique<Entry>();
    entry->view.path = further.path;
    entry->view.id = further.id;
    entry->view.partitions = further.partitions;
    entries_.push_back(std::move(entry));
  }
  for (const auto& entry : entries_) {
    View& view = entry->view;
    view.state = look(view, view.space);
    if (view.state && !view.id.empty()) {
      auto lock = files_.lock(Directory(view.path).lock());
      if (lock)
        entry->lock = std::move(*lock);
      else
        view.state = std::unexpected(lock.error());
    }
    if (!view.state) spdlog::error("data directory failed{}{}", kv("directory", view.path), kv(view.state.error()));
  }
}

DataDirectories::~DataDirectories() { stop(); }

Status DataDirectories::look(const View& view, storage::SpaceInfo& space) const {
  if (view.id.empty()) {
    const Superblock superblock = TIDEMARK_TRY(read_superblock(Directory(view.path)));
    if (superblock.server_id != server_id_)
      return fail(Code::invalid_argument, view.path, "it belongs to server " + superblock.server_id + " now",
                  "mount this server's own file system there");
  } else {
    const DirectoryMarker marker = TIDEMARK_TRY(read_marker(files_, view.path));
    if (marker.server_id != server_id_)
      return fail(Code::invalid_argument, view.path,
                  "it belongs to server " + marker.server_id + ", and this is server " + server_id_,
                  "mount this server's own file system there");
    if (marker.directory_id != view.id)
      return fail(Code::invalid_argument, view.path,
                  "it is data directory " + marker.directory_id + ", and " + view.id + " should be there",
                  "mount each file system at its own place");
  }
  const std::string lock = Directory(view.path).lock();
  if (TIDEMARK_TRY(files_.exists(lock))) TIDEMARK_TRY(can_be_written(lock));
  space = TIDEMARK_TRY(files_.space(view.path));
  return {};
}

void DataDirectories::watch(Changed changed) {
  changed_ = std::move(changed);
  for (const auto& entry : entries_) entry->thread = std::thread([this, raw = entry.get()] { run(*raw); });
}

void DataDirectories::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (const auto& entry : entries_)
    if (entry->thread.joinable()) entry->thread.join();
}

void DataDirectories::run(Entry& entry) {
  ::pthread_setname_np(::pthread_self(), "tm-directory");
  int failures = 0;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      const auto pause = failures == 0 ? kLookEvery : kLookAgain;
      if (wake_.wait_for(lock, pause, [this] { return stopping_; })) return;
    }
    look_again(entry, failures);
  }
}

void DataDirectories::look_again(Entry& entry, int& failures) {
  storage::SpaceInfo space;
  Status state = look(entry.view, space);
  const bool was_well = [&] {
    const std::lock_guard lock(mutex_);
    return entry.view.state.has_value();
  }();
  if (state && !was_well && !entry.view.id.empty()) {
    entry.lock.reset();  // of what was there before
    auto lock = files_.lock(Directory(entry.view.path).lock());
    if (lock)
      entry.lock = std::move(*lock);
    else
      state = std::unexpected(lock.error());
  }
  if (!state && was_well && ++failures < kFailuresBelieved) return;
  failures = 0;
  {
    const std::lock_guard lock(mutex_);
    entry.view.state = state;
    if (state) entry.view.space = space;
  }
  if (!state) entry.lock.reset();  // nothing is to hold up an unmount
  if (state.has_value() == was_well) return;
  if (state) {
    spdlog::info("data directory is back{}", kv("directory", entry.view.path));
  } else {
    spdlog::error("data directory failed{}{}", kv("directory", entry.view.path), kv(state.error()));
  }
  changed_(entry.view.partitions, state);
}

std::vector<DataDirectories::View> DataDirectories::views() const {
  const std::lock_guard lock(mutex_);
  std::vector<View> all;
  for (const auto& entry : entries_) all.push_back(entry->view);
  return all;
}

std::size_t DataDirectories::number_of(PartitionId partition) const {
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const auto& there = entries_[i]->view.partitions;
    if (std::find(there.begin(), there.end(), partition) != there.end()) return i;
  }
  TIDEMARK_CHECK(false);
  return 0;
}

std::string DataDirectories::path_of(PartitionId partition) const { return entries_[number_of(partition)]->view.path; }

Status DataDirectories::state_of(PartitionId partition) const {
  const std::lock_guard lock(mutex_);
  return entries_[number_of(partition)]->view.state;
}

}  // namespace tidemark::server
