#include "tests/replay/model.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/limits.h"

namespace tidemark::replay {

void content_of(std::uint32_t disk, std::uint64_t granule, std::uint64_t epoch, std::span<std::byte> to) {
  std::uint64_t state =
      (granule * 0x9e3779b97f4a7c15ULL) ^ (epoch * 0xd1342543de82ef95ULL) ^ (std::uint64_t{disk} << 56);
  for (std::size_t at = 0; at + 8 <= to.size(); at += 8) {
    state += 0x9e3779b97f4a7c15ULL;
    std::uint64_t word = state;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ULL;
    word ^= word >> 27;
    std::memcpy(to.data() + at, &word, sizeof word);
  }
}

void Model::write(std::uint32_t disk, std::uint64_t granule, std::uint64_t epoch) {
  auto& epochs = disks_[disk][granule];
  TIDEMARK_CHECK(epochs.empty() || epochs.back() <= epoch);
  if (epochs.empty() || epochs.back() != epoch) epochs.push_back(epoch);
}

std::uint64_t Model::version(std::uint32_t disk, std::uint64_t granule, std::uint64_t point) const {
  const auto& granules = this->disk(disk);
  const auto found = granules.find(granule);
  if (found == granules.end()) return 0;
  const auto newer = std::ranges::upper_bound(found->second, point);
  return newer == found->second.begin() ? 0 : *std::prev(newer);
}

const std::map<std::uint64_t, std::vector<std::uint64_t>>& Model::disk(std::uint32_t disk) const {
  static const std::map<std::uint64_t, std::vector<std::uint64_t>> kNothing;
  const auto found = disks_.find(disk);
  return found == disks_.end() ? kNothing : found->second;
}

Model::Needed Model::needed(std::span<const std::uint64_t> points) const {
  Needed needed;
  std::uint64_t blocks = 0;
  for (const auto& [disk, granules] : disks_) {
    // Granules next to each other of one epoch share a block, up to the longest there is.
    std::map<std::uint64_t, std::pair<std::uint64_t, std::uint32_t>> runs;  // by epoch: where it ends, how long it is
    for (const auto& [granule, epochs] : granules) {
      for (std::size_t i = 0; i < epochs.size(); ++i) {
        const auto point = std::ranges::lower_bound(points, epochs[i]);
        const bool shown = point != points.end() && (i + 1 == epochs.size() || *point < epochs[i + 1]);
        if (!shown) continue;
        ++needed.granules;
        auto& [end, length] = runs[epochs[i]];
        const bool joins =
            end == granule && length < limits::kBlockGranulesMax && granule % limits::kRegionGranules != 0;
        if (!joins) ++blocks;
        length = joins ? length + 1 : 1;
        end = granule + 1;
      }
    }
  }
  needed.bytes = needed.granules * limits::kGranuleSize + blocks * limits::kBlockHeaderSize;
  return needed;
}

}  // namespace tidemark::replay
