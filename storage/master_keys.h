// Master keys: what the keys of volumes are wrapped with. They stand in a file of the operator's, not in the store:
//
//   # any line that begins with # is a comment
//   key 5f0c2d51a9e3b874 8f4b...(64 hex digits)... 2026-11-21T11:20:00Z
//
// a line each, the one in use first: its id, the key, when it was made. The id is the first 64 bits of a SHA-256 over
// the key, so a line that was copied wrongly is found. Older keys stay until nothing is wrapped with them any more.
//
// Immutable, thread-safe.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/crypto_seal.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::storage {

using MasterKeyId = Named<struct MasterKeyTag, std::uint64_t>;
std::string to_string(MasterKeyId id);  // 16 hex digits
Result<MasterKeyId> parse_master_key_id(std::string_view text);

class MasterKeys {
 public:
  struct MasterKey {
    MasterKeyId id;
    Key256 key;
    WallMicros created_us = 0;
  };

  // `path` is for errors. Code::corrupt says which line is wrong.
  static Result<MasterKeys> parse(std::string_view text, std::string path);
  std::string text() const;

  // With a new random key in front, which is the one in use from then on.
  MasterKeys with_new_key(WallMicros now_us) const;
  // Without all but the one in use.
  MasterKeys current_only() const;

  explicit MasterKeys(std::string path) : path_(std::move(path)) {}  // none; to begin with
  bool empty() const { return keys_.empty(); }
  const std::string& path() const { return path_; }
  const std::vector<MasterKey>& keys() const { return keys_; }  // the one in use first
  const MasterKey& current() const { return keys_.front(); }    // there must be one
  const MasterKey* find(MasterKeyId id) const;

  // Code::not_found, with what to do, unless all of these are there. `who` needs them: a path.
  Status need(const std::vector<MasterKeyId>& ids, const std::string& who) const;

 private:
  std::string path_;
  std::vector<MasterKey> keys_;
};

// A store that needs these keys, and no key file is configured or there is none.
Error no_master_key_file(const std::string& path, const std::vector<MasterKeyId>& ids, const std::string& who);

// A volume's key as it is stored: nonce 12 | AES-256-GCM of the key | tag 16, bound to its place.
struct WrapPlace {
  PartitionId partition;
  MachineId machine;
  VolumeId volume;
};
std::string wrap_key(const Key256& master, const Key256& key, const WrapPlace& place);
// Code::corrupt: the bytes are not what wrap_key made with this key for this place.
Result<Key256> unwrap_key(const Key256& master, std::string_view wrapped, const WrapPlace& place);

}  // namespace tidemark::storage
