// The one-time enrolment token: what an operator copies from the server to a source machine. Carries the server's
// address, the SHA-256 of its CA certificate and a secret; the server keeps only the secret's SHA-256, an expiry and
// the machine it is for, if any (server/tokens.h). Text form: "tmk1-" + base64url of a CRC-checked fixed layout.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::net {

struct Token {
  std::string address;  // host:port
  std::array<std::byte, 32> ca_sha256{};
  std::array<std::byte, 32> secret{};
  bool operator==(const Token&) const = default;
};

std::string encode_token(const Token& token);
Result<Token> decode_token(std::string_view text);  // says what is wrong: not a token, cut short, mistyped

}  // namespace tidemark::net
