// Cryptographic primitives, all from OpenSSL. Certificates and TLS stand in net/. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace tidemark {

using Sha256 = std::array<std::byte, 32>;

Sha256 sha256(std::span<const std::byte> bytes);
inline Sha256 sha256(std::string_view text) { return sha256(std::as_bytes(std::span(text))); }

// In time that does not depend on where they differ.
bool equal_secrets(std::span<const std::byte> a, std::span<const std::byte> b);

}  // namespace tidemark
