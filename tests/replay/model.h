// What the replay knows by itself: which epoch wrote which granule, and so what every point must read as, and how many
// bytes any store that keeps those points must hold.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/ids.h"

namespace tidemark::replay {

// Bytes that only this granule of this disk has in this epoch; they do not compress.
void content_of(std::uint32_t disk, std::uint64_t granule, std::uint64_t epoch, std::span<std::byte> to);

class Model {
 public:
  void write(std::uint32_t disk, std::uint64_t granule, std::uint64_t epoch);  // epochs never go back
  // The epoch whose bytes a granule has at `point`; 0: it was never written by then, and reads as zeroes.
  std::uint64_t version(std::uint32_t disk, std::uint64_t granule, std::uint64_t point) const;
  // Granules of the disk that were ever written, in order, with their epochs ascending.
  const std::map<std::uint64_t, std::vector<std::uint64_t>>& disk(std::uint32_t disk) const;
  std::size_t disks() const { return disks_.size(); }

  struct Needed {
    std::uint64_t granules = 0;  // versions of a granule that some point shows
    std::uint64_t bytes = 0;     // of them in stored form, block headers included
  };
  // `points` ascending.
  Needed needed(std::span<const std::uint64_t> points) const;

 private:
  std::map<std::uint32_t, std::map<std::uint64_t, std::vector<std::uint64_t>>> disks_;
};

}  // namespace tidemark::replay
