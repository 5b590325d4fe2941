#include "agent/digest_feed.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/limits.h"

namespace tidemark::agent {
namespace {
constexpr std::size_t kDigestSize = 32;
static_assert(limits::kDigestChunksPerRequestMax % DigestFeed::kChunksPerPiece == 0, "a piece lies in one request");
}  // namespace

DigestFeed::DigestFeed(Link& link, EpochNumber epoch, const std::vector<ChunkSpan>& spans)
    : link_(link), epoch_(epoch) {
  for (const ChunkSpan& span : spans) {
    for (std::uint64_t done = 0; done < span.count; done += limits::kDigestChunksPerRequestMax) {
      const auto count = std::min<std::uint64_t>(limits::kDigestChunksPerRequestMax, span.count - done);
      requests_.push_back({span.disk, span.first + done, count});
    }
  }
}

DigestFeed::~DigestFeed() {
  while (answered_ < asked_ && link_.alive()) {
    if (!take_reply()) return;  // stopped or cut: the session ends, and its answers with it
  }
}

Status DigestFeed::ask_ahead() {
  while (asked_ < requests_.size() && asked_ - answered_ < kInFlight) {
    const ChunkSpan& span = requests_[asked_];
    pb::DigestRequest request;
    request.set_disk(span.disk.value());
    request.set_first_chunk(span.first);
    request.set_chunks(static_cast<std::uint32_t>(span.count));
    request.set_epoch(epoch_.value());
    TIDEMARK_TRY(link_.request_digests(request));
    ++asked_;
  }
  return {};
}

Status DigestFeed::take_reply() {
  const pb::DigestReply reply = TIDEMARK_TRY(link_.next_digests());
  ++answered_;
  const auto bytes = std::as_bytes(std::span(reply.sha256()));
  replies_[{DiskId(reply.disk()), reply.first_chunk()}] = std::vector<std::byte>(bytes.begin(), bytes.end());
  return {};
}

Status DigestFeed::prefetch() {
  while (answered_ < requests_.size()) {
    TIDEMARK_TRY(ask_ahead());
    TIDEMARK_TRY(take_reply());
  }
  return {};
}

Result<std::span<const std::byte>> DigestFeed::at(DiskId disk, std::uint64_t first, std::uint32_t count) {
  const auto contains = [&](const ChunkSpan& span) {
    return span.disk == disk && first >= span.first && first < span.first + span.count;
  };
  const auto found = std::find_if(requests_.begin() + static_cast<std::ptrdiff_t>(current_), requests_.end(), contains);
  if (found == requests_.end()) return std::span<const std::byte>{};  // not among the spans: nothing to compare with
  for (; requests_.begin() + static_cast<std::ptrdiff_t>(current_) != found; ++current_) {
    replies_.erase({requests_[current_].disk, requests_[current_].first});
  }
  const Place place{disk, requests_[current_].first};
  while (!replies_.contains(place)) {
    // A request that was passed over unread is still asked for in turn: answers come for all.
    TIDEMARK_TRY(ask_ahead());
    TIDEMARK_TRY(take_reply());
  }
  TIDEMARK_TRY(ask_ahead());
  const std::vector<std::byte>& bytes = replies_[place];
  const std::size_t begin = std::min<std::size_t>((first - place.second) * kDigestSize, bytes.size());
  const std::size_t size =
      std::min<std::size_t>(count * kDigestSize, (bytes.size() - begin) / kDigestSize * kDigestSize);
  return std::span(bytes).subspan(begin, size);
}

}  // namespace tidemark::agent
