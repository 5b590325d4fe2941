// The directories, one a disk, in which a server's partitions stand: whether each is there, is this server's, can be
// written, and how much space it has. One that fails takes its own partitions with it and no others.
//
// Looked at when the server starts, and every few seconds after that, by a thread for each: a disk that hangs holds up
// its own only. One that was well is believed to have failed when two looks in a row say so. Its files are closed then,
// so that it can be unmounted; when it comes back it is locked again first.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "server/directory.h"
#include "storage/file.h"

namespace tidemark::server {

class DataDirectories {
 public:
  // Takes the locks of those that are well. The main directory is locked by the caller. Blocking.
  DataDirectories(storage::FileSystem& files, const Directory& main, const Superblock& superblock);
  ~DataDirectories();
  DataDirectories(const DataDirectories&) = delete;
  DataDirectories& operator=(const DataDirectories&) = delete;

  // Called by the directory's thread whenever it fails or is well again.
  using Changed = std::function<void(const std::vector<PartitionId>& partitions, const Status& state)>;
  void watch(Changed changed);
  void stop();  // no call of `changed` runs or comes afterwards

  // --- any thread, does not block ---
  struct View {
    std::string path;
    std::string id;  // empty: the main directory
    std::vector<PartitionId> partitions;
    Status state;
    storage::SpaceInfo space;  // as of the last good look
  };
  std::vector<View> views() const;
  std::string path_of(PartitionId partition) const;
  Status state_of(PartitionId partition) const;
  std::size_t number_of(PartitionId partition) const;  // in views()

 private:
  struct Entry {
    View view;
    std::unique_ptr<storage::FileLock> lock;  // of the thread that looks
    std::thread thread;
  };

  Status look(const View& view, storage::SpaceInfo& space) const;
  void look_again(Entry& entry, int& failures);
  void run(Entry& entry);

  storage::FileSystem& files_;
  const std::string server_id_;
  Changed changed_;
  mutable std::mutex mutex_;  // guards the views' changing parts and stopping_
  std::condition_variable wake_;
  bool stopping_ = false;
  std::vector<std::unique_ptr<Entry>> entries_;
};

}  // namespace tidemark::server
