// The numbers of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md), as far as they are used here, and
// its big-endian fields. docs/nbd.md says what this server makes of them.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "base/status.h"
#include "base/units.h"

namespace tidemark::nbd {

inline constexpr std::uint64_t kMagic = 0x4e42444d41474943;        // "NBDMAGIC"
inline constexpr std::uint64_t kOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
inline constexpr std::uint64_t kOptionReplyMagic = 0x0003e889045565a9;
inline constexpr std::uint32_t kRequestMagic = 0x25609513;
inline constexpr std::uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr std::uint32_t kStructuredReplyMagic = 0x668e33ef;

inline constexpr std::uint16_t kFixedNewstyle = 1, kNoZeroes = 2;  // of the handshake, both ways

enum class Option : std::uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  starttls = 5,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
};

enum class OptionReply : std::uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  unsupported = 0x80000001,
  policy = 0x80000002,
  invalid = 0x80000003,
  tls_required = 0x80000005,
  unknown = 0x80000006,
  shutdown = 0x80000007,
  too_big = 0x80000009,
};

enum class Info : std::uint16_t { export_ = 0, name = 1, description = 2, block_size = 3 };

// Transmission flags.
inline constexpr std::uint16_t kHasFlags = 1 << 0, kReadOnly = 1 << 1, kSendFlush = 1 << 2, kSendFua = 1 << 3,
                               kSendTrim = 1 << 5, kSendWriteZeroes = 1 << 6, kSendDf = 1 << 7, kCanMultiConn = 1 << 8,
                               kSendCache = 1 << 10, kSendFastZero = 1 << 11;

enum class Command : std::uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  cache = 5,
  write_zeroes = 6,
  block_status = 7,
};

// Flags of requests.
inline constexpr std::uint16_t kFua = 1 << 0, kNoHole = 1 << 1, kDf = 1 << 2, kReqOne = 1 << 3, kFastZero = 1 << 4;

// Errors as they travel.
enum class Errno : std::uint32_t {
  none = 0,
  not_permitted = 1,
  io = 5,
  no_memory = 12,
  invalid = 22,
  no_space = 28,
  overflow = 75,
  not_supported = 95,
  shutdown = 108,
};
Errno errno_of(Code code);

enum class Chunk : std::uint16_t {
  none = 0,
  offset_data = 1,
  offset_hole = 2,
  block_status = 5,
  error = 0x8001,
  error_offset = 0x8002,
};
inline constexpr std::uint16_t kDone = 1;  // flag of a chunk: the reply's last

// base:allocation
inline constexpr char kAllocation[] = "base:allocation";
inline constexpr std::uint32_t kAllocationId = 1;
inline constexpr std::uint32_t kHole = 1 << 0, kZero = 1 << 1;

inline constexpr std::size_t kNameMax = 4096;            // of an export or a context, as the protocol has it
inline constexpr std::uint32_t kBlockMin = 1;            // any place and length is taken,
inline constexpr std::uint32_t kBlockPreferred = 4_KiB;  // these cost least
inline constexpr std::uint32_t kRequestMax = 32_MiB;     // of data in one request

template <std::integral T>
T swap_bytes(T value) {
  if constexpr (sizeof(T) == 8) return static_cast<T>(__builtin_bswap64(static_cast<std::uint64_t>(value)));
  if constexpr (sizeof(T) == 4) return static_cast<T>(__builtin_bswap32(static_cast<std::uint32_t>(value)));
  if constexpr (sizeof(T) == 2) return static_cast<T>(__builtin_bswap16(static_cast<std::uint16_t>(value)));
}
static_assert(std::endian::native == std::endian::little);

template <std::integral T>
void put_big(std::string& to, T value) {
  const T swapped = swap_bytes(value);
  char bytes[sizeof swapped];
  std::memcpy(bytes, &swapped, sizeof swapped);
  to.append(bytes, sizeof bytes);
}

template <std::integral T>
T get_big(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return swap_bytes(value);
}

}  // namespace tidemark::nbd
