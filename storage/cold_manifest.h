// Which cold segments there are: so that one that is missing is noticed when the index is made again from what lies
// there, and one that was never finished is not taken for data. The file `manifest` in `cold`, replaced whole and
// atomically: before the index refers to a new segment, and before the file of an old one goes. Thread-safe.
//
// Bytes: magic "TDML", version u32, count u64, numbers u64 each in order, CRC32C of all before; little-endian.
#pragma once

#include <mutex>
#include <set>
#include <span>
#include <string>

#include "base/ids.h"
#include "base/status.h"
#include "storage/file.h"

namespace tidemark::storage {

class ColdManifest {
 public:
  ColdManifest(FileSystem& files, std::string cold_directory) : files_(files), directory_(std::move(cold_directory)) {}

  Result<bool> load();  // false: there is no file. Code::corrupt, Code::unsupported
  std::set<SegmentId> segments() const;
  // Durable when they return well; else nothing changed.
  Status add(std::span<const SegmentId> segments);  // makes the file if there is none
  Status remove(std::span<const SegmentId> segments);

 private:
  Status write(std::set<SegmentId> segments);

  FileSystem& files_;
  const std::string directory_;
  mutable std::mutex mutex_;
  std::set<SegmentId> segments_;
};

}  // namespace tidemark::storage
