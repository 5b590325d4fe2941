// The keeper of a partition's segment files: formats, hands out, recycles and removes them, so that the shard's thread
// never opens, renames, formats or syncs a file.
//
// Names in the log's directory:
//   00000000000000a7.segment   a segment, by its id in hexadecimal: in the log, or on deck to be the next one
//   reserve-000003.segment     formatted and ready for an id; what it holds is zeroes or of another id, never taken for
//   data format-000004.tmp          being formatted, or merely allocated; removed when found
//
// One segment is always on deck: named by its id, the directory synced, the file open; take() only hands it over. A
// handed-out file was written from end to end before (a durable write into merely allocated space costs eight times
// as much). Formatting writes zeroes without DSYNC, then syncs, renames, syncs the directory.
//
// In production the work is done by a thread of the keeper's own; with background = false it is done by step(), and by
// take() when nothing is on deck, in the caller: that is for simulation, where a run must be repeatable.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "storage/file.h"

namespace tidemark::storage {

// An open segment file. The last handle closes it; closing removes nothing.
class Segment {
 public:
  Segment(SegmentId id, std::uint64_t size, std::unique_ptr<File> file)
      : id_(id), size_(size), file_(std::move(file)) {}
  SegmentId id() const { return id_; }
  std::uint64_t size() const { return size_; }  // bytes
  File& file() const { return *file_; }

 private:
  SegmentId id_;
  std::uint64_t size_;
  std::unique_ptr<File> file_;
};

std::string segment_path(const std::string& directory, SegmentId id);
std::optional<SegmentId> parse_segment_name(std::string_view name);  // of a file that is named by an id
bool is_reserve_name(std::string_view name);

struct SegmentKeeperOptions {
  std::string directory;                                     // exists
  std::uint64_t segment_size = limits::kSegmentSizeDefault;  // a multiple of limits::kIoAlignment
  std::uint32_t reserve = limits::kReserveSegments;          // ready ones to keep, the one on deck included; at least 1
  // No segment is formatted that would leave less on the file system; when none is ready, down to free_space_hard: the
  // log must take the records that pruning writes, when it takes nothing else any more.
  std::uint64_t free_space_min = 0;
  std::uint64_t free_space_hard = 0;
  SegmentId last_id;            // RecoveryResult::segment_max: ids go on after it
  std::vector<SegmentId> live;  // RecoveryResult::segments: every other segment file is taken as reserve
  bool background = true;
};

// take(), recycle(), discard(), retry() and stats() never block and may be called from any thread.
class SegmentKeeper {
 public:
  // Blocking: tidies the directory (half-formatted files, files no longer or never of the log) and starts. After
  // recovery, before the log.
  static Result<std::unique_ptr<SegmentKeeper>> open(FileSystem& files, SegmentKeeperOptions options);
  virtual ~SegmentKeeper() = default;  // stops the thread, within one write of 1 MiB

  // The next segment, or nullptr when none is ready now: the notice tells when to ask again.
  virtual std::shared_ptr<Segment> take() = 0;
  // A segment that nothing refers to and nobody reads any more. It is kept as reserve or, with enough of that, removed.
  virtual void recycle(SegmentId id) = 0;
  // A segment whose file failed: removed, not used again.
  virtual void discard(SegmentId id) = 0;
  // What is made from now on is only allocated, as long as commits are large: a large commit takes about as long there,
  // and zeroes in front of it would double what is written.
  virtual void expect_large_commits(bool large) = 0;
  // Tries again after an error (a full disk). Without an error it does nothing.
  virtual void retry() = 0;
  // Called whenever a segment becomes ready or an error comes up, on the keeper's thread (or inside step() and take()).
  // Set before the first take().
  virtual void set_notice(std::function<void()> notice) = 0;

  // Does one piece of work, in the caller, when background is false; false when there is nothing to do.
  virtual bool step() = 0;

  struct Stats {
    std::uint32_t ready = 0;      // on deck and in reserve
    std::uint64_t formatted = 0;  // since open
    std::uint64_t allocated = 0;  // and those that were not written
    std::uint64_t recycled = 0;
    std::uint64_t removed = 0;
    std::optional<Error> error;  // why no segment is being made now
  };
  virtual Stats stats() const = 0;
  virtual std::uint64_t segment_size() const = 0;
};

}  // namespace tidemark::storage
