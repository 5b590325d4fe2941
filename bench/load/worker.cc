#include "bench/load/worker.h"

#include <algorithm>

namespace tidemark::bench {

Worker::Worker(const LoadOptions& options, std::string address)
    : host_{io_, buffer_, options, counters_, std::move(address), {}} {
  host_.on_settled = [this] {
    ++settled_;
    // From the loop: whoever settles is in the midst of a call.
    asio::post(io_, [this] { connect_more(); });
  };
  thread_ = std::thread([this] { io_.run(); });
}

Worker::~Worker() {
  call([](Worker& self) { self.machines_.clear(); });
  work_.reset();
  io_.stop();
  thread_.join();
}

void Worker::add(std::uint32_t number, Identity identity) {
  machines_.push_back(std::make_unique<Machine>(host_, number, std::move(identity)));
}

void Worker::connect(std::size_t first, std::size_t at_once) {
  next_ = first;
  wanted_ = machines_.size();
  started_ = settled_ = 0;
  at_once_ = at_once;
  connect_more();
}

void Worker::connect_more() {
  while (next_ < wanted_ && (at_once_ == 0 || started_ < settled_ + at_once_)) {
    ++started_;
    machines_[next_++]->connect();
  }
}

bool Worker::settled() const {
  return next_ >= wanted_ && std::ranges::all_of(machines_, [](const auto& m) { return m->ready() || m->given_up(); });
}

}  // namespace tidemark::bench
