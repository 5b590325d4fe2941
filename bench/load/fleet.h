// All simulated machines of a run, on one thread for each core.
//
// The calling thread stays free to look on: it asks for samples. Not thread-safe itself.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/load/worker.h"

namespace tidemark::bench {

struct FleetSample {
  LoadCounters counters;
  Histogram staleness_us;  // of the machines that are active, at this moment
  std::size_t machines = 0, given_up = 0;
};

class Fleet {
 public:
  // `stopped` is asked while something is waited for.
  Fleet(LoadOptions options, std::string address, std::size_t threads, std::function<bool()> stopped);

  Fleet(const Fleet&) = delete;  // its machines hold on to its options
  Fleet& operator=(const Fleet&) = delete;

  // Their numbers follow those that are there.
  void add(std::vector<Identity> identities);
  // Connects those that are away. Waits until all are in or gave up; false: `timeout` passed, or it was stopped.
  // `at_once`: attempts at a time, for each thread; 0: all.
  bool connect(std::size_t at_once, std::chrono::seconds timeout, const std::function<void()>& looked = {});
  void disconnect(std::size_t first, bool orderly, bool forget);
  void activate(std::size_t count);  // the first so many write, the others stop
  // Everybody stops and what is under way becomes durable; false when that took longer than `timeout`.
  bool quiesce(std::chrono::seconds timeout);
  void finish() { finishing_ = true; }  // after it quiesce() does not wait for machines that are away

  FleetSample sample();
  std::size_t size() const { return size_; }
  const LoadOptions& options() const { return options_; }

  // What verification needs to know, copied. Once quiet.
  struct Written {
    std::string name;
    std::uint32_t number;
    std::uint64_t durable_epoch, cut_short_at;
    std::vector<StepMark> marks;
  };
  Written written(std::size_t number);

 private:
  bool wait(std::chrono::seconds timeout, const std::function<bool()>& done, const std::function<void()>& looked = {});

  const LoadOptions options_;
  std::function<bool()> stopped_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::size_t size_ = 0;
  bool finishing_ = false;
};

}  // namespace tidemark::bench
