// Checksums. CRC32C (Castagnoli, RFC 3720 appendix B.4) guards headers; XXH3 (xxHash library) guards content.
// SHA-256 stands in base/crypto.h. Pure functions, thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tidemark {

// `seed` is a previous result, to go on, or a secret, so that foreign bytes cannot pass.
std::uint32_t crc32c(std::span<const std::byte> bytes, std::uint32_t seed = 0);

struct Hash128 {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  bool operator==(const Hash128&) const = default;
  // Order-free sums of hashes, by lane and modulo 2^64: the digest of a set.
  Hash128& operator+=(const Hash128& other) {
    low += other.low;
    high += other.high;
    return *this;
  }
};

std::uint64_t xxh3_64(std::span<const std::byte> bytes, std::uint64_t seed = 0);
Hash128 xxh3_128(std::span<const std::byte> bytes, std::uint64_t seed = 0);

// XXH3-128 over pieces; the result equals xxh3_128 of their concatenation. Belongs to one thread.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(Xxh3Stream&& other) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&& other) noexcept;
  void reset();
  void update(std::span<const std::byte> bytes);
  Hash128 digest() const;

 private:
  void* state_;
};

}  // namespace tidemark
