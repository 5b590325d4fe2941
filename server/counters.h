// What a shard counts. Plain numbers, written by the shard's thread alone; a scrape asks the shard for a copy.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tidemark::server {

// Latencies in seconds over fixed bounds.
struct LatencyHistogram {
  static constexpr std::array<double, 22> kBounds = {0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015,
                                                     0.002,  0.003,   0.005,  0.0075, 0.01,   0.015,   0.025, 0.05,
                                                     0.1,    0.25,    0.5,    1,      2.5,    10};
  std::array<std::uint64_t, kBounds.size() + 1> counts{};  // the last one: above all bounds
  double sum = 0;

  void add(double seconds) {
    std::size_t i = 0;
    while (i < kBounds.size() && seconds > kBounds[i]) ++i;
    ++counts[i];
    sum += seconds;
  }
  void add(const LatencyHistogram& other) {
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += other.counts[i];
    sum += other.sum;
  }
};

// Why somebody was not let in.
enum class Refusal : std::uint8_t {
  source_rate,
  handshakes,
  sessions,
  handshake_failed,
  no_certificate,
  revoked,
  removed,
  quarantined,
  second_session,
  unavailable,
  busy,
  token,
  deadline,
  other,
  kCount
};
inline constexpr std::array<const char*, static_cast<std::size_t>(Refusal::kCount)> kRefusalNames = {
    "source_rate", "handshakes",  "sessions",       "handshake_failed", "no_certificate", "revoked",
    "removed",     "quarantined", "second_session", "unavailable",      "busy",           "token",
    "deadline",    "other"};

inline constexpr std::size_t kCodes = 18;  // of tidemark::Code

struct ShardCounters {
  std::uint64_t connections = 0;  // accepted here
  std::uint64_t handshakes = 0;   // completed
  std::uint64_t handshakes_resumed = 0;
  std::uint64_t enrolments = 0;
  std::uint64_t renewals = 0;
  std::uint64_t sessions_total = 0;  // welcomed
  std::uint64_t sessions_replaced = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(Refusal::kCount)> refused{};
  std::array<std::uint64_t, kCodes> session_errors{};  // sessions ended by us, by code
  std::uint64_t bytes_in = 0;                          // of frames
  std::uint64_t frames_in = 0;
  std::uint64_t blocks_bytes_in = 0;  // payload
  std::uint64_t epochs_durable = 0;
  std::uint64_t pauses_for_room = 0;    // a frame waited for the log
  std::uint64_t pauses_for_memory = 0;  // a frame waited for a buffer
  std::uint64_t epochs_aborted = 0;     // by agents, and those that could not be committed or resumed
  std::uint64_t resends = 0;            // agents were asked to send damaged ranges again
  std::uint64_t throttles = 0;          // sessions were asked to wait
  std::uint64_t digest_chunks = 0;
  std::uint64_t history_diverged = 0;
  std::uint64_t turns = 0;  // of the loop
  std::uint64_t ring_operations_max = 0;
  LatencyHistogram ack;  // EpochCommit received -> durable

  void refuse(Refusal why) { ++refused[static_cast<std::size_t>(why)]; }
};

}  // namespace tidemark::server
