#include "bench/load/fleet.h"

#include <algorithm>

namespace tidemark::bench {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(20);

}  // namespace

Fleet::Fleet(LoadOptions options, std::string address, std::size_t threads, std::function<bool()> stopped)
    : options_(std::move(options)), stopped_(std::move(stopped)) {
  for (std::size_t i = 0; i < threads; ++i) workers_.push_back(std::make_unique<Worker>(options_, address));
}

void Fleet::add(std::vector<Identity> identities) {
  for (auto& identity : identities) {
    workers_[size_ % workers_.size()]->call(
        [&](Worker& worker) { worker.add(static_cast<std::uint32_t>(size_), std::move(identity)); });
    ++size_;
  }
}

bool Fleet::wait(std::chrono::seconds timeout, const std::function<bool()>& done, const std::function<void()>& looked) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!done()) {
    if (std::chrono::steady_clock::now() >= deadline || (stopped_() && !finishing_)) return false;
    if (looked) looked();
    std::this_thread::sleep_for(kPoll);
  }
  return true;
}

bool Fleet::connect(std::size_t at_once, std::chrono::seconds timeout, const std::function<void()>& looked) {
  for (auto& worker : workers_) worker->call([&](Worker& self) { self.connect(0, at_once); });
  return wait(
      timeout,
      [&] {
        return std::ranges::all_of(workers_,
                                   [](auto& w) { return w->call([](Worker& self) { return self.settled(); }); });
      },
      looked);
}

void Fleet::disconnect(std::size_t first, bool orderly, bool forget) {
  for (auto& worker : workers_)
    worker->call([&](Worker& self) {
      for (const auto& machine : self.machines())
        if (machine->number() >= first) machine->disconnect(orderly, forget);
    });
}

void Fleet::activate(std::size_t count) {
  for (auto& worker : workers_)
    worker->call([&](Worker& self) {
      for (const auto& machine : self.machines()) machine->activate(machine->number() < count);
    });
}

bool Fleet::quiesce(std::chrono::seconds timeout) {
  for (auto& worker : workers_)
    worker->call([&](Worker& self) {
      for (const auto& machine : self.machines()) finishing_ ? machine->finish() : machine->activate(false);
    });
  return wait(timeout, [&] {
    return std::ranges::all_of(workers_, [](auto& w) {
      return w->call(
          [](Worker& self) { return std::ranges::all_of(self.machines(), [](const auto& m) { return m->quiet(); }); });
    });
  });
}

FleetSample Fleet::sample() {
  FleetSample all;
  for (auto& worker : workers_) {
    worker->call([&](Worker& self) {
      all.counters.add(self.counters());
      const auto now = std::chrono::steady_clock::now();
      for (const auto& machine : self.machines()) {
        ++all.machines;
        all.given_up += machine->given_up() ? 1 : 0;
        if (const auto age = machine->staleness(now))
          all.staleness_us.add(static_cast<std::uint64_t>(std::max<std::int64_t>(0, age->count())));
      }
    });
  }
  return all;
}

Fleet::Written Fleet::written(std::size_t number) {
  return workers_[number % workers_.size()]->call([&](Worker& self) {
    const Machine& machine = *self.machines()[number / workers_.size()];
    return Written{machine.identity().name, machine.number(), machine.durable_epoch(), machine.cut_short_at(),
                   machine.marks()};
  });
}

}  // namespace tidemark::bench
