// Enrolment tokens of this server: authority/tokens.json, written atomically, mode 0600.
//
// A token is known by the SHA-256 of its secret; the secret itself is never stored. It works once:
//   spend()      marks it used, durably, before the machine's record is written
//   give_back()  when that record could not be made: it may be used again
// A crash between the two leaves it used with no machine behind it: then a new token is made. The kUsedMax used tokens
// that expire last are kept, so that whoever tries one again is told so; an older one is unknown. All expired ones are
// dropped at the next write. The whole file is written anew each time: ten thousand machines are enrolled in a row.
//
// Thread-safe. Every call may write a file: not on a shard's thread.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/crypto.h"
#include "base/ids.h"
#include "base/status.h"

namespace tidemark::server {

struct TokenEntry {
  WallMicros expires_us = 0;
  std::optional<MachineId> machine;  // set: it re-enrols this one
  bool used = false;
};

class Tokens {
 public:
  static constexpr std::ptrdiff_t kCountMax = 10'000;  // neither expired nor used
  static constexpr std::size_t kUsedMax = 100;

  static Result<std::unique_ptr<Tokens>> load(const std::string& path, const Clock& clock);

  struct Created {
    std::array<std::byte, 32> secret;
    WallMicros expires_us;
  };
  Result<Created> create(std::chrono::seconds ttl, std::optional<MachineId> machine);

  // Looks without spending. Code::unauthenticated: unknown or expired; already_exists: used.
  Result<TokenEntry> check(std::span<const std::byte> secret);
  Status spend(std::span<const std::byte> secret);
  Status give_back(std::span<const std::byte> secret);

 private:
  Tokens(std::string path, const Clock& clock) : path_(std::move(path)), clock_(clock) {}
  Result<TokenEntry> check_locked(const Sha256& digest) const;
  Status save_locked();
  void forget_locked();

  std::string path_;
  const Clock& clock_;
  std::mutex mutex_;
  std::map<Sha256, TokenEntry> entries_;
};

}  // namespace tidemark::server
