#include "storage/granule_hashes.h"

#include <algorithm>
#include <new>
#include <type_traits>

#include "base/check.h"
#include "base/checksum.h"

namespace tidemark::storage {

GranuleHashes::GranuleHashes(std::uint64_t bytes_max)
    : sets_(bytes_max / (kWays * sizeof(Entry))),
      entries_(static_cast<Entry*>(std::calloc(std::max<std::size_t>(sets_ * kWays, 1), sizeof(Entry)))) {
  static_assert(std::is_trivially_destructible_v<Entry>);
  if (entries_ == nullptr) throw std::bad_alloc();
}

std::uint64_t GranuleHashes::of(std::span<const std::byte> granule) { return xxh3_64(granule); }

std::optional<GranuleHashes::Hashes> GranuleHashes::find(const StoredPlace& place) {
  if (sets_ == 0) return std::nullopt;
  const std::size_t set = set_of(place);
  const std::lock_guard lock(mutexes_[set % kMutexes]);
  Entry* const first = entries_.get() + set * kWays;
  for (Entry* entry = first; entry != first + kWays; ++entry) {
    if (entry->place != place) continue;
    entry->used = ++clock_[set % kMutexes];
    return entry->hashes;
  }
  return std::nullopt;
}

void GranuleHashes::put(const StoredPlace& place, std::span<const std::byte> plain) {
  TIDEMARK_CHECK(place.store != 0 && plain.size() % limits::kGranuleSize == 0 &&
                 plain.size() <= limits::kBlockPlainSizeMax);
  if (sets_ == 0) return;
  Hashes hashes{};
  for (std::size_t i = 0; i * limits::kGranuleSize < plain.size(); ++i)
    hashes[i] = of(plain.subspan(i * limits::kGranuleSize, limits::kGranuleSize));
  const std::size_t set = set_of(place);
  const std::lock_guard lock(mutexes_[set % kMutexes]);
  Entry* const first = entries_.get() + set * kWays;
  Entry* at = std::find_if(first, first + kWays, [&](const Entry& entry) { return entry.place == place; });
  if (at == first + kWays)
    at = std::min_element(first, first + kWays, [](const Entry& a, const Entry& b) { return a.used < b.used; });
  *at = {.place = place, .used = ++clock_[set % kMutexes], .hashes = hashes};
}

}  // namespace tidemark::storage
