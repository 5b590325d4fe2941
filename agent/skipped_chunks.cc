#include "agent/skipped_chunks.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "agent/text_file.h"
#include "base/hex.h"
#include "base/limits.h"

namespace tidemark::agent {
namespace {

using Json = nlohmann::json;
constexpr int kVersion = 1;
constexpr std::uint64_t kChunksMax = limits::kDiskSizeMax / limits::kDigestChunkSize;
constexpr std::size_t kFileSizeMax = 256 << 20;
constexpr char kRemedy[] = "it is written anew when everything was read or compared: nothing is lost";

}  // namespace

void ChunkSet::add(const ChunkRange& range) {
  if (range.count == 0) return;
  std::uint64_t first = range.first, end = range.first + range.count;
  auto it = end_of_.upper_bound(first);
  if (it != end_of_.begin() && std::prev(it)->second >= first) --it;
  while (it != end_of_.end() && it->first <= end) {
    first = std::min(first, it->first);
    end = std::max(end, it->second);
    it = end_of_.erase(it);
  }
  end_of_.emplace_hint(it, first, end);
}

void ChunkSet::remove(const ChunkRange& range) {
  if (range.count == 0) return;
  const std::uint64_t first = range.first, end = range.first + range.count;
  auto it = end_of_.upper_bound(first);
  if (it != end_of_.begin() && std::prev(it)->second > first) --it;
  while (it != end_of_.end() && it->first < end) {
    const auto [old_first, old_end] = *it;
    it = end_of_.erase(it);
    if (old_first < first) end_of_.emplace(old_first, first);
    if (old_end > end) end_of_.emplace(end, old_end);
  }
}

bool ChunkSet::touches(const ChunkRange& range) const {
  const auto here = next(range.first);
  return here && range.count != 0 && here->first < range.first + range.count;
}

bool ChunkSet::contains(const ChunkRange& range) const {
  const auto here = next(range.first);
  return range.count == 0 || (here && here->first == range.first && here->count >= range.count);
}

std::optional<ChunkRange> ChunkSet::next(std::uint64_t chunk) const {
  auto it = end_of_.upper_bound(chunk);
  if (it != end_of_.begin() && std::prev(it)->second > chunk) --it;
  if (it == end_of_.end()) return std::nullopt;
  const std::uint64_t first = std::max(it->first, chunk);
  return ChunkRange{first, it->second - first};
}

void ChunkSet::coarsen(std::size_t ranges_max) {
  for (std::uint64_t gap = 1; end_of_.size() > std::max<std::size_t>(ranges_max, 1); gap *= 2) {
    for (auto it = end_of_.begin(); it != end_of_.end();) {
      const auto after = std::next(it);
      if (after == end_of_.end() || after->first - it->second > gap) {
        it = after;
        continue;
      }
      it->second = after->second;
      end_of_.erase(after);
    }
  }
}

std::uint64_t ChunkSet::chunks() const {
  std::uint64_t sum = 0;
  for (const auto& [first, end] : end_of_) sum += end - first;
  return sum;
}

std::vector<ChunkRange> ChunkSet::list() const {
  std::vector<ChunkRange> ranges;
  for (const auto& [first, end] : end_of_) ranges.push_back({first, end - first});
  return ranges;
}

bool SkippedChunks::covers(const std::string& identity, std::uint64_t begin, std::uint64_t end) const {
  const auto disk = disks_.find(identity);
  return disk == disks_.end() || (begin < end && disk->second.touches({begin, end - begin}));
}

std::optional<std::uint64_t> SkippedChunks::count(const std::string& identity) const {
  const auto disk = disks_.find(identity);
  if (disk == disks_.end()) return std::nullopt;
  return disk->second.chunks();
}

void SkippedChunks::add(const std::string& identity, const ChunkSet& chunks) {
  const auto [disk, fresh] = disks_.try_emplace(identity);
  // What is not known stays so, until everything was read.
  if (fresh) disk->second.add({0, kChunksMax});
  changed_ = changed_ || fresh;
  for (const ChunkRange& range : chunks.list()) {
    if (disk->second.contains(range)) continue;
    disk->second.add(range);
    changed_ = true;
  }
  disk->second.coarsen(kRangesMax);
}

void SkippedChunks::remove(const std::string& identity, const ChunkRange& chunks) {
  const auto disk = disks_.find(identity);
  if (disk == disks_.end() || !disk->second.touches(chunks)) return;
  disk->second.remove(chunks);
  disk->second.coarsen(kRangesMax);
  changed_ = true;
}

void SkippedChunks::replace(const std::string& identity, std::uint64_t first, const ChunkSet& chunks) {
  const auto known = disks_.find(identity);
  ChunkSet now;
  if (known != disks_.end()) {
    now = known->second;
  } else {
    now.add({0, first});
  }
  now.remove({first, kChunksMax});
  for (const ChunkRange& range : chunks.list()) now.add(range);
  now.coarsen(kRangesMax);
  if (known != disks_.end() && known->second == now) return;
  disks_[identity] = std::move(now);
  changed_ = true;
}

void SkippedChunks::keep_only(const std::set<std::string>& identities) {
  changed_ |= std::erase_if(disks_, [&](const auto& disk) { return !identities.contains(disk.first); }) != 0;
}

Status SkippedChunks::load() {
  disks_.clear();
  changed_ = false;
  const std::string text = TIDEMARK_TRY(read_text_file(path_, kFileSizeMax));
  std::string why;
  const auto damaged = [&](const std::string& what) {
    return fail(Code::corrupt, path_.string(), "the list of what was not read is damaged: " + what, kRemedy);
  };
  const auto body = without_checksum(text, why);
  if (!body) return damaged(why);
  std::map<std::string, ChunkSet> disks;
  try {
    const Json json = Json::parse(*body);
    if (json.at("version").get<int>() != kVersion ||
        json.at("chunk_bytes").get<std::uint64_t>() != limits::kDigestChunkSize) {
      return fail(Code::unsupported, path_.string(), "written by another version of the agent", kRemedy);
    }
    for (const Json& disk : json.at("disks")) {
      const std::string digits = disk.at("identity_hex").get<std::string>();
      std::string identity(digits.size() / 2, '\0');
      if (!from_hex(digits, std::as_writable_bytes(std::span(identity)))) return damaged("no identity");
      ChunkSet& set = disks[identity];
      const Json& ranges = disk.at("ranges");
      for (std::size_t i = 0; i < ranges.size(); i += 2) {
        const ChunkRange range{ranges.at(i).get<std::uint64_t>(), ranges.at(i + 1).get<std::uint64_t>()};
        if (range.first > kChunksMax || range.count > kChunksMax) return damaged("a range beyond every disk");
        set.add(range);
      }
      set.coarsen(kRangesMax);
    }
  } catch (const std::exception& error) {
    return damaged(error.what());
  }
  disks_ = std::move(disks);
  return {};
}

Status SkippedChunks::save() {
  if (!changed_) return {};
  Json disks = Json::array();
  for (const auto& [identity, set] : disks_) {
    Json ranges = Json::array();
    for (const ChunkRange& range : set.list()) {
      ranges.push_back(range.first);
      ranges.push_back(range.count);
    }
    disks.push_back({{"identity_hex", to_hex(std::as_bytes(std::span(identity)))}, {"ranges", std::move(ranges)}});
  }
  const Json body = {{"version", kVersion}, {"chunk_bytes", limits::kDigestChunkSize}, {"disks", std::move(disks)}};
  TIDEMARK_TRY(write_file_atomically(path_, with_checksum(body.dump()), 0600));
  changed_ = false;
  return {};
}

}  // namespace tidemark::agent
