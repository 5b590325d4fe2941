#include "storage/sealing.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/check.h"
#include "base/planted.h"
#include "base/random.h"
#include "storage/volume_keys.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kIdentitySize = offsetof(wire::BlockHeader, hash_low);
constexpr std::size_t kHashSize = sizeof(Hash128);
static_assert(wire::kSealedOverhead == kSealNonceSize + kHashSize + Aes256Gcm::kTagSize);
static_assert(kSealNonceSize == 12 + Aes256Gcm::kNonceSize);

using Identity = std::array<std::byte, MachineId::kSize + kIdentitySize>;

// What a sealed block claims to be.
Identity identity_of(const MachineId& machine, const wire::BlockHeader& header) {
  Identity identity;
  std::memcpy(identity.data(), machine.bytes().data(), MachineId::kSize);
  std::memcpy(identity.data() + MachineId::kSize, &header, kIdentitySize);
  return identity;
}

std::uint64_t next_tag() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

std::unexpected<Error> corrupt(const wire::BlockHeader& header, std::string what) {
  return fail(Code::corrupt, "block at granule " + std::to_string(header.first_granule), std::move(what));
}

}  // namespace

VolumeKey::VolumeKey(const Key256& of_volume)
    : key(of_volume), hash_key(derive_key(of_volume, 'H', std::array<std::byte, 12>{})), tag(next_tag()) {}

// --- sealing ---

BlockSealer::BlockSealer() {
  if (!planted(Planted::nonces_begin_anew)) secure_random(prefix_);
}

void BlockSealer::seal(const MachineId& machine, const VolumeKey& key, const wire::BlockHeader& header,
                       std::span<const std::byte> stored, std::span<std::byte> to) {
  TIDEMARK_CHECK(!header.sealed() && stored.size() == header.stored_size && !stored.empty());
  TIDEMARK_CHECK(to.size() == sizeof header + stored.size() + wire::kSealedOverhead);
  if (loaded_ != key.tag) {
    cipher_.set_key(derive_key(key.key, 'X', prefix_));
    loaded_ = key.tag;
  }
  const std::span<std::byte> sealed = to.subspan(sizeof header);
  std::ranges::copy(prefix_, sealed.begin());
  const std::span<std::byte, Aes256Gcm::kNonceSize> nonce = sealed.subspan<12, Aes256Gcm::kNonceSize>();
  ++counter_;
  std::memset(nonce.data(), 0, nonce.size());
  std::memcpy(nonce.data(), &counter_, sizeof counter_);

  wire::BlockHeader own = header;
  own.stored_size += wire::kSealedOverhead;
  own.flags = wire::kSealedFlag;
  const Hash128 sent = header.hash();
  cipher_.seal(nonce, identity_of(machine, own), std::as_bytes(std::span(&sent, 1)), stored,
               sealed.subspan(kSealNonceSize));
  const Hash128 hash = wire::block_hash(machine, own, sealed);
  own.hash_low = hash.low;
  own.hash_high = hash.high;
  std::memcpy(to.data(), &own, sizeof own);
}

// --- opening ---

Status BlockOpener::open(const MachineId& machine, const VolumeKey& key, wire::BlockHeader& header,
                         std::span<const std::byte> sealed, std::span<std::byte> to) {
  if (!header.sealed() || sealed.size() != header.stored_size || sealed.size() <= wire::kSealedOverhead ||
      to.size() != sealed.size() - wire::kSealedOverhead) {
    return corrupt(header, "it is not a sealed block of its size");
  }
  if (loaded_ != key.tag || !std::ranges::equal(prefix_, sealed.first(prefix_.size()))) {
    std::ranges::copy(sealed.first(prefix_.size()), prefix_.begin());
    cipher_.set_key(derive_key(key.key, 'X', prefix_));
    loaded_ = key.tag;
  }
  Hash128 sent;
  if (!cipher_.open(sealed.subspan<12, Aes256Gcm::kNonceSize>(), identity_of(machine, header),
                    sealed.subspan(kSealNonceSize), std::as_writable_bytes(std::span(&sent, 1)), to)) {
    return corrupt(header, "it does not decrypt: it is not what was sealed here with its volume's key");
  }
  wire::BlockHeader own = header;
  own.stored_size -= wire::kSealedOverhead;
  own.flags = 0;
  own.hash_low = sent.low;
  own.hash_high = sent.high;
  if (wire::block_hash(machine, own, to) != sent) return corrupt(header, "it decrypts to other bytes than were sent");
  header = own;
  return {};
}

// --- hashes ---

void HashSealer::load(const VolumeKey& key) {
  if (loaded_ == key.tag) return;
  cipher_.set_key(key.hash_key);
  loaded_ = key.tag;
}

Hash128 HashSealer::seal(const VolumeKey& key, const Hash128& hash) {
  load(key);
  Aes256Block::Block block;
  std::memcpy(block.data(), &hash, sizeof hash);
  block = cipher_.encrypt(block);
  Hash128 sealed;
  std::memcpy(&sealed, block.data(), sizeof sealed);
  return sealed;
}

Hash128 HashSealer::open(const VolumeKey& key, const Hash128& sealed) {
  load(key);
  Aes256Block::Block block;
  std::memcpy(block.data(), &sealed, sizeof sealed);
  block = cipher_.decrypt(block);
  Hash128 hash;
  std::memcpy(&hash, block.data(), sizeof hash);
  return hash;
}

// --- decoding ---

StoredDecoder::StoredDecoder(std::shared_ptr<const VolumeKeys> keys) : keys_(std::move(keys)) {}
StoredDecoder::~StoredDecoder() = default;
StoredDecoder::StoredDecoder(StoredDecoder&&) noexcept = default;

Status StoredDecoder::decode(const MachineId& machine, VolumeId volume, wire::BlockHeader header,
                             std::span<const std::byte> stored, std::span<std::byte> plain) {
  if (!header.sealed()) return decoder_.decode(header, stored, plain);
  if (volume != volume_ || key_ == nullptr) {
    key_ = keys_ == nullptr ? nullptr : keys_->find(volume);
    volume_ = volume;
  }
  if (key_ == nullptr) return corrupt(header, "it is encrypted, and its volume has no key");
  if (stored.size() <= wire::kSealedOverhead || stored.size() > limits::kBlockPlainSizeMax + wire::kSealedOverhead) {
    return corrupt(header, "it is not a sealed block of its size");
  }
  if (opened_ == nullptr) opened_ = std::make_unique<std::array<std::byte, limits::kBlockPlainSizeMax>>();
  const std::span<std::byte> opened = std::span(*opened_).first(stored.size() - wire::kSealedOverhead);
  TIDEMARK_TRY(opener_.open(machine, *key_, header, stored, opened));
  return decoder_.decode(header, opened, plain);
}

}  // namespace tidemark::storage
