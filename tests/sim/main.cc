// Long runs of the simulation: histories one after the other until so many operations were done. A history that fails
// is named by its seed, which repeats it alone.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

#include "base/marks.h"
#include "tests/sim/store_model.h"

using namespace tidemark;

int main(int argc, char** argv) {
  CLI::App app("The store against a model, on a simulated disk: power cuts, errors, damage, seeds.");
  std::uint64_t operations = 1'000'000, first = 1, histories = 0;
  unsigned jobs = std::max(1U, std::thread::hardware_concurrency());
  std::uint64_t seconds_max = 0;
  bool quiet = false, all_marks = false;
  app.add_option("--operations", operations, "Stop when so many were done")->capture_default_str();
  app.add_option("--seed", first, "The first history's")->capture_default_str();
  app.add_option("--histories", histories, "Only so many, however few operations that makes");
  app.add_option("--seconds", seconds_max, "Stop after so long, whatever was done by then");
  app.add_option("--jobs", jobs, "At once")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_flag("--quiet", quiet, "Say nothing before the end");
  app.add_flag("--all-marks", all_marks, "Fail when a rare path was not walked");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_level(spdlog::level::off);  // thousands of failures on purpose

  std::mutex mutex;
  sim::StoreRun all;
  std::vector<std::uint64_t> failed;
  std::atomic<std::uint64_t> next{first};
  std::atomic<bool> enough{false};
  const auto begin = std::chrono::steady_clock::now();
  auto said = begin;
  const auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  const auto work = [&] {
    while (!enough) {
      const std::uint64_t seed = next++;
      if (histories != 0 && seed >= first + histories) return;
      const sim::StoreRun run = sim::run_store_history(seed);
      const std::lock_guard lock(mutex);
      all.add(run);
      if (run.failure) {
        failed.push_back(seed);
        std::printf("seed %llu: %s\nrepeat with ./dev sim --seed %llu --histories 1\n",
                    static_cast<unsigned long long>(seed), run.failure->c_str(), static_cast<unsigned long long>(seed));
        std::fflush(stdout);
      }
      if (histories == 0 && all.operations() >= operations) enough = true;
      if (seconds_max != 0 && seconds() >= static_cast<double>(seconds_max)) enough = true;
      if (!quiet && std::chrono::steady_clock::now() - said > std::chrono::seconds(60)) {
        said = std::chrono::steady_clock::now();
        std::printf("%.0f s: %llu histories, %llu operations, %zu failed\n", seconds(),
                    static_cast<unsigned long long>(next - first), static_cast<unsigned long long>(all.operations()),
                    failed.size());
        std::fflush(stdout);
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    for (unsigned i = 0; i < jobs; ++i) threads.emplace_back(work);
  }
  all.failure.reset();
  std::printf("seeds=%llu.. seconds=%.0f %s\nmarks:", static_cast<unsigned long long>(first), seconds(),
              all.summary().c_str());
  bool missing = false;
  for (std::size_t i = 0; i < kMarkNames.size(); ++i) {
    std::printf(" %s=%llu", std::string(kMarkNames[i]).c_str(), static_cast<unsigned long long>(marks[i].load()));
    missing = missing || marks[i] == 0;
  }
  std::printf("\nfailed histories: %zu\n", failed.size());
  if (missing && all_marks) std::printf("a rare path was not walked\n");
  return !failed.empty() || (missing && all_marks) ? 1 : 0;
}
