// Which cold segments there are: so that one that is missing is noticed when the index is made again from what lies
// there, and one that was never finished is not taken for data. The file `manifest` in `cold`, replaced whole and
// atomically: before the index refers to a new segment, and before the file of an old one goes. Thread-safe.
//
// Bytes: magic "TDML", version u32, count u64, numbers u64 each in order, CRC32C of all before; little-endian.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
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
  std::optional<SegmentId> after(SegmentId segment) const;  // the next one in order
  std::uint64_t newest() const;                             // its number; 0: there is none
  // Of their files, as they were when they were added, or when measure() was called.
  std::uint64_t bytes() const;
  void measure();
  // Durable when they return well; else nothing changed here, and what the file has is not known until the next of them
  // writes it: it does so even when it changes nothing.
  Status create();  // lists nothing: there before the first cold segment, so that one that is missing is a loss
  Status add(std::span<const SegmentId> segments);
  Status remove(std::span<const SegmentId> segments);

 private:
  Status write(std::set<SegmentId> segments);
  void measure_new();  // with the mutex

  FileSystem& files_;
  const std::string directory_;
  mutable std::mutex mutex_;
  std::set<SegmentId> segments_;
  bool unsure_ = false;  // what the file has
  std::map<SegmentId, std::uint64_t> sizes_;
};

}  // namespace tidemark::storage
