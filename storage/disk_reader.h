// The Reader of a partition's segments: finds extents in the index, reads blocks in long pieces, believes nothing that
// does not check, and decodes.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "storage/damage_list.h"
#include "storage/file.h"
#include "storage/index.h"
#include "storage/reader.h"
#include "storage/reader_pins.h"
#include "storage/volume_keys.h"

namespace tidemark::storage {

// Open segment files of a partition's directory, the most recently used ones. Thread-safe.
class SegmentFiles {
 public:
  SegmentFiles(FileSystem& files, std::string directory) : files_(files), directory_(std::move(directory)) {}
  // Code::not_found: this segment is missing; unavailable: all of the partition is.
  Result<std::shared_ptr<File>> open(SegmentId segment);
  std::shared_ptr<File> find(SegmentId segment);  // null: it is not open now
  void forget(SegmentId segment);

 private:
  static constexpr std::size_t kOpenMax = 64;
  FileSystem& files_;
  std::string directory_;
  std::mutex mutex_;
  std::list<std::pair<SegmentId, std::shared_ptr<File>>> recent_;  // newest first
  std::unordered_map<SegmentId, decltype(recent_)::iterator> by_segment_;
};

class DiskView;

// What all readers of a partition share.
struct ReadContext {
  ReadContext(std::unique_ptr<Index> index_of_it, FileSystem& files, const std::string& directory)
      : index(std::move(index_of_it)), segments(files, directory) {}
  static std::uint64_t next_number() {
    static std::atomic<std::uint64_t> last{0};
    return ++last;
  }
  const std::uint64_t number = next_number();  // of this opening, in this process: for BlockCache
  std::unique_ptr<Index> index;
  std::shared_ptr<const VolumeKeys> keys;  // null: there are none
  SegmentFiles segments;
  ReaderPins pins;
  PointUses uses;
  DamageList damage;
  std::atomic<std::uint64_t> damaged_reads{0};
};

// A volume as of one commit.
struct ReadLayer {
  MachineId machine;
  VolumeId volume;
  EpochNumber epoch;
  Lsn as_of;
};

// What is read: one disk as of one commit. What no extent of a layer covers is what the next one has there; below the
// last one are zeroes. A clone reads through to what it was made of (at most kCloneDepthMax of them).
struct ReadTarget {
  std::string machine_name;
  DiskId disk;
  EpochNumber epoch;              // of the machine that was asked for; 0: a clone that was never written to
  std::uint64_t disk_size = 0;    // bytes
  std::vector<ReadLayer> layers;  // the uppermost first; at least one
};

// The header and the stored bytes are the block that `extent` names, of this machine and disk; else what is wrong.
std::optional<std::string> find_damage(const MachineId& machine, DiskId disk, const Extent& extent,
                                       const wire::BlockHeader& header, std::span<const std::byte> stored);

// Header and stored bytes as they were read, checked so, and decoded into `plain`, which has room for the whole block;
// else what is wrong.
std::optional<std::string> open_block(const MachineId& machine, VolumeId volume, DiskId disk, const Extent& extent,
                                      std::span<const std::byte> block, StoredDecoder& decoder,
                                      std::span<std::byte> plain);

// `context->uses` has the points of all layers already; the reader's end gives them back.
std::unique_ptr<Reader> make_reader(std::shared_ptr<ReadContext> context, ReadTarget target);
std::unique_ptr<Reader> make_reader(std::shared_ptr<const DiskView> view);

}  // namespace tidemark::storage
