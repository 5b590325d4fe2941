// Which chunks of the protected disks were not read, because nobody can refer to what they hold (agent/free_space.h):
// there the server's copy has zeroes, or what was written since, and the disk has what it has. Whoever compares slices
// of disk and copy must leave them out.
//
// A chunk is limits::kDigestChunkSize bytes of a disk, at a multiple of that. What is noted may be too much, never too
// little: a chunk is noted before an epoch that leaves it out is sent, and taken off after it was read whole, in an
// epoch that is durable. Of a disk that has no entry nothing is known: it counts as not read at all, until a pass has
// read everything. So does every disk when the file is lost or damaged.
//
// The file: one JSON object, replaced as a whole, and in a last line its SHA-256 (agent/text_file.h).
//   {"version": 1, "chunk_bytes": 65536, "disks": [{"identity_hex": "...", "ranges": [first, count, first, count,
//   ...]}]}
// Identities may be any bytes of a path: they stand as hexadecimal digits. Belongs to one thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::agent {

struct ChunkRange {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  bool operator==(const ChunkRange&) const = default;
};

// Ranges that neither overlap nor touch, ascending.
class ChunkSet {
 public:
  void add(const ChunkRange& range);
  void remove(const ChunkRange& range);
  // Does it hold any of them? All of them?
  bool touches(const ChunkRange& range) const;
  bool contains(const ChunkRange& range) const;
  // What it holds at or after `chunk`: the rest of that range. None: nothing.
  std::optional<ChunkRange> next(std::uint64_t chunk) const;
  // Closes the smallest gaps until there are at most so many ranges: it grows.
  void coarsen(std::size_t ranges_max);
  std::uint64_t chunks() const;
  std::size_t ranges() const { return end_of_.size(); }
  std::vector<ChunkRange> list() const;
  bool operator==(const ChunkSet&) const = default;

 private:
  std::map<std::uint64_t, std::uint64_t> end_of_;  // by first chunk
};

class SkippedChunks {
 public:
  static constexpr std::size_t kRangesMax = 65'536;  // of a disk: more are made fewer by noting too much

  explicit SkippedChunks(std::filesystem::path path) : path_(std::move(path)) {}
  // Takes what the file has. not_found, or corrupt and unsupported: then nothing is known of any disk.
  Status load();
  // Durable on return. Writes nothing when nothing was changed since it was loaded or saved.
  Status save();

  // May any chunk of [begin, end) have been left out? Also when that is not known.
  bool covers(const std::string& identity, std::uint64_t begin, std::uint64_t end) const;
  // In chunks; none where nothing is known of the disk.
  std::optional<std::uint64_t> count(const std::string& identity) const;

  // These are left out as well.
  void add(const std::string& identity, const ChunkSet& chunks);
  // These were read. Nothing happens where nothing is known of the disk.
  void remove(const std::string& identity, const ChunkRange& chunks);
  // All chunks from `first` on were read, but for these.
  void replace(const std::string& identity, std::uint64_t first, const ChunkSet& chunks);
  // Other disks are forgotten.
  void keep_only(const std::set<std::string>& identities);

 private:
  std::filesystem::path path_;
  std::map<std::string, ChunkSet> disks_;
  bool changed_ = false;
};

}  // namespace tidemark::agent
