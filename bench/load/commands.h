// The commands of tidemark-bench. Each blocks until it is done, prints its report, and returns the exit status: 0 done,
// 1 failed or something went wrong meanwhile, 2 wrong usage.
#pragma once

#include <string>

#include "bench/load/arguments.h"
#include "bench/load/fleet.h"
#include "cli/interrupt.h"

namespace tidemark::bench {

struct StormArguments {
  std::size_t healthy = 16;  // machines that stay, and write meanwhile
  std::size_t rounds = 1;
};

struct CapacityArguments {
  double staleness_ms = 1000;
  std::size_t machines_max = 10'000;
  double trial_seconds = 8;
  double precision = 0.1;
};

struct CompareArguments {
  std::string directory = "/tmp", json_path;
  std::size_t repetitions = 5, mib = 1024;
  double seconds = 5;
};

int run_load(const LoadArguments& arguments);
int run_storm(const LoadArguments& arguments, const StormArguments& storm);
int run_find_capacity(const LoadArguments& arguments, const CapacityArguments& capacity);
int run_compare(const CompareArguments& arguments);

// Shared: prints an error the way every tool does, and gives exit status 1.
int complain(const Error& error);

// `count` machines from number `first` on: those that arguments.enrolled_path knows, the others enrolled, with progress
// on a terminal. enroll_into() adds them to the fleet, behind those it has.
Result<std::vector<Identity>> enroll(const LoadArguments& arguments, std::size_t first, std::size_t count,
                                     const cli::Interrupt& interrupt);
Status enroll_into(Fleet& fleet, const LoadArguments& arguments, std::size_t count, const cli::Interrupt& interrupt);

}  // namespace tidemark::bench
