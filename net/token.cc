// The layout, little-endian: u32 length of the address, the address, 32 bytes SHA-256 of the CA certificate, 32 bytes
// of secret, u32 CRC32C of all that. The length comes first so that a text that was cut short can be told from one
// that was mistyped.
#include "net/token.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/checksum.h"
#include "base/limits.h"

namespace tidemark::net {
namespace {

constexpr std::string_view kPrefix = "tmk1-";
constexpr std::size_t kFixedSize = 4 + 32 + 32 + 4;
constexpr std::size_t kTextSizeMax = kPrefix.size() + (limits::kTextLengthMax + kFixedSize) * 4 / 3 + 4;
constexpr char kRemedy[] = "copy the whole token as `tidemark token create` printed it, in one piece";

void append_u32(std::vector<std::byte>& to, std::uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) to.push_back(static_cast<std::byte>(value >> shift));
}

std::uint32_t read_u32(std::span<const std::byte> from) {
  std::uint32_t value = 0;
  for (int i = 3; i >= 0; --i) value = value << 8 | std::to_integer<std::uint32_t>(from[static_cast<std::size_t>(i)]);
  return value;
}

std::string to_base64url(std::span<const std::byte> bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');  // EncodeBlock also writes a terminator
  const int size =
      EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                      reinterpret_cast<const unsigned char*>(bytes.data()), static_cast<int>(bytes.size()));
  text.resize(static_cast<std::size_t>(size));
  text.resize(text.find_last_not_of('=') + 1);
  std::ranges::replace(text, '+', '-');
  std::ranges::replace(text, '/', '_');
  return text;
}

bool is_base64url(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

// `text` holds characters of base64url only. A last character that stands alone codes no byte and is dropped.
std::vector<std::byte> from_base64url(std::string_view text) {
  std::string padded(text);
  if (padded.size() % 4 == 1) padded.pop_back();
  const std::size_t size = padded.size() * 3 / 4;
  std::ranges::replace(padded, '-', '+');
  std::ranges::replace(padded, '_', '/');
  padded.resize((padded.size() + 3) / 4 * 4, '=');
  std::vector<std::byte> bytes(padded.size() / 4 * 3);
  if (!bytes.empty()) {
    EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                    reinterpret_cast<const unsigned char*>(padded.data()), static_cast<int>(padded.size()));
  }
  bytes.resize(size);
  return bytes;
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

}  // namespace

std::string encode_token(const Token& token) {
  std::vector<std::byte> bytes;
  bytes.reserve(kFixedSize + token.address.size());
  append_u32(bytes, static_cast<std::uint32_t>(token.address.size()));
  const auto address = std::as_bytes(std::span(token.address));
  bytes.insert(bytes.end(), address.begin(), address.end());
  bytes.insert(bytes.end(), token.ca_sha256.begin(), token.ca_sha256.end());
  bytes.insert(bytes.end(), token.secret.begin(), token.secret.end());
  append_u32(bytes, crc32c(bytes));
  return std::string(kPrefix) + to_base64url(bytes);
}

Result<Token> decode_token(std::string_view text) {
  text = trim(text);
  if (text.empty()) return fail(Code::invalid_argument, "token", "is empty", kRemedy);
  if (!text.starts_with(kPrefix)) {
    if (kPrefix.starts_with(text)) return fail(Code::invalid_argument, "token", "is cut short", kRemedy);
    const std::size_t dash = text.find('-');
    if (text.starts_with("tmk") && dash != std::string_view::npos && dash > 3 &&
        std::ranges::all_of(text.substr(3, dash - 3), [](char c) { return c >= '0' && c <= '9'; })) {
      return fail(Code::unsupported, "token", "is of a kind this version does not know",
                  "use an agent of the same version as the server");
    }
    return fail(Code::invalid_argument, "token",
                "is not a Tidemark token: it does not begin with " + std::string(kPrefix), kRemedy);
  }
  if (text.size() > kTextSizeMax) return fail(Code::invalid_argument, "token", "is too long", kRemedy);
  const std::string_view body = text.substr(kPrefix.size());
  const auto odd = std::ranges::find_if_not(body, is_base64url);
  if (odd != body.end()) {
    return fail(Code::invalid_argument, "token",
                "is mistyped: character " +
                    std::to_string(kPrefix.size() + static_cast<std::size_t>(odd - body.begin()) + 1) +
                    " does not belong in a token",
                kRemedy);
  }
  const std::vector<std::byte> bytes = from_base64url(body);
  if (bytes.size() < 4) return fail(Code::invalid_argument, "token", "is cut short", kRemedy);
  const std::size_t address_size = read_u32(bytes);
  if (address_size > limits::kTextLengthMax) return fail(Code::invalid_argument, "token", "is mistyped", kRemedy);
  if (bytes.size() < kFixedSize + address_size) return fail(Code::invalid_argument, "token", "is cut short", kRemedy);
  if (bytes.size() > kFixedSize + address_size) {
    return fail(Code::invalid_argument, "token", "is too long: something was added to its end", kRemedy);
  }
  const std::span<const std::byte> all(bytes);
  Token token;
  token.address.resize(address_size);
  std::memcpy(token.address.data(), all.data() + 4, address_size);
  std::ranges::copy(all.subspan(4 + address_size, 32), token.ca_sha256.begin());
  std::ranges::copy(all.subspan(4 + address_size + 32, 32), token.secret.begin());
  // One token has one spelling: bits of the last character that code nothing must be as encode_token leaves them.
  if (read_u32(all.last(4)) != crc32c(all.first(all.size() - 4)) || encode_token(token) != text) {
    return fail(Code::invalid_argument, "token", "is mistyped: its checksum does not fit", kRemedy);
  }
  return token;
}

}  // namespace tidemark::net
