// A thread with its loop and its share of the machines. Machines are touched on that thread only: everything here but
// call() posts or waits for it.
#pragma once

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <cstddef>
#include <deque>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "bench/load/machine.h"

namespace tidemark::bench {

class Worker {
 public:
  Worker(const LoadOptions& options, std::string address);
  ~Worker();  // machines go without a farewell
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Runs `function(worker)` on the worker's thread and returns what it gave.
  template <typename Function>
  auto call(Function function) {
    std::packaged_task<decltype(function(*this))()> task([&] { return function(*this); });
    auto result = task.get_future();
    asio::post(io_, [&task] { task(); });
    return result.get();
  }

  // On the worker's thread.
  void add(std::uint32_t number, Identity identity);
  const std::vector<std::unique_ptr<Machine>>& machines() const { return machines_; }
  const LoadCounters& counters() const { return counters_; }
  // Connects its machines from `first` on: at most `at_once` try at a time, all of them when 0.
  void connect(std::size_t first, std::size_t at_once);
  bool settled() const;  // every machine that was to connect is in, or gave up

 private:
  void connect_more();

  asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  net::ReceiveBuffer buffer_;
  LoadCounters counters_;
  MachineHost host_;
  std::vector<std::unique_ptr<Machine>> machines_;
  std::size_t next_ = 0, wanted_ = 0, settled_ = 0, started_ = 0, at_once_ = 0;
  std::thread thread_;
};

}  // namespace tidemark::bench
