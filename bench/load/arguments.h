// What the commands of tidemark-bench can be told, and the checks that come before a load begins.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "base/status.h"
#include "bench/load/machine.h"

namespace tidemark::bench {

// Common to every command that loads a server.
struct LoadArguments {
  std::string address, admin_socket, prefix = "bench", json_path, html_path, trace_path;
  std::string enrolled_path;  // identities that are used again; empty: machines are enrolled for this run
  int server_pid = 0;
  std::size_t machines = 1, threads = 0;  // 0: a thread for each core
  std::uint32_t disks = 1;
  std::uint64_t disk_size = 16ULL << 30;
  std::string profile = "bulk", replay_speed = "1x";
  std::uint32_t block_size = 4096, blocks_per_epoch = 32;
  double compressible = 0, zero_share = 0;
  std::optional<int> zstd_level;  // without: 1 when something can be compressed, else 0
  std::uint64_t interval_ms = 0, seed = 1;
  double rate = 0;                          // blocks a second of all machines; 0: by the interval
  double seconds = 10, ramp = 1, hold = 0;  // hold: all connected and silent, before the ramp
  std::size_t verify = 0;                   // machines whose points are read back
  bool quiet = false;                       // no live view
};

void add_server_options(CLI::App& app, LoadArguments& arguments);
void add_load_options(CLI::App& app, LoadArguments& arguments);

// Reads the trace, works out the plan, refuses what cannot be. `note`: something the user must be told.
struct Prepared {
  LoadOptions options;
  std::string note;
};
Result<Prepared> prepare(const LoadArguments& arguments);

// "1x", "20x", "flat": how many times faster than it was recorded; nothing for flat out.
Result<std::optional<double>> parse_speed(const std::string& text);

// Raises the limit of open files as far as it goes. An error when `machines` would not fit.
Status need_descriptors(std::size_t machines);

// Whether something answers at the admin socket and at the address, before anything is enrolled there.
Status check_server(const LoadArguments& arguments);

std::size_t threads_of(const LoadArguments& arguments);

}  // namespace tidemark::bench
