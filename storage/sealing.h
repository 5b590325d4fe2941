// Sealing: how blocks are encrypted where they are stored.
//
// A sealed block has the same 48-byte header, with wire::kSealedFlag, and instead of its bytes
//
//   nonce 24 | XAES-256-GCM of (its hash as it was sent 16 | its bytes as they were sent) | tag 16
//
// The additional data is what the block claims to be: the machine and the header up to the hash. The header's hash is
// over the nonce, ciphertext and tag, so damage is found without a key; the tag finds what was changed on purpose; the
// hash inside still tells that what comes out is what the agent sent. That hash must not stand in the clear: anybody
// could confirm a guess of the content with it.
//
// Nonces. Two blocks of one key must never have the same one. A BlockSealer draws the first 12 bytes of its nonces at
// random, once, when it is made, and counts in the others; no value of the counter is used twice. So two nonces can
// only be equal if two sealers drew the same 96 bits: for a million sealers the odds are 2^-57. (XAES-256-GCM derives
// the GCM key from those 12 bytes, so the counter has a key of its own each time.) Nothing has to be remembered for it:
// it holds across crashes, and also when the data directory is put back from a copy, or runs twice, where a stored
// counter or incarnation would be told the same number again.
//
// Hashes of content that stand elsewhere (the epoch's digest, the sum of an open epoch) are encrypted as single blocks
// of AES: deterministic, which shows no more than that two of them are equal, and they are chained.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/checksum.h"
#include "base/crypto_seal.h"
#include "base/ids.h"
#include "base/status.h"
#include "wire/block.h"

namespace tidemark::storage {

// Of one volume. What is derived from it is derived once.
struct VolumeKey {
  explicit VolumeKey(const Key256& key);
  Key256 key;         // of blocks, by way of their nonces
  Key256 hash_key;    // of hashes
  std::uint64_t tag;  // tells keys apart in this process
};

inline constexpr std::size_t kSealNonceSize = 24;

// Belongs to one thread.
class BlockSealer {
 public:
  BlockSealer();
  // `header` and `stored` are a checked block of data as it was sent; `to` has room for the header and `stored.size() +
  // wire::kSealedOverhead` bytes.
  void seal(const MachineId& machine, const VolumeKey& key, const wire::BlockHeader& header,
            std::span<const std::byte> stored, std::span<std::byte> to);

 private:
  std::array<std::byte, 12> prefix_{};
  std::uint64_t counter_ = 0;
  std::uint64_t loaded_ = 0;  // VolumeKey::tag
  Aes256Gcm cipher_{Aes256Gcm::Use::seal};
};

// Belongs to one thread.
class BlockOpener {
 public:
  // `header` as it is stored, and `sealed` what follows it. On success `header` is as it was sent, and so is `to`,
  // which is wire::kSealedOverhead shorter. Code::corrupt: it is not what was sealed with this key for this place.
  Status open(const MachineId& machine, const VolumeKey& key, wire::BlockHeader& header,
              std::span<const std::byte> sealed, std::span<std::byte> to);

 private:
  std::array<std::byte, 12> prefix_{};
  std::uint64_t loaded_ = 0;
  Aes256Gcm cipher_{Aes256Gcm::Use::open};
};

// 16 bytes for 16 bytes. Belongs to one thread.
class HashSealer {
 public:
  Hash128 seal(const VolumeKey& key, const Hash128& hash);
  Hash128 open(const VolumeKey& key, const Hash128& sealed);

 private:
  void load(const VolumeKey& key);
  std::uint64_t loaded_ = 0;
  Aes256Block cipher_;
};

class VolumeKeys;

// Decodes stored blocks, sealed or not. Belongs to one thread.
class StoredDecoder {
 public:
  // Null: no volume has a key.
  explicit StoredDecoder(std::shared_ptr<const VolumeKeys> keys);
  ~StoredDecoder();
  StoredDecoder(StoredDecoder&&) noexcept;
  // A block of this volume whose header and hash were found sound. `plain` has exactly header.plain_size() bytes.
  Status decode(const MachineId& machine, VolumeId volume, wire::BlockHeader header, std::span<const std::byte> stored,
                std::span<std::byte> plain);

 private:
  std::shared_ptr<const VolumeKeys> keys_;
  wire::BlockDecoder decoder_;
  BlockOpener opener_;
  std::unique_ptr<std::array<std::byte, limits::kBlockPlainSizeMax>> opened_;  // made at first use
  VolumeId volume_;
  std::shared_ptr<const VolumeKey> key_;  // of volume_
};

}  // namespace tidemark::storage
