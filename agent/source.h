// A disk to protect, as it is read: a block device or a regular file. The seam between the kernel and the engine.
//
// A source belongs to one thread, except read_at, which may be called on one other thread at a time, and of a disk or
// partition on several. Offsets and sizes are bytes. What a source gives is what the disk held, or an error: never
// made-up data.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/consistency.h"
#include "agent/os_paths.h"
#include "base/status.h"

namespace tidemark::agent {

// Watches a disk from its making on.
class Witness {
 public:
  virtual ~Witness() = default;
  // What held from the making until now. May be asked more than once. `frozen`: every mounted file system of this
  // machine's disks was frozen throughout.
  virtual DiskEvidence testify(bool frozen) = 0;
};

struct DataRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;  // begin == end == size: no data follows
};

class BlockSource {
 public:
  enum class Kind : std::uint8_t { file, disk, partition };

  virtual ~BlockSource() = default;
  virtual const std::string& path() const = 0;
  virtual const std::string& identity() const = 0;  // survives restarts; at most kIdentityLengthMax bytes
  virtual Kind kind() const = 0;
  virtual std::uint64_t size() const = 0;  // as it was when opened

  // Fills `into` from `offset`, with direct I/O where it can be had; beyond the end it fills zeroes. `into` begins at a
  // multiple of limits::kIoAlignment in memory and in `offset`, its size is one too. A read that fails is tried again
  // in granules, and each granule three times, before the error names the place.
  virtual Status read_at(std::uint64_t offset, std::span<std::byte> into) = 0;

  // The next stretch at or after `offset` that may hold data; what lies before it reads as zeroes.
  virtual Result<DataRange> next_data(std::uint64_t offset) = 0;

  // Is the disk still the one that was opened? not_found: it is gone. invalid_argument: another size, or another file
  // under the name: open it anew.
  virtual Status check() = 0;

  // Flushes what is on its way to the disk and begins to watch.
  virtual Result<std::unique_ptr<Witness>> watch() = 0;

  // Stretches that nobody can refer to, ascending and disjoint: in any state of the disk that is later than this call
  // they may read as zeroes, unless they are written to after it began (agent/free_space.h). None: nothing is known.
  virtual std::vector<DataRange> unused() { return {}; }

  // Mount points of the file systems on it that can be written to, in order of mounting.
  virtual Result<std::vector<std::string>> writable_mounts() = 0;
};

inline constexpr std::size_t kIdentityLengthMax = 512;

std::string_view to_string(BlockSource::Kind kind);

// Opens a path for reading. Refuses what is neither a block device nor a regular file, an empty one, and one above
// limits::kDiskSizeMax. The path may be a link (/dev/disk/by-id/...).
Result<std::unique_ptr<BlockSource>> open_source(const std::string& path, const OsPaths& os = {});

// errno as an error; a disk that is not there comes with what to do about it.
std::unexpected<Error> source_error(int error_number, const std::string& path, const char* doing);

// What to call each disk of a list of paths: the last part of the path, or the whole path where that is not unique.
std::vector<std::string> disk_names(const std::vector<std::string>& paths);

}  // namespace tidemark::agent
