#include "server/admission.h"

#include <algorithm>

namespace tidemark::server {

bool SourceRates::take(Bucket& bucket, Time now) const {
  const double elapsed = std::chrono::duration<double>(now - bucket.at).count();
  bucket.tokens = std::min(bucket.tokens + std::max(elapsed, 0.0) * per_second_, per_second_ * kBurstSeconds);
  bucket.at = now;
  if (bucket.tokens < 1) return false;
  bucket.tokens -= 1;
  return true;
}

void SourceRates::forget_full(Time now) {
  std::erase_if(buckets_, [&](const auto& item) {
    const double elapsed = std::chrono::duration<double>(now - item.second.at).count();
    return item.second.tokens + elapsed * per_second_ >= per_second_ * kBurstSeconds;
  });
}

bool SourceRates::allow(const std::string& address, Time now) {
  const Bucket full{per_second_ * kBurstSeconds, now};
  auto found = buckets_.find(address);
  if (found == buckets_.end()) {
    if (buckets_.size() >= kSourcesMax) forget_full(now);
    if (buckets_.size() >= kSourcesMax) {
      if (!overflow_) overflow_ = full;
      return take(*overflow_, now);
    }
    found = buckets_.emplace(address, full).first;
  }
  return take(found->second, now);
}

}  // namespace tidemark::server
