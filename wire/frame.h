// Frames: what travels inside TLS. A fixed 32-byte little-endian header, then a payload of at most 1 MiB.
// docs/protocol.md specifies the bytes with worked examples. No I/O here; every function is pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"

namespace tidemark::wire {

inline constexpr std::uint32_t kFrameMagic = 0x464d4454;    // "TDMF" in memory
inline constexpr char kAlpnMachine[] = "tidemark/1";        // a machine with its certificate
inline constexpr char kAlpnEnroll[] = "tidemark-enroll/1";  // no certificate yet, one EnrollRequest

// Numbers are for good. Who sends it: A the agent, S the server.
enum class FrameType : std::uint8_t {
  hello = 1,            // A  first frame of a session
  welcome = 2,          // S  its answer
  open_disk = 3,        // A
  disk_opened = 4,      // S
  epoch_begin = 5,      // A
  blocks = 6,           // A  the one data frame: see wire/block.h
  epoch_commit = 7,     // A
  epoch_abort = 8,      // A
  durable = 9,          // S
  credit = 10,          // S
  digest_request = 11,  // A
  digest_reply = 12,    // S
  unchanged = 13,       // A
  progress = 14,        // A
  throttle = 15,        // S
  error = 16,           // both; the sender closes after it
  goodbye = 17,         // both; nothing follows
  ping = 18,            // both
  pong = 19,            // both
  renew_request = 20,   // A  a CSR, before its certificate expires
  renew_reply = 21,     // S
  enroll_request = 22,  // A  on kAlpnEnroll only
  enroll_reply = 23,    // S
  epoch_begun = 24,     // S  the answer to epoch_begin
  resend = 25,          // S  to agents that said they understand it
};

std::string_view to_string(FrameType type);  // "EpochBegin"

struct FrameHeader {
  FrameType type{};
  std::uint32_t payload_size = 0;  // bytes
  DiskId disk;                     // of a blocks frame; else 0
  std::uint64_t number = 0;        // counts up by one per frame and direction, from 0
  bool operator==(const FrameHeader&) const = default;
};

void encode(const FrameHeader& header, std::span<std::byte, limits::kFrameHeaderSize> to);

// Checks magic, version, CRC, that the type is known, the reserved bytes zero, and the size within the type's limit
// (kFramePayloadMax for blocks, kControlPayloadMax for everything else). Does not check the number.
Result<FrameHeader> decode_frame_header(std::span<const std::byte, limits::kFrameHeaderSize> from);

}  // namespace tidemark::wire
