#include "wire/messages.h"

#include <google/protobuf/message_lite.h>
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstring>

#include "wire/endian.h"

namespace tidemark::wire {
namespace {

// The library prints a line of its own for each malformed text: a peer could fill the log with them. The error that
// parse() returns says the same to the one who handles it.
[[maybe_unused]] google::protobuf::LogHandler* const silenced = google::protobuf::SetLogHandler(nullptr);

std::unexpected<Error> bad(const char* field, const char* what) { return fail(Code::protocol, field, what); }

Status need(bool fulfilled, const char* field, const char* what) {
  if (!fulfilled) return bad(field, what);
  return {};
}

Status check_text(const char* field, const std::string& text) {
  return need(valid_text(text), field, "it is too long or has control characters");
}

Status check_epoch(const char* field, std::uint64_t number) {
  return need(number >= 1 && number <= kEpochNumberMax, field, "not an epoch's number");
}

Status check_hash(const char* field, const std::string& bytes) {
  return need(bytes.size() == kHashSize, field, "a hash has 16 bytes");
}

Status check_time(const char* field, std::int64_t time_us) {
  return need(time_us >= 0 && time_us < kTimeMaxUs, field, "a time before 1970 or past the year 9999");
}

Status check_size(const char* field, std::uint64_t size) {
  return need(size >= 1 && size <= limits::kDiskSizeMax, field, "a disk has 1 byte to 64 TiB");
}

Status check_identity(const char* field, const std::string& identity) {
  return need(!identity.empty() && identity.size() <= kDiskIdentityMax, field, "a disk's identity has 1 to 512 bytes");
}

Status check_disk_name(const char* field, const std::string& name) {
  return need(valid_disk_name(name), field, "not a disk's name: one path component without control characters");
}

// An epoch's number with the digest that belongs to it; epoch 0 has none.
Status check_durable(const char* field, std::uint64_t epoch, const std::string& digest) {
  if (epoch == 0) return need(digest.empty(), field, "epoch 0 has no digest");
  TIDEMARK_TRY(check_epoch(field, epoch));
  return check_hash(field, digest);
}

// Each disk once. A list is at most 64 long, so comparing all with all is cheap.
template <typename List>
Status check_distinct(const char* field, const List& list) {
  if (list.size() > static_cast<int>(limits::kDisksPerMachineMax)) return bad(field, "more than 64 disks");
  for (int i = 0; i < list.size(); ++i)
    for (int j = 0; j < i; ++j)
      if (list[i].disk() == list[j].disk()) return bad(field, "a disk is named twice");
  return {};
}

Status check_pem(const char* field, const std::string& pem) {
  return need(!pem.empty() && pem.size() <= kPemMax, field, "empty or too long");
}

Status check_digest_range(const char* field, std::uint64_t first_chunk, std::uint64_t chunks) {
  constexpr std::uint64_t kChunksMax = limits::kDiskSizeMax / limits::kDigestChunkSize;
  return need(chunks >= 1 && chunks <= limits::kDigestChunksPerRequestMax && first_chunk < kChunksMax &&
                  chunks <= kChunksMax - first_chunk,
              field, "not 1 to 1024 chunks of a disk");
}

// The length of the well-formed UTF-8 character at the front of `text`, 0 if there is none.
std::size_t utf8_length(std::string_view text) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((at(i) & 0xc0) != 0x80) return 0;
  if (lead == 0xe0 && at(1) < 0xa0) return 0;  // longer than need be
  if (lead == 0xed && at(1) > 0x9f) return 0;  // a surrogate
  if (lead == 0xf0 && at(1) < 0x90) return 0;  // longer than need be
  if (lead == 0xf4 && at(1) > 0x8f) return 0;  // beyond Unicode
  return length;
}

// ASCII's control characters and those of U+0080 to U+009F, which terminals obey as well.
bool control_character(std::string_view character) {
  const auto first = static_cast<unsigned char>(character[0]);
  if (character.size() == 1) return first < 0x20 || first == 0x7f;
  return first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0;
}

bool printable(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    if (length == 0 || control_character(text.substr(0, length))) return false;
    text.remove_prefix(length);
  }
  return true;
}

bool ascii_letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

}  // namespace

Status encode_control_payload(FrameType type, const google::protobuf::MessageLite& message,
                              std::vector<std::byte>& to) {
  const std::size_t size = message.ByteSizeLong();
  if (size > limits::kControlPayloadMax)
    return fail(Code::invalid_argument, std::string(to_string(type)),
                "a message of " + std::to_string(size) + " bytes does not fit a control frame");
  to.resize(size);
  message.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(to.data()));
  return {};
}

