// Randomness behind a seam. Secrets (keys, salts, tokens, identities) come from `secure_random`; everything that a
// test must be able to repeat (jitter, simulated faults) draws from a seeded Random. A Random belongs to one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>

namespace tidemark {

// From the kernel (getrandom). Aborts if the kernel has none: nothing safe could follow. Thread-safe.
void secure_random(std::span<std::byte> bytes);

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t next() { return engine_(); }
  std::uint64_t below(std::uint64_t bound) { return engine_() % bound; }  // bound > 0; the bias is of no matter here
  bool chance(double probability) { return std::uniform_real_distribution<double>(0, 1)(engine_) < probability; }
  void fill(std::span<std::byte> bytes);

 private:
  std::mt19937_64 engine_;
};

}  // namespace tidemark
