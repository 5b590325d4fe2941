#include "bench/load/histogram.h"

#include <algorithm>
#include <cmath>

namespace tidemark::bench {

std::size_t Histogram::bucket_of(std::uint64_t us) {
  if (us < kSteps) return us;
  const auto octave = static_cast<std::size_t>(std::bit_width(us)) - static_cast<std::size_t>(std::bit_width(kSteps));
  if (octave >= kOctaves) return kSteps * (kOctaves + 1) - 1;
  return kSteps * (octave + 1) + ((us >> octave) - kSteps);
}

std::uint64_t Histogram::upper_end(std::size_t bucket) {
  if (bucket < kSteps) return bucket;
  const std::size_t octave = bucket / kSteps - 1;
  return ((kSteps + bucket % kSteps + 1) << octave) - 1;
}

void Histogram::add(std::uint64_t us) {
  ++buckets_[bucket_of(us)];
  ++count_;
  sum_ += us;
}

void Histogram::add(const Histogram& other) {
  for (std::size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  sum_ += other.sum_;
}

Histogram Histogram::minus(const Histogram& earlier) const {
  Histogram rest = *this;
  for (std::size_t i = 0; i < buckets_.size(); ++i) rest.buckets_[i] -= earlier.buckets_[i];
  rest.count_ -= earlier.count_;
  rest.sum_ -= earlier.sum_;
  return rest;
}

std::uint64_t Histogram::max() const {
  for (std::size_t i = buckets_.size(); i-- > 0;)
    if (buckets_[i] != 0) return upper_end(i);
  return 0;
}

std::uint64_t Histogram::percentile(double share) const {
  if (count_ == 0) return 0;
  const auto rank =
      std::max<std::uint64_t>(1, static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(count_))));
  std::uint64_t below = 0;
  for (std::size_t i = 0; i < buckets_.size(); ++i) {
    below += buckets_[i];
    if (below >= rank) return upper_end(i);
  }
  return max();
}

}  // namespace tidemark::bench
