// Every limit and fixed size of Tidemark, with the relations between them asserted. What a user may set stands in
// the configuration; its default and its bounds stand here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/units.h"

namespace tidemark::limits {

// Places on a disk.
inline constexpr std::size_t kGranuleSize = 4_KiB;  // the unit of place; a disk's short last one travels zero-padded
inline constexpr std::uint32_t kBlockGranulesMax = 16;  // granules of plain data in one block
inline constexpr std::size_t kBlockPlainSizeMax = kBlockGranulesMax * kGranuleSize;
inline constexpr std::uint32_t kRegionGranules = 256;  // granules of one index region
inline constexpr std::uint64_t kRegionSize = kRegionGranules * kGranuleSize;
inline constexpr std::uint64_t kDiskSizeMax = 64_TiB;                // so that a region number fits 32 bits with room
inline constexpr std::size_t kDigestChunkSize = kBlockPlainSizeMax;  // plain bytes under one SHA-256 of DigestReply
inline constexpr std::uint32_t kDigestChunksPerRequestMax = 1024;    // 64 MiB of disk, 32 KiB of reply

// Frames.
inline constexpr std::size_t kFrameHeaderSize = 32;
inline constexpr std::size_t kFramePayloadMax = 1_MiB;
inline constexpr std::size_t kControlPayloadMax = 64_KiB;  // a protobuf message
inline constexpr std::size_t kBlockHeaderSize = 48;
inline constexpr std::uint32_t kDisksPerMachineMax = 64;
inline constexpr std::size_t kNameLengthMax = 64;    // machine names
inline constexpr std::size_t kTextLengthMax = 1024;  // any other text a peer sends

// The log.
inline constexpr std::size_t kIoAlignment = 4_KiB;  // offset, length and address of direct I/O
inline constexpr std::uint64_t kSegmentSizeDefault = 64_MiB;
inline constexpr std::uint64_t kSegmentSizeMin = 8_MiB;
inline constexpr std::uint64_t kSegmentSizeMax = 256_MiB;
inline constexpr std::uint32_t kReserveSegments = 2;  // formatted segments kept ready, per partition
inline constexpr std::size_t kCommitSizeMax = 4_MiB;
inline constexpr std::size_t kCommitSizeTarget = 1_MiB;  // an open commit of this size is closed
inline constexpr std::uint32_t kCommitsInFlightMax = 8;
inline constexpr std::uint32_t kCommitBuffers = kCommitsInFlightMax + 2;
inline constexpr std::uint32_t kRecordsPerCommitMax = 4096;
inline constexpr std::uint64_t kReplayMax = 512_MiB;  // the index is flushed before more log than this is unapplied
inline constexpr std::uint64_t kIndexFlushSeconds = 10;
inline constexpr std::uint64_t kIdleCommitMillis = 20;  // then an empty commit carries the durable LSN out

// Sessions.
inline constexpr std::uint32_t kSessionsMaxDefault = 20'000;
inline constexpr std::uint32_t kSessionCreditMax = 4_MiB;  // bytes of block payload granted to one session
inline constexpr std::uint32_t kSessionCreditMin =
    256_KiB;  // one full frame of small blocks can always be sent in pieces
inline constexpr std::uint32_t kHandshakesInFlightMax = 64;     // per shard
inline constexpr std::uint32_t kFrameDeadlineSeconds = 30;      // from a frame's first byte to its last
inline constexpr std::uint32_t kHandshakeDeadlineSeconds = 10;  // TLS handshake and Hello
inline constexpr std::uint32_t kIdleSessionSeconds = 90;        // without any frame: the session ends
inline constexpr std::uint32_t kKeepaliveSeconds = 20;          // an idle agent says Unchanged or Ping this often

static_assert(kBlockPlainSizeMax == 64_KiB);
static_assert(kRegionGranules == 256,
              "an extent of the index holds the first granule and the count less one in a byte each");
static_assert(kRegionGranules % kBlockGranulesMax == 0);
static_assert(kDiskSizeMax / kRegionSize <= UINT32_MAX);
static_assert(kBlockHeaderSize + kBlockPlainSizeMax <= kFramePayloadMax);
static_assert(kFramePayloadMax + 2 * kIoAlignment <= kCommitSizeMax, "any frame fits one commit");
static_assert(kCommitSizeTarget <= kCommitSizeMax);
static_assert(kCommitSizeMax + kIoAlignment <= kSegmentSizeMin, "any commit fits one segment");
static_assert(kDigestChunksPerRequestMax * 32 < kControlPayloadMax);
static_assert(kSessionCreditMin >= kBlockHeaderSize + kBlockPlainSizeMax, "credit always admits one block");
static_assert(kIdleSessionSeconds > 3 * kKeepaliveSeconds);

}  // namespace tidemark::limits
