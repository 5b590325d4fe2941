// The operating system's files behind a seam: production (storage/system_files.h), and a simulated disk that loses
// unsynced writes, tears them by sector, misdirects them and fails (storage/sim_disk.h).
//
// Two ways in: File, blocking, for recovery, formatting and background readers; IoQueue, asynchronous, for a shard's
// thread. Direct I/O throughout the log: offset, length and address are multiples of limits::kIoAlignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::storage {

// Thread-safe for concurrent calls on disjoint ranges. Closing is destruction.
class File {
 public:
  virtual ~File() = default;
  // Fewer bytes than asked for only at the end of the file.
  virtual Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> to) = 0;
  // Not durable until sync() returned.
  virtual Status write_at(std::uint64_t offset, std::span<const std::byte> from) = 0;
  // Everything written before is durable when it returns well. After a failure nothing written since the last good
  // sync may be believed, and a second sync proves nothing.
  virtual Status sync() = 0;
  virtual Result<std::uint64_t> size() = 0;
  virtual Status allocate(std::uint64_t size) = 0;  // makes the file at least this long, with space reserved
  virtual const std::string& path() const = 0;
};

enum class OpenMode : std::uint8_t {
  read,        // must exist
  read_write,  // must exist
  create,      // must not exist
};

struct SpaceInfo {
  std::uint64_t total = 0;
  std::uint64_t available = 0;
  std::uint64_t file_system = 0;  // the same for paths on the same one
};

// A held exclusive lock; released by destruction, and by the kernel when the process dies.
class FileLock {
 public:
  virtual ~FileLock() = default;
};

// Thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode, bool direct) = 0;
  // The new name is durable only after sync_directory of its directory. Replaces an existing file.
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status remove(const std::string& path) = 0;
  virtual Status make_directory(const std::string& path) = 0;                       // well when it exists already
  virtual Result<std::vector<std::string>> list(const std::string& directory) = 0;  // names, sorted
  virtual Status sync_directory(const std::string& path) = 0;
  virtual Result<bool> exists(const std::string& path) = 0;
  virtual Result<SpaceInfo> space(const std::string& path) = 0;
  // Fails with Code::busy when another process (or another lock of this one) has it.
  virtual Result<std::unique_ptr<FileLock>> lock(const std::string& path) = 0;
};

// Where a completion goes. `result` is the number of bytes, or a negative errno. Called on the queue's thread, from
// reap(), never from within the call that queued it. The object must outlive the operation.
class IoCompletion {
 public:
  virtual void on_io_done(int result) = 0;

 protected:
  ~IoCompletion() = default;
};

// One per shard, made on the thread that uses it; not thread-safe.
class IoQueue {
 public:
  virtual ~IoQueue() = default;
  // RWF_DSYNC: these bytes, and nothing else, are durable when it completes whole. A short write is a failure.
  virtual void write_durable(File& file, std::uint64_t offset, std::span<const std::byte> from, IoCompletion& done) = 0;
  virtual void read(File& file, std::uint64_t offset, std::span<std::byte> to, IoCompletion& done) = 0;
  // Hands everything queued to the kernel: once per turn of the loop.
  virtual void submit() = 0;
  // Calls the completions that are there; the number of them. Never blocks.
  virtual std::size_t reap() = 0;
  virtual std::size_t in_flight() const = 0;
  // An eventfd that turns readable when there is something to reap; -1 in simulation. The owner reads it, then reaps.
  virtual int event_fd() const = 0;
  // Submits, blocks until `least` operations completed (or none is in flight), and reaps. Not on a shard's thread but
  // at its end.
  virtual std::size_t wait(std::size_t least = 1) = 0;
};

// A whole file written so that after a crash either the old or the new content is there: temporary file, sync,
// rename, sync of the directory.
Status write_file_atomically(FileSystem& files, const std::string& path, std::span<const std::byte> content);
Result<std::vector<std::byte>> read_whole_file(FileSystem& files, const std::string& path, std::size_t size_max);

}  // namespace tidemark::storage
