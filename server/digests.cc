#include "server/digests.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <vector>

#include "base/crypto.h"
#include "base/limits.h"
#include "server/logging.h"

namespace tidemark::server {
namespace {

constexpr auto kIndexTimeout = std::chrono::seconds(30);
constexpr std::size_t kChunk = limits::kDigestChunkSize;

bool is_zero(storage::Reader& reader, std::uint64_t offset, std::uint64_t length) {
  const auto ranges = reader.map(offset, length);
  // What the map cannot tell is read, and then the reader says what is wrong.
  return ranges && !ranges->empty() && ranges->front().zero && ranges->front().offset <= offset &&
         ranges->front().offset + ranges->front().length >= offset + length;
}

}  // namespace

Result<pb::DigestReply> compute_digests(storage::Reader& reader, const pb::DigestRequest& request) {
  static const Sha256 kZeroChunk = sha256(std::vector<std::byte>(kChunk));
  pb::DigestReply reply;
  reply.set_disk(request.disk());
  reply.set_first_chunk(request.first_chunk());
  std::string& digests = *reply.mutable_sha256();
  std::vector<std::byte> chunk(kChunk);
  std::uint32_t damaged = 0;
  const std::uint64_t chunks_on_disk = (reader.disk_size() + kChunk - 1) / kChunk;
  const std::uint64_t end = std::min<std::uint64_t>(
      chunks_on_disk, request.first_chunk() + std::min(request.chunks(), limits::kDigestChunksPerRequestMax));
  for (std::uint64_t i = request.first_chunk(); i < end; ++i) {
    const std::uint64_t offset = i * kChunk;
    const std::uint64_t length = std::min<std::uint64_t>(kChunk, reader.disk_size() - offset);
    const std::uint64_t padded = round_up(length, limits::kGranuleSize);
    Sha256 digest{};
    if (padded == kChunk && is_zero(reader, offset, length)) {
      digest = kZeroChunk;
    } else {
      std::fill(chunk.begin(), chunk.end(), std::byte{0});
      const auto read = reader.read(offset, std::span(chunk).first(length));
      if (read) {
        digest = sha256(std::span<const std::byte>(chunk).first(padded));
      } else if (read.error().code == Code::corrupt || read.error().code == Code::io) {
        if (damaged++ == 0) spdlog::error("damage found while digesting{}", kv(read.error()));
      } else {
        return std::unexpected(read.error());
      }
    }
    digests.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  }
  return reply;
}

Result<pb::DigestReply> compute_digests(storage::Partition& partition, const MachineId& machine,
                                        const pb::DigestRequest& request) {
  const auto reader =
      TIDEMARK_TRY(partition.read(machine, DiskId(request.disk()), EpochNumber(request.epoch()), kIndexTimeout));
  return compute_digests(*reader, request);
}

}  // namespace tidemark::server
