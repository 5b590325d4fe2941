// The header, byte by byte (docs/protocol.md has it with a worked example). Magic, version and CRC keep their places in
// every version to come, so that an old end can say what it met.
//
//    0 magic u32 | 4 type u8 | 5 version u8 | 6 flags u16, zero | 8 payload size u32 | 12 disk u32
//   16 number u64 | 24 reserved u32, zero | 28 CRC32C of the 28 bytes before u32
#include "wire/frame.h"

#include <string>

#include "base/checksum.h"
#include "wire/endian.h"

namespace tidemark::wire {
namespace {

constexpr std::uint8_t kFrameVersion = 1;
constexpr std::size_t kMagicAt = 0;
constexpr std::size_t kTypeAt = 4;
constexpr std::size_t kVersionAt = 5;
constexpr std::size_t kFlagsAt = 6;
constexpr std::size_t kPayloadSizeAt = 8;
constexpr std::size_t kDiskAt = 12;
constexpr std::size_t kNumberAt = 16;
constexpr std::size_t kReservedAt = 24;
constexpr std::size_t kCrcAt = 28;
static_assert(kCrcAt + sizeof(std::uint32_t) == limits::kFrameHeaderSize);

bool known(std::uint8_t type) {
  return type >= static_cast<std::uint8_t>(FrameType::hello) && type <= static_cast<std::uint8_t>(FrameType::resend);
}

}  // namespace

void encode(const FrameHeader& header, std::span<std::byte, limits::kFrameHeaderSize> to) {
  std::byte* bytes = to.data();
  put_little(bytes + kMagicAt, kFrameMagic);
  put_little(bytes + kTypeAt, static_cast<std::uint8_t>(header.type));
  put_little(bytes + kVersionAt, kFrameVersion);
  put_little(bytes + kFlagsAt, std::uint16_t{0});
  put_little(bytes + kPayloadSizeAt, header.payload_size);
  put_little(bytes + kDiskAt, header.disk.value());
  put_little(bytes + kNumberAt, header.number);
  put_little(bytes + kReservedAt, std::uint32_t{0});
  put_little(bytes + kCrcAt, crc32c(to.first<kCrcAt>()));
}

Result<FrameHeader> decode_frame_header(std::span<const std::byte, limits::kFrameHeaderSize> from) {
  const std::byte* bytes = from.data();
  if (get_little<std::uint32_t>(bytes + kMagicAt) != kFrameMagic)
    return fail(Code::protocol, "frame", "the bytes do not begin a frame",
                "check that the other end speaks Tidemark's protocol");
  if (get_little<std::uint32_t>(bytes + kCrcAt) != crc32c(from.first<kCrcAt>()))
    return fail(Code::protocol, "frame", "the header's checksum does not match");
  if (const auto version = get_little<std::uint8_t>(bytes + kVersionAt); version != kFrameVersion)
    return fail(Code::unsupported, "frame", "frame version " + std::to_string(version) + " is not known here",
                "upgrade the older end; this one knows version " + std::to_string(kFrameVersion));
  const auto type = get_little<std::uint8_t>(bytes + kTypeAt);
  if (!known(type)) return fail(Code::protocol, "frame", "unknown type " + std::to_string(type));
  if (get_little<std::uint16_t>(bytes + kFlagsAt) != 0 || get_little<std::uint32_t>(bytes + kReservedAt) != 0)
    return fail(Code::protocol, "frame", "reserved bits are set");

  FrameHeader header;
  header.type = static_cast<FrameType>(type);
  header.payload_size = get_little<std::uint32_t>(bytes + kPayloadSizeAt);
  header.disk = DiskId(get_little<std::uint32_t>(bytes + kDiskAt));
  header.number = get_little<std::uint64_t>(bytes + kNumberAt);
  const bool blocks = header.type == FrameType::blocks;
  const std::size_t size_max = blocks ? limits::kFramePayloadMax : limits::kControlPayloadMax;
  if (header.payload_size > size_max)
    return fail(Code::protocol, "frame",
                std::string(to_string(header.type)) + " of " + std::to_string(header.payload_size) +
                    " bytes is past its limit of " + std::to_string(size_max));
  if (!blocks && header.disk.value() != 0)
    return fail(Code::protocol, "frame", std::string(to_string(header.type)) + " names a disk");
  return header;
}

std::string_view to_string(FrameType type) {
  switch (type) {
    case FrameType::hello: return "Hello";
    case FrameType::welcome: return "Welcome";
    case FrameType::open_disk: return "OpenDisk";
    case FrameType::disk_opened: return "DiskOpened";
    case FrameType::epoch_begin: return "EpochBegin";
    case FrameType::blocks: return "Blocks";
    case FrameType::epoch_commit: return "EpochCommit";
    case FrameType::epoch_abort: return "EpochAbort";
    case FrameType::durable: return "Durable";
    case FrameType::credit: return "Credit";
    case FrameType::digest_request: return "DigestRequest";
    case FrameType::digest_reply: return "DigestReply";
    case FrameType::unchanged: return "Unchanged";
    case FrameType::progress: return "Progress";
    case FrameType::throttle: return "Throttle";
    case FrameType::error: return "Error";
    case FrameType::goodbye: return "Goodbye";
    case FrameType::ping: return "Ping";
    case FrameType::pong: return "Pong";
    case FrameType::renew_request: return "RenewRequest";
    case FrameType::renew_reply: return "RenewReply";
    case FrameType::enroll_request: return "EnrollRequest";
    case FrameType::enroll_reply: return "EnrollReply";
    case FrameType::epoch_begun: return "EpochBegun";
    case FrameType::resend: return "Resend";
  }
  return "unknown";
}

}  // namespace tidemark::wire
