#include "server/quota.h"

#include <utility>

namespace tidemark::server {

const char* to_string(QuotaState state) {
  switch (state) {
    case QuotaState::none: return "none";
    case QuotaState::ok: return "ok";
    case QuotaState::warning: return "warning";
    case QuotaState::full: return "full";
  }
  return "none";
}

QuotaState QuotaGate::judge(std::uint64_t stored, std::uint64_t quota) {
  const bool same = std::exchange(quota_, quota) == quota;
  const auto above = [&](std::uint64_t percent) { return stored >= quota / 100 * percent; };
  if (quota == 0) return state_ = QuotaState::none;
  const bool was_full = same && state_ == QuotaState::full;
  const bool was_near = same && (was_full || state_ == QuotaState::warning);
  if (stored >= quota || (was_full && above(98))) return state_ = QuotaState::full;
  if (above(90) || (was_near && above(88))) return state_ = QuotaState::warning;
  return state_ = QuotaState::ok;
}

}  // namespace tidemark::server
