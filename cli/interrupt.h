// Ctrl-C and SIGTERM, as an event instead of a death: what was begun is undone in order. A second one kills.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

namespace tidemark::cli {

class Interrupt {
 public:
  // Blocks SIGINT and SIGTERM in the calling thread, and so in those it makes later. `raised` is called at the first of
  // them, once, on a thread of its own.
  explicit Interrupt(std::function<void()> raised);
  ~Interrupt();  // restores what was before
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  bool raised() const { return raised_; }

 private:
  struct Saved;
  void wait();

  std::function<void()> on_raise_;
  std::atomic<bool> raised_ = false;
  int stop_fd_ = -1;
  int signal_fd_ = -1;
  std::unique_ptr<Saved> saved_;
  std::thread thread_;
};

}  // namespace tidemark::cli
