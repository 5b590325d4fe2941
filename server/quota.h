// A machine's quota: how many bytes its versions may take (Index::MachineSpace::stored_bytes). Pure.
#pragma once

#include <cstdint>

namespace tidemark::server {

inline constexpr std::uint64_t kQuotaMin = 1 << 20;  // bytes
inline constexpr std::uint64_t kQuotaMax = std::uint64_t{1} << 60;

enum class QuotaState : std::uint8_t { none, ok, warning, full };
const char* to_string(QuotaState state);

// Warning from 90 % on, until 88 %; full from 100 % on, until 98 % or until there is room under a quota that was
// raised.
class QuotaGate {
 public:
  // What it is now. `quota` 0: there is none.
  QuotaState judge(std::uint64_t stored, std::uint64_t quota);
  QuotaState state() const { return state_; }

 private:
  QuotaState state_ = QuotaState::none;
  std::uint64_t quota_ = 0;
};

}  // namespace tidemark::server