Result<std::vector<std::byte>> encode_control_frame(FrameType type, std::uint64_t number,
                                                    const google::protobuf::MessageLite& message) {
  std::vector<std::byte> payload;
  TIDEMARK_TRY(encode_control_payload(type, message, payload));
  FrameHeader header;
  header.type = type;
  header.payload_size = static_cast<std::uint32_t>(payload.size());
  header.number = number;
  std::vector<std::byte> frame(limits::kFrameHeaderSize);
  encode(header, std::span(frame).first<limits::kFrameHeaderSize>());
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

Status parse(FrameType type, std::span<const std::byte> payload, google::protobuf::MessageLite& message) {
  if (payload.size() > limits::kControlPayloadMax ||
      !message.ParseFromArray(payload.data(), static_cast<int>(payload.size())))
    return fail(Code::protocol, std::string(to_string(type)), "the message is malformed");
  return {};
}

Status check_version(std::uint32_t version, std::string_view peer) {
  if (version == 0) return fail(Code::protocol, "protocol_version", "it is missing");
  if (version > kProtocolVersion)
    return fail(Code::unsupported, "protocol_version",
                "the " + std::string(peer) + " speaks version " + std::to_string(version) + ", this end knows up to " +
                    std::to_string(kProtocolVersion),
                peer == "agent" ? "upgrade the server first, or run an older agent" : "upgrade the agent");
  return {};
}

Status check(const pb::OpenEpoch& message) {
  TIDEMARK_TRY(check_epoch("open_epoch", message.number()));
  TIDEMARK_TRY(need(message.kind() >= pb::INITIAL && message.kind() <= pb::RESCAN, "open_epoch", "unknown kind"));
  TIDEMARK_TRY(check_hash("open_epoch", message.sum()));
  TIDEMARK_TRY(check_distinct("open_epoch", message.positions()));
  for (const auto& position : message.positions())
    TIDEMARK_TRY(need(position.granule() <= limits::kDiskSizeMax / limits::kGranuleSize, "open_epoch",
                      "a position beyond the largest disk"));
  return {};
}

Status check(const pb::Hello& message) {
  TIDEMARK_TRY(check_text("agent_version", message.agent_version()));
  TIDEMARK_TRY(need(message.machine_name().empty() || valid_machine_name(message.machine_name()), "machine_name",
                    "not a machine's name: letters, digits, '.', '_' and '-', at most 64"));
  TIDEMARK_TRY(need(message.fingerprint().size() == kFingerprintSize, "fingerprint", "it has 32 bytes"));
  TIDEMARK_TRY(need(message.boot_id().size() == kBootIdSize, "boot_id", "it has 16 bytes"));
  TIDEMARK_TRY(check_time("clock_us", message.clock_us()));
  TIDEMARK_TRY(check_durable("durable_epoch", message.durable_epoch(), message.durable_digest()));
  if (message.has_open_epoch()) TIDEMARK_TRY(check(message.open_epoch()));
  for (const auto& capability : message.capabilities()) TIDEMARK_TRY(check_text("capabilities", capability));
  return need(message.machine_id().empty() || MachineId::parse(message.machine_id()).has_value(), "machine_id",
              "not a machine's identity");
}

Status check(const pb::Welcome& message) {
  TIDEMARK_TRY(check_text("server_version", message.server_version()));
  TIDEMARK_TRY(check_text("machine_name", message.machine_name()));
  TIDEMARK_TRY(check_text("redirect", message.redirect()));
  if (!message.redirect().empty()) return {};
  TIDEMARK_TRY(check_durable("durable_epoch", message.durable_epoch(), message.durable_digest()));
  if (message.has_open_epoch()) TIDEMARK_TRY(check(message.open_epoch()));
  TIDEMARK_TRY(check_distinct("disks", message.disks()));
  for (const auto& disk : message.disks()) {
    TIDEMARK_TRY(check_size("disks", disk.size()));
    TIDEMARK_TRY(check_identity("disks", disk.identity()));
    TIDEMARK_TRY(check_disk_name("disks", disk.name()));
  }
  TIDEMARK_TRY(need(message.payload_max() >= limits::kBlockHeaderSize + limits::kBlockPlainSizeMax &&
                        message.payload_max() <= limits::kFramePayloadMax,
                    "payload_max", "it admits no block, or more than a frame"));
  TIDEMARK_TRY(check_time("clock_us", message.clock_us()));
  TIDEMARK_TRY(check_epoch("next_epoch", message.next_epoch()));
  TIDEMARK_TRY(need(message.next_epoch() > message.durable_epoch(), "next_epoch", "not past the durable epoch"));
  for (const auto& capability : message.capabilities()) TIDEMARK_TRY(check_text("capabilities", capability));
  return {};
}

Status check(const pb::OpenDisk& message) {
  TIDEMARK_TRY(check_identity("identity", message.identity()));
  TIDEMARK_TRY(check_size("size", message.size()));
  return check_disk_name("name", message.name());
}

Status check(const pb::DiskOpened& message) {
  TIDEMARK_TRY(check_identity("identity", message.identity()));
  return check_size("size", message.size());
}

Status check(const pb::EpochBegin& message) {
  TIDEMARK_TRY(check_epoch("number", message.number()));
  TIDEMARK_TRY(need(message.kind() >= pb::INITIAL && message.kind() <= pb::RESCAN, "kind", "unknown kind of epoch"));
  TIDEMARK_TRY(need(!message.disks().empty(), "disks", "an epoch has at least one disk"));
  TIDEMARK_TRY(check_distinct("disks", message.disks()));
  for (const auto& disk : message.disks()) TIDEMARK_TRY(check_size("disks", disk.size()));
  return {};
}

Status check(const pb::EpochBegun& message) { return check_epoch("number", message.number()); }

Status check(const pb::EpochCommit& message) {
  TIDEMARK_TRY(check_epoch("number", message.number()));
  TIDEMARK_TRY(check_time("cut_time_us", message.cut_time_us()));
  TIDEMARK_TRY(need(message.consistency() >= pb::FUZZY && message.consistency() <= pb::APPLICATION, "consistency",
                    "unknown consistency"));
  return check_hash("digest", message.digest());
}

Status check(const pb::EpochAbort& message) {
  TIDEMARK_TRY(check_epoch("number", message.number()));
  return check_text("reason", message.reason());
}

Status check(const pb::Durable& message) {
  TIDEMARK_TRY(check_durable("epoch", message.epoch(), message.digest()));
  if (message.has_open_epoch()) TIDEMARK_TRY(check(message.open_epoch()));
  return {};
}

Status check(const pb::Credit&) { return {}; }

Status check(const pb::DigestRequest& message) {
  TIDEMARK_TRY(check_epoch("epoch", message.epoch()));
  return check_digest_range("chunks", message.first_chunk(), message.chunks());
}

Status check(const pb::DigestReply& message) {
  TIDEMARK_TRY(need(message.sha256().size() % 32 == 0, "sha256", "a digest has 32 bytes"));
  return check_digest_range("sha256", message.first_chunk(), message.sha256().size() / 32);
}

Status check(const pb::Unchanged& message) {
  TIDEMARK_TRY(check_epoch("epoch", message.epoch()));
  return check_time("as_of_us", message.as_of_us());
}

Status check(const pb::Progress& message) {
  TIDEMARK_TRY(check_text("state", message.state()));
  TIDEMARK_TRY(check_text("cause", message.cause()));
  TIDEMARK_TRY(check_text("difference", message.difference()));
  if (message.proven_us() != 0) TIDEMARK_TRY(check_time("proven_us", message.proven_us()));
  if (message.difference_us() != 0) TIDEMARK_TRY(check_time("difference_us", message.difference_us()));
  return check_text("remedy", message.remedy());
}

Status check(const pb::Throttle& message) {
  TIDEMARK_TRY(need(message.pause_ms() <= kThrottlePauseMaxMs, "pause_ms", "longer than a minute"));
  return check_text("reason", message.reason());
}

Status check(const pb::Resend& message) {
  TIDEMARK_TRY(need(message.ranges_size() <= kResendRangesMax, "ranges", "more than 1024"));
  for (const auto& range : message.ranges()) {
    TIDEMARK_TRY(need(range.granules() != 0 && range.first_granule() <= limits::kDiskSizeMax / limits::kGranuleSize &&
                          range.granules() <= limits::kDiskSizeMax / limits::kGranuleSize,
                      "ranges", "empty, or beyond any disk"));
  }
  return {};
}

Status check(const pb::Error& message) {
  TIDEMARK_TRY(need(message.code() >= 1 && message.code() <= UINT16_MAX, "code", "not an error's code"));
  TIDEMARK_TRY(check_text("object", message.object()));
  TIDEMARK_TRY(check_text("what", message.what()));
  return check_text("remedy", message.remedy());
}

Status check(const pb::Goodbye& message) { return check_text("reason", message.reason()); }
Status check(const pb::Ping&) { return {}; }
Status check(const pb::Pong&) { return {}; }
Status check(const pb::RenewRequest& message) { return check_pem("csr_pem", message.csr_pem()); }
Status check(const pb::RenewReply& message) { return check_pem("certificate_pem", message.certificate_pem()); }

Status check(const pb::EnrollRequest& message) {
  TIDEMARK_TRY(need(!message.secret().empty() && message.secret().size() <= kSecretMax, "secret", "empty or too long"));
  TIDEMARK_TRY(need(valid_machine_name(message.machine_name()), "machine_name",
                    "not a machine's name: letters, digits, '.', '_' and '-', at most 64"));
  TIDEMARK_TRY(check_pem("csr_pem", message.csr_pem()));
  TIDEMARK_TRY(need(message.fingerprint().size() == kFingerprintSize, "fingerprint", "it has 32 bytes"));
  return check_text("agent_version", message.agent_version());
}

Status check(const pb::EnrollReply& message) {
  TIDEMARK_TRY(need(MachineId::parse(message.machine_id()).has_value(), "machine_id", "not a machine's identity"));
  TIDEMARK_TRY(need(valid_machine_name(message.machine_name()), "machine_name", "not a machine's name"));
  TIDEMARK_TRY(check_pem("certificate_pem", message.certificate_pem()));
  return check_pem("ca_pem", message.ca_pem());
}

std::string hash_to_bytes(const Hash128& hash) {
  std::string bytes(kHashSize, '\0');
  std::memcpy(bytes.data(), &hash.low, sizeof hash.low);
  std::memcpy(bytes.data() + 8, &hash.high, sizeof hash.high);
  return bytes;
}

Result<Hash128> hash_from_bytes(std::string_view bytes) {
  if (bytes.size() != kHashSize) return fail(Code::protocol, "hash", "a hash has 16 bytes");
  return checked_hash(bytes);
}

Hash128 checked_hash(std::string_view bytes) {
  Hash128 hash;
  if (bytes.size() != kHashSize) return hash;
  std::memcpy(&hash.low, bytes.data(), sizeof hash.low);
  std::memcpy(&hash.high, bytes.data() + 8, sizeof hash.high);
  return hash;
}

pb::Error to_message(const Error& error, std::uint32_t retry_after_ms) {
  pb::Error message;
  message.set_code(static_cast<std::uint32_t>(error.code));
  message.set_object(clean_text(error.object));
  message.set_what(clean_text(error.what));
  message.set_remedy(clean_text(error.remedy));
  message.set_retry_after_ms(retry_after_ms);
  return message;
}

pb::Error to_message(const Error& error) {
  switch (error.code) {
    case Code::busy:
    case Code::unavailable:
    case Code::timed_out:
    case Code::cancelled: return to_message(error, 1'000);
    case Code::protocol:
    case Code::corrupt:
    case Code::io:
    case Code::no_space:
    case Code::history_diverged:
    case Code::internal: return to_message(error, 30'000);
    default: return to_message(error, 0);
  }
}

Error from_message(const pb::Error& message) {
  const bool sensible = message.code() >= 1 && message.code() <= UINT16_MAX;
  return {sensible ? static_cast<Code>(message.code()) : Code::internal, clean_text(message.object()),
          clean_text(message.what()), clean_text(message.remedy())};
}

bool valid_machine_name(std::string_view name) {
  return !name.empty() && name.size() <= limits::kNameLengthMax && ascii_letter_or_digit(name[0]) &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return ascii_letter_or_digit(c) || c == '.' || c == '_' || c == '-'; });
}

bool valid_disk_name(std::string_view name) {
  return !name.empty() && name.size() <= kDiskNameMax && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && printable(name);
}

bool valid_text(std::string_view text) { return text.size() <= limits::kTextLengthMax && printable(text); }

std::string clean_text(std::string_view text) {
  std::string clean;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const std::size_t taken = std::max<std::size_t>(length, 1);
    const std::string_view character = text.substr(0, taken);
    if (length == 0) {
      if (clean.size() + 1 > limits::kTextLengthMax) break;
      clean += '?';
    } else if (control_character(character)) {
      if (clean.size() + 1 > limits::kTextLengthMax) break;
      clean += ' ';
    } else {
      if (clean.size() + taken > limits::kTextLengthMax) break;
      clean += character;
    }
    text.remove_prefix(taken);
  }
  return clean;
}

}  // namespace tidemark::wire
