#include "server/tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ranges>
#include <utility>
#include <vector>

#include "base/hex.h"
#include "base/random.h"
#include "server/private_file.h"

namespace tidemark::server {
namespace {

constexpr int kFormat = 1;
constexpr const char* kNewToken = "make a new one on the server with `tidemark token create`";

}  // namespace

Result<std::unique_ptr<Tokens>> Tokens::load(const std::string& path, const Clock& clock) {
  std::unique_ptr<Tokens> tokens(new Tokens(path, clock));
  const auto text = read_private_file(path);
  if (!text && text.error().code == Code::not_found) return tokens;
  if (!text) return std::unexpected(text.error());
  const auto damaged = [&] {
    return fail(Code::corrupt, path, "not a list of tokens",
                "remove it and make new tokens; enrolled machines do not need it");
  };
  const auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("tokens") || !json["tokens"].is_array()) return damaged();
  if (json.value("format", 0) != kFormat)
    return fail(Code::unsupported, path, "written by a newer version", "run the version that wrote it");
  for (const auto& item : json["tokens"]) {
    if (!item.is_object() || !item.contains("sha256") || !item["sha256"].is_string() || !item.contains("expires_us") ||
        !item["expires_us"].is_number_integer() || !item.contains("used") || !item["used"].is_boolean())
      return damaged();
    Sha256 digest;
    if (!from_hex(item["sha256"].get<std::string>(), digest)) return damaged();
    TokenEntry entry{
        .expires_us = item["expires_us"].get<WallMicros>(), .machine = std::nullopt, .used = item["used"].get<bool>()};
    if (item.contains("machine")) {
      if (!item["machine"].is_string()) return damaged();
      entry.machine = MachineId::parse(item["machine"].get<std::string>());
      if (!entry.machine) return damaged();
    }
    tokens->entries_[digest] = entry;
  }
  return tokens;
}

Result<Tokens::Created> Tokens::create(std::chrono::seconds ttl, std::optional<MachineId> machine) {
  Created created;
  secure_random(created.secret);
  const std::lock_guard lock(mutex_);
  const WallMicros now = clock_.wall_us();
  forget_locked();
  if (std::ranges::count_if(entries_, [](const auto& item) { return !item.second.used; }) >= kCountMax)
    return fail(Code::busy, "tokens", "there are " + std::to_string(kCountMax) + " unused tokens already",
                "wait until some are used or expire");
  created.expires_us = now + std::chrono::duration_cast<std::chrono::microseconds>(ttl).count();
  const Sha256 digest = sha256(std::span<const std::byte>(created.secret));
  entries_[digest] = TokenEntry{.expires_us = created.expires_us, .machine = machine, .used = false};
  if (const auto saved = save_locked(); !saved) {
    entries_.erase(digest);
    return std::unexpected(saved.error());
  }
  return created;
}

Result<TokenEntry> Tokens::check_locked(const Sha256& digest) const {
  const auto found = entries_.find(digest);
  if (found == entries_.end()) return fail(Code::unauthenticated, "token", "this server does not know it", kNewToken);
  const TokenEntry& entry = found->second;
  if (entry.expires_us <= clock_.wall_us())
    return fail(Code::unauthenticated, "token", "it expired at " + format_rfc3339(entry.expires_us), kNewToken);
  if (entry.used) return fail(Code::already_exists, "token", "token was already used", kNewToken);
  return entry;
}

Result<TokenEntry> Tokens::check(std::span<const std::byte> secret) {
  const std::lock_guard lock(mutex_);
  return check_locked(sha256(secret));
}

Status Tokens::spend(std::span<const std::byte> secret) {
  const Sha256 digest = sha256(secret);
  const std::lock_guard lock(mutex_);
  TIDEMARK_TRY(check_locked(digest));
  entries_[digest].used = true;
  const auto saved = save_locked();
  if (!saved) entries_[digest].used = false;
  return saved;
}

Status Tokens::give_back(std::span<const std::byte> secret) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(sha256(secret));
  if (found == entries_.end()) return {};  // expired meanwhile
  found->second.used = false;
  return save_locked();
}

void Tokens::forget_locked() {
  const WallMicros now = clock_.wall_us();
  std::erase_if(entries_, [&](const auto& item) { return item.second.expires_us <= now; });
  std::vector<std::pair<WallMicros, Sha256>> used;
  for (const auto& [digest, entry] : entries_)
    if (entry.used) used.emplace_back(entry.expires_us, digest);
  if (used.size() <= kUsedMax) return;
  const auto kept = used.end() - static_cast<std::ptrdiff_t>(kUsedMax);
  std::ranges::nth_element(used, kept);
  for (const auto& forgotten : std::ranges::subrange(used.begin(), kept)) entries_.erase(forgotten.second);
}

Status Tokens::save_locked() {
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [digest, entry] : entries_) {
    nlohmann::json item = {{"sha256", to_hex(digest)}, {"expires_us", entry.expires_us}, {"used", entry.used}};
    if (entry.machine) item["machine"] = entry.machine->to_string();
    list.push_back(std::move(item));
  }
  return write_private_file(path_, nlohmann::json{{"format", kFormat}, {"tokens", std::move(list)}}.dump(1) + "\n");
}

}  // namespace tidemark::server
