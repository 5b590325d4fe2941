// Symmetric encryption, from OpenSSL: AES-256-GCM, single blocks of AES-256, and keys derived from a key. What is
// sealed with it, and how its nonces stay unique, is the caller's business (storage/sealing.h).
//
// The ciphers keep their OpenSSL contexts: nothing is allocated per call. Each belongs to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>

namespace tidemark {

// A secret of 256 bits; wiped when it goes.
class Key256 {
 public:
  static constexpr std::size_t kSize = 32;
  using Bytes = std::array<std::byte, kSize>;
  Key256() = default;  // zeroes
  explicit Key256(const Bytes& bytes) : bytes_(bytes) {}
  ~Key256();
  Key256(const Key256&) = default;
  Key256& operator=(const Key256&) = default;
  static Key256 random();
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_{};
};

class Aes256Gcm {
 public:
  static constexpr std::size_t kNonceSize = 12;
  static constexpr std::size_t kTagSize = 16;
  using Nonce = std::span<const std::byte, kNonceSize>;
  enum class Use : bool { seal, open };

  explicit Aes256Gcm(Use use);
  ~Aes256Gcm();
  Aes256Gcm(Aes256Gcm&&) noexcept;
  Aes256Gcm& operator=(Aes256Gcm&&) noexcept;

  void set_key(const Key256& key);
  // The text is `head` and then `body`, so that what stands apart need not be put together. `to` is as long as both and
  // a tag. A nonce must never be used twice with one key.
  void seal(Nonce nonce, std::span<const std::byte> aad, std::span<const std::byte> head,
            std::span<const std::byte> body, std::span<std::byte> to);
  // False: it is not what was sealed with this key, nonce and aad; `head` and `body` hold nothing of use then. `sealed`
  // is as long as both and a tag.
  [[nodiscard]] bool open(Nonce nonce, std::span<const std::byte> aad, std::span<const std::byte> sealed,
                          std::span<std::byte> head, std::span<std::byte> body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// AES-256 on single blocks of 16 bytes: a permutation, without nonce or tag.
class Aes256Block {
 public:
  static constexpr std::size_t kSize = 16;
  using Block = std::array<std::byte, kSize>;
  Aes256Block();
  ~Aes256Block();
  Aes256Block(Aes256Block&&) noexcept;
  Aes256Block& operator=(Aes256Block&&) noexcept;

  void set_key(const Key256& key);
  Block encrypt(const Block& block);
  Block decrypt(const Block& block);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The key derivation of XAES-256-GCM (c2sp.org/XAES-256-GCM): NIST SP 800-108r1 in counter mode over CMAC-AES-256.
// XAES-256-GCM is this with the label 'X' and the first 12 bytes of its 24-byte nonce as context, then AES-256-GCM with
// the rest of the nonce. Other labels give keys that have nothing to do with those.
Key256 derive_key(const Key256& key, char label, std::span<const std::byte, 12> context);

}  // namespace tidemark
