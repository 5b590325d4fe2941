#include "base/crypto_seal.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/random.h"

namespace tidemark {

namespace {

// A fetch per call would cost more than a short block.
const EVP_CIPHER* gcm() {
  static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  TIDEMARK_CHECK(cipher != nullptr);
  return cipher;
}

const EVP_CIPHER* ecb() {
  static const EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "AES-256-ECB", nullptr);
  TIDEMARK_CHECK(cipher != nullptr);
  return cipher;
}

struct FreeContext {
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

Context new_context() {
  Context context(EVP_CIPHER_CTX_new());
  TIDEMARK_CHECK(context != nullptr);
  return context;
}

const unsigned char* in(const std::byte* bytes) { return reinterpret_cast<const unsigned char*>(bytes); }
unsigned char* out(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

}  // namespace

Key256::~Key256() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

Key256 Key256::random() {
  Key256 key;
  secure_random(key.bytes_);
  return key;
}

// --- AES-256-GCM ---

struct Aes256Gcm::State {
  Use use;
  Context context = new_context();

  void update(std::span<const std::byte> from, std::byte* to) {
    if (from.empty()) return;
    int size = 0;
    TIDEMARK_CHECK(EVP_CipherUpdate(context.get(), to == nullptr ? nullptr : out(to), &size, in(from.data()),
                                    static_cast<int>(from.size())) == 1);
    TIDEMARK_CHECK(static_cast<std::size_t>(size) == from.size());
  }
  void start(Nonce nonce, std::span<const std::byte> aad) {
    TIDEMARK_CHECK(EVP_CipherInit_ex2(context.get(), nullptr, nullptr, in(nonce.data()), -1, nullptr) == 1);
    update(aad, nullptr);
  }
};

Aes256Gcm::Aes256Gcm(Use use) : state_(std::make_unique<State>(State{.use = use})) {}
Aes256Gcm::~Aes256Gcm() = default;
Aes256Gcm::Aes256Gcm(Aes256Gcm&&) noexcept = default;
Aes256Gcm& Aes256Gcm::operator=(Aes256Gcm&&) noexcept = default;

void Aes256Gcm::set_key(const Key256& key) {
  TIDEMARK_CHECK(EVP_CipherInit_ex2(state_->context.get(), gcm(), in(key.bytes().data()), nullptr,
                                    state_->use == Use::seal ? 1 : 0, nullptr) == 1);
}

void Aes256Gcm::seal(Nonce nonce, std::span<const std::byte> aad, std::span<const std::byte> head,
                     std::span<const std::byte> body, std::span<std::byte> to) {
  TIDEMARK_CHECK(state_->use == Use::seal && to.size() == head.size() + body.size() + kTagSize);
  state_->start(nonce, aad);
  state_->update(head, to.data());
  state_->update(body, to.data() + head.size());
  std::byte* const tag = to.data() + head.size() + body.size();
  int size = 0;
  TIDEMARK_CHECK(EVP_CipherFinal_ex(state_->context.get(), out(tag), &size) == 1 && size == 0);
  TIDEMARK_CHECK(EVP_CIPHER_CTX_ctrl(state_->context.get(), EVP_CTRL_AEAD_GET_TAG, kTagSize, tag) == 1);
}

bool Aes256Gcm::open(Nonce nonce, std::span<const std::byte> aad, std::span<const std::byte> sealed,
                     std::span<std::byte> head, std::span<std::byte> body) {
  TIDEMARK_CHECK(state_->use == Use::open && sealed.size() == head.size() + body.size() + kTagSize);
  state_->start(nonce, aad);
  state_->update(sealed.first(head.size()), head.data());
  state_->update(sealed.subspan(head.size(), body.size()), body.data());
  std::array<std::byte, kTagSize> tag;
  std::ranges::copy(sealed.last(kTagSize), tag.begin());
  TIDEMARK_CHECK(EVP_CIPHER_CTX_ctrl(state_->context.get(), EVP_CTRL_AEAD_SET_TAG, kTagSize, tag.data()) == 1);
  int size = 0;
  return EVP_CipherFinal_ex(state_->context.get(), out(tag.data()), &size) == 1;
}

// --- single blocks ---

struct Aes256Block::State {
  Context encrypting = new_context();
  Context decrypting = new_context();

  static Block once(EVP_CIPHER_CTX* context, const Block& block) {
    Block result;
    int size = 0;
    TIDEMARK_CHECK(EVP_CipherUpdate(context, out(result.data()), &size, in(block.data()), kSize) == 1 && size == kSize);
    return result;
  }
};

Aes256Block::Aes256Block() : state_(std::make_unique<State>()) {}
Aes256Block::~Aes256Block() = default;
Aes256Block::Aes256Block(Aes256Block&&) noexcept = default;
Aes256Block& Aes256Block::operator=(Aes256Block&&) noexcept = default;

void Aes256Block::set_key(const Key256& key) {
  for (const bool encrypts : {true, false}) {
    EVP_CIPHER_CTX* const context = encrypts ? state_->encrypting.get() : state_->decrypting.get();
    TIDEMARK_CHECK(EVP_CipherInit_ex2(context, ecb(), in(key.bytes().data()), nullptr, encrypts ? 1 : 0, nullptr) == 1);
    EVP_CIPHER_CTX_set_padding(context, 0);
  }
}

Aes256Block::Block Aes256Block::encrypt(const Block& block) { return State::once(state_->encrypting.get(), block); }
Aes256Block::Block Aes256Block::decrypt(const Block& block) { return State::once(state_->decrypting.get(), block); }

// --- derived keys ---

Key256 derive_key(const Key256& key, char label, std::span<const std::byte, 12> context) {
  thread_local Aes256Block cipher;
  cipher.set_key(key);
  // CMAC's first subkey: the encrypted zero block, doubled in GF(2^128).
  Aes256Block::Block subkey = cipher.encrypt({});
  const bool carry = (subkey[0] & std::byte{0x80}) != std::byte{0};
  for (std::size_t i = 0; i < subkey.size(); ++i) {
    const std::byte next = i + 1 < subkey.size() ? subkey[i + 1] : std::byte{0};
    subkey[i] = (subkey[i] << 1) | (next >> 7);
  }
  if (carry) subkey.back() ^= std::byte{0x87};

  Key256::Bytes derived;
  for (std::size_t half = 0; half < 2; ++half) {
    Aes256Block::Block message{};
    message[1] = static_cast<std::byte>(half + 1);
    message[2] = static_cast<std::byte>(label);
    std::ranges::copy(context, message.begin() + 4);
    for (std::size_t i = 0; i < message.size(); ++i) message[i] ^= subkey[i];
    std::ranges::copy(cipher.encrypt(message), derived.begin() + static_cast<std::ptrdiff_t>(half * message.size()));
  }
  Key256 result(derived);
  OPENSSL_cleanse(derived.data(), derived.size());
  OPENSSL_cleanse(subkey.data(), subkey.size());
  return result;
}

}  // namespace tidemark
