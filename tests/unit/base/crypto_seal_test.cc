#include "base/crypto_seal.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "base/hex.h"

namespace tidemark {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

Key256 key_of(unsigned char value) {
  Key256::Bytes bytes;
  bytes.fill(static_cast<std::byte>(value));
  return Key256(bytes);
}

std::string xaes_seal(const Key256& key, std::string_view nonce, std::string_view aad, std::string_view text) {
  Aes256Gcm cipher(Aes256Gcm::Use::seal);
  cipher.set_key(derive_key(key, 'X', bytes_of(nonce).first<12>()));
  std::vector<std::byte> sealed(text.size() + Aes256Gcm::kTagSize);
  cipher.seal(bytes_of(nonce).subspan<12, 12>(), bytes_of(aad), {}, bytes_of(text), sealed);
  return to_hex(sealed);
}

// The two test vectors of c2sp.org/XAES-256-GCM.
TEST(CryptoSeal, DerivedKeysAreThoseOfXaes256Gcm) {
  EXPECT_EQ(xaes_seal(key_of(1), "ABCDEFGHIJKLMNOPQRSTUVWX", "", "XAES-256-GCM"),
            "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
  EXPECT_EQ(xaes_seal(key_of(3), "ABCDEFGHIJKLMNOPQRSTUVWX", "c2sp.org/XAES-256-GCM", "XAES-256-GCM"),
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d");
}

TEST(CryptoSeal, WhatIsSealedInTwoPiecesOpensInTwoPieces) {
  const Key256 key = Key256::random();
  const std::string head(16, 'h'), body(5000, 'b'), aad = "place";
  const std::string nonce = "twelve bytes";
  Aes256Gcm seal(Aes256Gcm::Use::seal), open(Aes256Gcm::Use::open);
  seal.set_key(key);
  open.set_key(key);
  for (int round = 0; round < 3; ++round) {  // the same contexts again
    std::vector<std::byte> sealed(head.size() + body.size() + Aes256Gcm::kTagSize);
    seal.seal(bytes_of(nonce).first<12>(), bytes_of(aad), bytes_of(head), bytes_of(body), sealed);
    std::string head_out(head.size(), 0), body_out(body.size(), 0);
    const auto into = [](std::string& text) { return std::as_writable_bytes(std::span(text)); };
    EXPECT_TRUE(open.open(bytes_of(nonce).first<12>(), bytes_of(aad), sealed, into(head_out), into(body_out)));
    EXPECT_EQ(head_out, head);
    EXPECT_EQ(body_out, body);
    EXPECT_FALSE(open.open(bytes_of(nonce).first<12>(), bytes_of("plack"), sealed, into(head_out), into(body_out)));
    EXPECT_FALSE(
        open.open(bytes_of("twelve bytez").first<12>(), bytes_of(aad), sealed, into(head_out), into(body_out)));
    for (const std::size_t at : {std::size_t{0}, head.size(), sealed.size() - 1}) {
      sealed[at] ^= std::byte{1};
      EXPECT_FALSE(open.open(bytes_of(nonce).first<12>(), bytes_of(aad), sealed, into(head_out), into(body_out)));
      sealed[at] ^= std::byte{1};
    }
  }
  Aes256Gcm other(Aes256Gcm::Use::open);
  other.set_key(Key256::random());
  std::vector<std::byte> sealed(Aes256Gcm::kTagSize);
  seal.seal(bytes_of(nonce).first<12>(), {}, {}, {}, sealed);
  EXPECT_FALSE(other.open(bytes_of(nonce).first<12>(), {}, sealed, {}, {}));
}

// FIPS-197, appendix C.3.
TEST(CryptoSeal, SingleBlocksAreAes256) {
  Key256::Bytes key;
  Aes256Block::Block block;
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::byte>(i);
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(i * 0x11);
  Aes256Block cipher;
  cipher.set_key(Key256(key));
  const auto encrypted = cipher.encrypt(block);
  EXPECT_EQ(to_hex(encrypted), "8ea2b7ca516745bfeafc49904b496089");
  EXPECT_EQ(cipher.decrypt(encrypted), block);
}

TEST(CryptoSeal, LabelsAndContextsGiveOtherKeys) {
  const Key256 key = key_of(7);
  std::array<std::byte, 12> context{};
  const Key256 one = derive_key(key, 'X', context);
  EXPECT_EQ(one.bytes(), derive_key(key, 'X', context).bytes());
  EXPECT_NE(one.bytes(), derive_key(key, 'H', context).bytes());
  context[11] = std::byte{1};
  EXPECT_NE(one.bytes(), derive_key(key, 'X', context).bytes());
}

}  // namespace
}  // namespace tidemark
