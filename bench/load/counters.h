// What the simulated machines of one thread count into; copied for whoever adds up.
#pragma once

#include <cstdint>
#include <string>

#include "bench/load/histogram.h"

namespace tidemark::bench {

struct LoadCounters {
  // How many are connected now; the rest only rise.
  std::uint64_t connected = 0;
  std::uint64_t welcomes = 0, resumed = 0;  // handshakes that led to a session; of these with a ticket
  std::uint64_t connect_retries = 0;        // attempts that were refused or failed, and were made again
  std::uint64_t dropped = 0;                // sessions that ended though nobody had asked for it
  std::uint64_t errors = 0;                 // dropped, or given up
  std::uint64_t epochs_durable = 0, blocks_durable = 0, plain_bytes_durable = 0;
  std::uint64_t frames_sent = 0, payload_bytes_sent = 0, throttles = 0;
  Histogram ack_us;      // from the moment an epoch was due to its Durable
  Histogram connect_us;  // from the wish to connect to Welcome, retries included
  std::string first_error;

  void add(const LoadCounters& other);
};

inline void LoadCounters::add(const LoadCounters& other) {
  connected += other.connected;
  welcomes += other.welcomes;
  resumed += other.resumed;
  connect_retries += other.connect_retries;
  dropped += other.dropped;
  errors += other.errors;
  epochs_durable += other.epochs_durable;
  blocks_durable += other.blocks_durable;
  plain_bytes_durable += other.plain_bytes_durable;
  frames_sent += other.frames_sent;
  payload_bytes_sent += other.payload_bytes_sent;
  throttles += other.throttles;
  ack_us.add(other.ack_us);
  connect_us.add(other.connect_us);
  if (first_error.empty()) first_error = other.first_error;
}

}  // namespace tidemark::bench
