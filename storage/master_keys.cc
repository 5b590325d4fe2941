#include "storage/master_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/crypto.h"
#include "base/hex.h"
#include "base/random.h"

namespace tidemark::storage {

namespace {

constexpr char kHeader[] =
    "# Master keys of a Tidemark server. Its encrypted data can be read by nobody without this file: keep copies of "
    "it\n"
    "# away from the data, and secret. The first key is the one in use. `tidemarkd key` makes and changes this file.\n";

MasterKeyId id_of(const Key256& key) {
  constexpr std::string_view kLabel = "tidemark master key\n";
  std::array<std::byte, kLabel.size() + Key256::kSize> named;
  std::memcpy(named.data(), kLabel.data(), kLabel.size());
  std::ranges::copy(key.bytes(), named.begin() + kLabel.size());
  const Sha256 digest = sha256(named);
  std::uint64_t id = 0;
  for (std::size_t i = 0; i < sizeof id; ++i) id = id << 8 | std::to_integer<std::uint64_t>(digest.at(i));
  return MasterKeyId(id);
}

std::string listed(const std::vector<MasterKeyId>& ids) {
  std::string text;
  for (const MasterKeyId id : ids) text += (text.empty() ? "" : ", ") + to_string(id);
  return text;
}

// The next word of a line.
std::string_view take_word(std::string_view& line) {
  const std::size_t begin = std::min(line.find_first_not_of(" \t\r"), line.size());
  const std::size_t end = std::min(line.find_first_of(" \t\r", begin), line.size());
  const std::string_view word = line.substr(begin, end - begin);
  line.remove_prefix(end);
  return word;
}

constexpr std::size_t kWrappedSize = Aes256Gcm::kNonceSize + Key256::kSize + Aes256Gcm::kTagSize;

std::array<std::byte, 48> place_bytes(const WrapPlace& place) {
  constexpr std::string_view kLabel = "tidemark volume key\n";
  std::array<std::byte, 48> bytes{};
  static_assert(kLabel.size() + 2 * sizeof(std::uint32_t) + MachineId::kSize <= sizeof bytes);
  std::memcpy(bytes.data(), kLabel.data(), kLabel.size());
  std::byte* at = bytes.data() + kLabel.size();
  const std::uint32_t partition = place.partition.value();
  const std::uint32_t volume = place.volume.value();
  std::memcpy(at, &partition, sizeof partition);
  std::memcpy(at + sizeof partition, &volume, sizeof volume);
  std::memcpy(at + sizeof partition + sizeof volume, place.machine.bytes().data(), MachineId::kSize);
  return bytes;
}

}  // namespace

std::string to_string(MasterKeyId id) { return fmt::format("{:016x}", id.value()); }

Result<MasterKeyId> parse_master_key_id(std::string_view text) {
  std::array<std::byte, sizeof(std::uint64_t)> bytes;
  if (!from_hex(text, bytes)) {
    return fail(Code::invalid_argument, "master key id " + std::string(text), "it is not 16 hexadecimal digits");
  }
  std::uint64_t id = 0;
  for (const std::byte byte : bytes) id = id << 8 | std::to_integer<std::uint64_t>(byte);
  return MasterKeyId(id);
}

Result<MasterKeys> MasterKeys::parse(std::string_view text, std::string path) {
  MasterKeys keys(std::move(path));
  for (std::size_t number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const auto bad = [&](std::string what) {
      return fail(Code::corrupt, fmt::format("{}:{}", keys.path_, number), std::move(what),
                  "restore this file from your copy of it; without the key the data cannot be read");
    };
    const std::string_view first = take_word(line);
    if (first.empty() || first.front() == '#') continue;
    if (first != "key") return bad("a line begins neither with \"key\" nor with #");
    const auto id = parse_master_key_id(take_word(line));
    if (!id) return bad("the key's id is not 16 hexadecimal digits");
    Key256::Bytes bytes;
    if (!from_hex(take_word(line), bytes)) return bad("the key is not 64 hexadecimal digits");
    const MasterKey key{
        .id = *id, .key = Key256(bytes), .created_us = parse_rfc3339(std::string(take_word(line))).value_or(0)};
    bytes.fill(std::byte{0});
    if (key.id != id_of(key.key)) return bad("the key is not the one of its id: one of them was changed");
    if (keys.find(key.id) != nullptr) return bad("the same key stands there twice");
    keys.keys_.push_back(key);
  }
  if (keys.empty()) {
    return fail(Code::corrupt, keys.path_, "there is no key in it", "restore this file from your copy of it");
  }
  return keys;
}

std::string MasterKeys::text() const {
  std::string text = kHeader;
  for (const MasterKey& key : keys_) {
    text += fmt::format("key {} {} {}\n", to_string(key.id), to_hex(key.key.bytes()), format_rfc3339(key.created_us));
  }
  return text;
}

MasterKeys MasterKeys::with_new_key(WallMicros now_us) const {
  MasterKeys more(path_);
  const Key256 key = Key256::random();
  more.keys_.push_back({.id = id_of(key), .key = key, .created_us = now_us});
  more.keys_.insert(more.keys_.end(), keys_.begin(), keys_.end());
  return more;
}

MasterKeys MasterKeys::current_only() const {
  MasterKeys one(path_);
  one.keys_.push_back(current());
  return one;
}

const MasterKeys::MasterKey* MasterKeys::find(MasterKeyId id) const {
  const auto found = std::ranges::find(keys_, id, &MasterKey::id);
  return found == keys_.end() ? nullptr : &*found;
}

Status MasterKeys::need(const std::vector<MasterKeyId>& ids, const std::string& who) const {
  std::vector<MasterKeyId> missing, here;
  for (const MasterKeyId id : ids) {
    if (find(id) == nullptr) missing.push_back(id);
  }
  if (missing.empty()) return {};
  for (const MasterKey& key : keys_) here.push_back(key.id);
  return fail(Code::not_found, path_,
              fmt::format("{} is encrypted under master key {}, and this file has {}", who, listed(missing),
                          empty() ? "none" : listed(here)),
              "put the key file with that key back, from your copy of it; nothing was changed");
}

Error no_master_key_file(const std::string& path, const std::vector<MasterKeyId>& ids, const std::string& who) {
  return {Code::not_found, path,
          fmt::format("the master key file is missing, and {} is encrypted under master key {}", who, listed(ids)),
          "put it back from your copy of it, or say in [storage] master_key_file where it is; nothing was changed"};
}

std::string wrap_key(const Key256& master, const Key256& key, const WrapPlace& place) {
  std::array<std::byte, kWrappedSize> wrapped;
  const auto nonce = std::span(wrapped).first<Aes256Gcm::kNonceSize>();
  secure_random(nonce);  // a master key wraps far fewer keys than would make two random nonces meet
  Aes256Gcm cipher(Aes256Gcm::Use::seal);
  cipher.set_key(master);
  cipher.seal(nonce, place_bytes(place), {}, key.bytes(), std::span(wrapped).subspan(nonce.size()));
  return {reinterpret_cast<const char*>(wrapped.data()), wrapped.size()};
}

Result<Key256> unwrap_key(const Key256& master, std::string_view wrapped, const WrapPlace& place) {
  const auto bytes = std::as_bytes(std::span(wrapped));
  Key256::Bytes key;
  if (bytes.size() == kWrappedSize) {
    Aes256Gcm cipher(Aes256Gcm::Use::open);
    cipher.set_key(master);
    if (cipher.open(bytes.first<Aes256Gcm::kNonceSize>(), place_bytes(place), bytes.subspan(Aes256Gcm::kNonceSize), {},
                    key)) {
      const Key256 result(key);
      key.fill(std::byte{0});
      return result;
    }
  }
  return fail(Code::corrupt, fmt::format("machine {}, volume {}", place.machine.to_string(), place.volume.value()),
              "its key cannot be unwrapped: the stored bytes are damaged, or those of another volume");
}

}  // namespace tidemark::storage
