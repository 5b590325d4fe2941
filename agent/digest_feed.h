// The server's digests of what is to be compared, asked for ahead of the reading. Belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "agent/link.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::agent {

// Chunks (limits::kDigestChunkSize) of a disk, from a multiple of kChunksPerPiece on.
struct ChunkSpan {
  DiskId disk;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

class DigestFeed {
 public:
  static constexpr std::uint32_t kChunksPerPiece = 16;  // a piece of 1 MiB
  static constexpr std::size_t kInFlight = 2;

  // As of `epoch`, in the order of `spans`.
  DigestFeed(Link& link, EpochNumber epoch, const std::vector<ChunkSpan>& spans);
  // Waits for the answers under way, so that they do not meet the next feed.
  ~DigestFeed();

  // Everything at once, for a read that must not wait: 32 bytes for each chunk stay in memory.
  Status prefetch();

  // Digests of up to `count` chunks from `first` on, 32 bytes each; fewer where the server has none. Called for
  // ascending places of the spans, within one piece each. Valid until the next call.
  Result<std::span<const std::byte>> at(DiskId disk, std::uint64_t first, std::uint32_t count);

 private:
  using Place = std::pair<DiskId, std::uint64_t>;  // of a request
  Status ask_ahead();
  Status take_reply();

  Link& link_;
  EpochNumber epoch_;
  std::vector<ChunkSpan> requests_;
  std::size_t asked_ = 0;
  std::size_t answered_ = 0;
  std::size_t current_ = 0;  // request whose digests are being used
  std::map<Place, std::vector<std::byte>> replies_;
};

}  // namespace tidemark::agent
