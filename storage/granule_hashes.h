// Hashes of the granules of raw blocks that were found sound, by the place where they stand: a block's own checksum is
// over all of it, so the first read of a part of a block has to read the whole; with these, later ones read only what
// they need, and still hand out nothing that does not match. A segment is never written twice under the same number, so
// what is known stays right. Fixed memory, used as it fills; what has not been asked for lately goes. Thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "base/ids.h"
#include "base/limits.h"

namespace tidemark::storage {

struct StoredPlace {
  std::uint64_t store = 0;  // one opening of one partition
  SegmentId segment;
  std::uint32_t offset = 0;
  bool operator==(const StoredPlace&) const = default;
  std::uint64_t hash() const {
    return ((segment.value() * 0x9e3779b97f4a7c15ULL + offset / 64) ^ (store << 48)) * 0x9e3779b97f4a7c15ULL;
  }
};

class GranuleHashes {
 public:
  using Hashes = std::array<std::uint64_t, limits::kBlockGranulesMax>;

  explicit GranuleHashes(std::uint64_t bytes_max);

  static std::uint64_t of(std::span<const std::byte> granule);
  std::optional<Hashes> find(const StoredPlace& place);
  // The plain bytes of the whole block, whole granules.
  void put(const StoredPlace& place, std::span<const std::byte> plain);

 private:
  static constexpr std::size_t kWays = 4, kMutexes = 64;
  struct Entry {
    StoredPlace place;  // store 0: free
    std::uint64_t used = 0;
    Hashes hashes;
  };
  struct Free {
    void operator()(Entry* entries) const { std::free(entries); }
  };
  std::size_t set_of(const StoredPlace& place) const { return (place.hash() >> 20) % sets_; }

  const std::size_t sets_;
  // Zeroed by the kernel when it is first touched: an empty table costs nothing.
  const std::unique_ptr<Entry[], Free> entries_;
  std::array<std::mutex, kMutexes> mutexes_;
  std::uint64_t clock_[kMutexes] = {};
};

}  // namespace tidemark::storage
