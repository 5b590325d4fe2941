// Latencies in buckets of constant relative width (1.6 %), from 1 us to over an hour; of fixed size whatever is
// counted. Two of one source can be subtracted, which gives the latencies in between. Not thread-safe.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace tidemark::bench {

class Histogram {
 public:
  static constexpr std::size_t kSteps = 64;    // in each doubling
  static constexpr std::size_t kOctaves = 27;  // above the first kSteps, which are exact

  void add(std::uint64_t us);
  void add(const Histogram& other);
  Histogram minus(const Histogram& earlier) const;  // of the same source

  std::uint64_t count() const { return count_; }
  std::uint64_t max() const;  // upper end of the highest bucket that is used; 0 when empty
  double mean() const { return count_ == 0 ? 0 : static_cast<double>(sum_) / static_cast<double>(count_); }
  // Upper end of the bucket below which `share` of the values lie, in us; 0 when empty.
  std::uint64_t percentile(double share) const;

  static std::size_t bucket_of(std::uint64_t us);
  static std::uint64_t upper_end(std::size_t bucket);
  const auto& buckets() const { return buckets_; }

 private:
  std::array<std::uint64_t, kSteps*(kOctaves + 1)> buckets_{};
  std::uint64_t count_ = 0, sum_ = 0;
};

}  // namespace tidemark::bench
