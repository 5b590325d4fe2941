#include "agent/tracker.h"

namespace tidemark::agent {

Result<Suspects> DigestComparison::begin_round(const std::vector<std::uint64_t>&) {
  return Suspects{true, "changes are found by comparing digests", {}};
}

Result<std::optional<std::vector<std::vector<GranuleRange>>>> DigestComparison::end_round() { return std::nullopt; }

}  // namespace tidemark::agent
