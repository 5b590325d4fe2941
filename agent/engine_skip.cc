// What a pass that reads everything leaves out, and the list of it.
//
// The list may lie on a disk that is being watched: it is written only when it says something new, for that is a
// change.
//
// Order: the list is on the disk before the server gets anything of an epoch that leaves something out; what was read
// is taken off it once that epoch is durable. An initial sync that was cut goes on with what the list has of the part
// before, and asks anew for the rest.
#include <spdlog/spdlog.h>

#include "agent/engine.h"
#include "agent/free_space.h"
#include "base/limits.h"

namespace tidemark::agent {
namespace {

constexpr std::uint64_t kChunk = limits::kDigestChunkSize;
constexpr std::uint64_t kGranules = kChunk / limits::kGranuleSize;
constexpr auto kSaveInterval = std::chrono::seconds(30);

ChunkRange up_to(std::uint64_t bytes) { return {0, (bytes + kChunk - 1) / kChunk}; }

}  // namespace

void Engine::plan_skips(Pass& pass) {
  pass.skip.assign(pass.disks.size(), {});
  if (!options_.skip_unused) return;
  bool some = false;
  for (std::size_t i = 0; i < pass.disks.size(); ++i) {
    ChunkSet& skip = pass.skip[i];
    skip = whole_chunks(options_.unused(sources_[i]), pass.disks[i].size);
    skip.remove(up_to(pass.start[i]));
    for (const GranuleRange& forced : pass.forced[i]) {
      const std::uint64_t first = forced.first / kGranules;
      skip.remove({first, (forced.first + forced.count + kGranules - 1) / kGranules - first});
    }
    some = some || skip.ranges() != 0;
    skipped_.add(pass.disks[i].identity, skip);
  }
  if (!some) return;
  if (auto saved = skipped_.save(); !saved) {
    spdlog::warn("free space is read too, for it cannot be noted that it was not error=\"{}\"",
                 saved.error().message());
    pass.skip.assign(pass.disks.size(), {});
  }
}

void Engine::note_read(Pass& pass, std::size_t disk, const GranuleRange& range) const {
  const std::uint64_t first = (range.first + kGranules - 1) / kGranules;
  const std::uint64_t end = (range.first + range.count) / kGranules;
  if (first >= end || !skipped_.covers(pass.disks[disk].identity, first, end)) return;
  pass.read_anew.resize(pass.disks.size());
  // More than can be held is read in vain: it stays on the list.
  if (pass.read_anew[disk].ranges() < SkippedChunks::kRangesMax) pass.read_anew[disk].add({first, end - first});
}

// The epoch is durable, or there was none to make.
void Engine::remember_skips(const Pass& pass) {
  const bool everything = !pass.skip.empty();
  if (everything) {
    std::set<std::string> identities;
    for (std::size_t i = 0; i < pass.disks.size(); ++i) {
      identities.insert(pass.disks[i].identity);
      skipped_.replace(pass.disks[i].identity, up_to(pass.start[i]).count, pass.skip[i]);
    }
    skipped_.keep_only(identities);
  }
  for (std::size_t i = 0; i < pass.read_anew.size(); ++i) {
    for (const ChunkRange& range : pass.read_anew[i].list()) skipped_.remove(pass.disks[i].identity, range);
  }
  // Without the news the file has too much, never too little.
  const auto now = clock_.monotonic();
  if (!everything && (pass.read_anew.empty() || now - skipped_saved_ < kSaveInterval)) return;
  skipped_saved_ = now;
  if (auto saved = skipped_.save(); !saved)
    spdlog::warn("it is not noted which free space was read error=\"{}\"", saved.error().message());
}

}  // namespace tidemark::agent
