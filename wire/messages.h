// Control messages in and out of frames, and what is asked of their fields. Both ends use these, so that a message one
// end may send is one that the other takes. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/checksum.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "wire/frame.h"
#include "wire/tidemark.pb.h"

namespace tidemark::wire {

inline constexpr std::uint32_t kProtocolVersion = 1;
inline constexpr std::size_t kFingerprintSize = 32;
inline constexpr std::size_t kBootIdSize = 16;
inline constexpr std::size_t kHashSize = 16;
inline constexpr std::size_t kDiskIdentityMax = 512;  // bytes
inline constexpr std::size_t kDiskNameMax = 255;      // bytes
inline constexpr std::size_t kPemMax = 16 << 10;      // bytes of a CSR or of a certificate
inline constexpr std::size_t kSecretMax = 256;        // bytes of a token's secret
inline constexpr std::uint64_t kEpochNumberMax = 1ULL << 62;
inline constexpr std::int64_t kTimeMaxUs = 253'402'300'800'000'000;  // the year 10000
inline constexpr std::uint32_t kUnacknowledgedCommitsMax = 16;       // of one session
inline constexpr std::uint32_t kDigestRequestsMax = 4;               // unanswered, of one session
inline constexpr std::uint32_t kRenewalsPerSessionMax = 8;
inline constexpr std::uint32_t kThrottlePauseMaxMs = 60'000;
inline constexpr int kResendRangesMax = 1024;  // of one Resend
inline constexpr char kCapabilityResend[] = "resend";
static_assert(limits::kDisksPerMachineMax * (kDiskIdentityMax + kDiskNameMax + 64) + (8 << 10) <=
                  limits::kControlPayloadMax,
              "a Welcome with every disk fits a control frame");

// Header and payload of a control frame, ready to be sent. Code::invalid_argument when the message is too long for one.
Result<std::vector<std::byte>> encode_control_frame(FrameType type, std::uint64_t number,
                                                    const google::protobuf::MessageLite& message);
// The payload alone, into `to`, whose memory is used again.
Status encode_control_payload(FrameType type, const google::protobuf::MessageLite& message, std::vector<std::byte>& to);

// Fills `message` from a payload. Says which message is malformed; fields are not looked at.
Status parse(FrameType type, std::span<const std::byte> payload, google::protobuf::MessageLite& message);

// What a message's fields must fulfil by themselves: sizes, ranges, texts. Code::protocol, the object is the field.
// Hello's version is not among it: check_version() comes first, since a Hello of the future may look otherwise.
Status check(const pb::Hello& message);
Status check(const pb::OpenEpoch& message);
Status check(const pb::Welcome& message);
Status check(const pb::OpenDisk& message);
Status check(const pb::DiskOpened& message);
Status check(const pb::EpochBegin& message);
Status check(const pb::EpochBegun& message);
Status check(const pb::EpochCommit& message);
Status check(const pb::EpochAbort& message);
Status check(const pb::Durable& message);
Status check(const pb::Credit& message);
Status check(const pb::DigestRequest& message);
Status check(const pb::DigestReply& message);
Status check(const pb::Unchanged& message);
Status check(const pb::Progress& message);
Status check(const pb::Throttle& message);
Status check(const pb::Resend& message);
Status check(const pb::Error& message);
Status check(const pb::Goodbye& message);
Status check(const pb::Ping& message);
Status check(const pb::Pong& message);
Status check(const pb::RenewRequest& message);
Status check(const pb::RenewReply& message);
Status check(const pb::EnrollRequest& message);
Status check(const pb::EnrollReply& message);

// Code::unsupported with a remedy when `peer` (who sent `version`) is newer than this program; Code::protocol for 0.
Status check_version(std::uint32_t version, std::string_view peer);

// parse() and check() in one.
template <typename Message>
Result<Message> decode(FrameType type, std::span<const std::byte> payload) {
  Message message;
  TIDEMARK_TRY(parse(type, payload, message));
  TIDEMARK_TRY(check(message));
  return message;
}

// 16 bytes: low 64 bits, then high, little-endian.
std::string hash_to_bytes(const Hash128& hash);
Result<Hash128> hash_from_bytes(std::string_view bytes);
// The same for a field that check() has passed; all zero for an empty one.
Hash128 checked_hash(std::string_view bytes);

// Texts are cut to their limit and cleaned, so that any error can be sent.
pb::Error to_message(const Error& error, std::uint32_t retry_after_ms);
// With the time after which it makes sense to try again; 0 when a human must act first.
pb::Error to_message(const Error& error);
Error from_message(const pb::Error& message);

// Letters, digits, '.', '_' and '-', up to limits::kNameLengthMax of them, the first a letter or a digit.
bool valid_machine_name(std::string_view name);
// A single path component of UTF-8 without control characters: it may become a file's name.
bool valid_disk_name(std::string_view name);
// UTF-8 without control characters, of at most limits::kTextLengthMax bytes: safe in a log line and on a terminal.
bool valid_text(std::string_view text);
// Makes a valid_text of anything: cuts at a character's edge, turns control characters to spaces, foreign bytes to '?'.
std::string clean_text(std::string_view text);

}  // namespace tidemark::wire
