// Cryptographic primitives, all from OpenSSL. Certificates and TLS stand in net/. Thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace tidemark {

using Sha256 = std::array<std::byte, 32>;

Sha256 sha256(std::span<const std::byte> bytes);
inline Sha256 sha256(std::string_view text) { return sha256(std::as_bytes(std::span(text))); }

// SHA-256 over pieces; the result equals sha256 of their concatenation. Belongs to one thread.
class Sha256Stream {
 public:
  Sha256Stream();
  ~Sha256Stream();
  Sha256Stream(Sha256Stream&& other) noexcept;
  Sha256Stream& operator=(Sha256Stream&& other) noexcept;
  void update(std::span<const std::byte> bytes);
  Sha256 finish();  // once; then only to be destroyed

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// In time that does not depend on where they differ.
bool equal_secrets(std::span<const std::byte> a, std::span<const std::byte> b);

}  // namespace tidemark
