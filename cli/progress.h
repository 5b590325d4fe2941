// A progress bar on a terminal: what, how far, how fast, how long still. Silent when there is no terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <iosfwd>
#include <string>

#include "base/clock.h"

namespace tidemark::cli {

// Belongs to one thread.
class Progress {
 public:
  Progress(std::ostream& to, bool enabled, const Clock& clock = Clock::system())
      : to_(to), enabled_(enabled), clock_(clock) {}
  ~Progress() { finish(); }

  void start(std::string label, std::uint64_t total_bytes);
  void set(std::uint64_t done_bytes);  // redraws at most ten times a second
  void add(std::uint64_t bytes) { set(done_ + bytes); }
  void finish();  // erases the line

 private:
  void draw();

  std::ostream& to_;
  bool enabled_;
  const Clock& clock_;
  std::string label_;
  std::uint64_t total_ = 0;
  std::uint64_t done_ = 0;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::time_point next_draw_;
};

}  // namespace tidemark::cli
