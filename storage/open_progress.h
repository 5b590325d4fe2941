// What goes on while a partition is opened, for whoever watches, and a way to call it off. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

namespace tidemark::storage {

struct OpenProgress {
  std::atomic<bool> cancelled{false};  // set by who watches: a replay ends soon, with Code::cancelled
  // The index was missing or damaged, and is being made again from the log and the cold segments.
  std::atomic<bool> rebuilding{false};
  // Steps of that: a segment read. `total` is known once `rebuilding` is set.
  std::atomic<std::uint64_t> done{0}, total{0};

  unsigned percent() const {
    const std::uint64_t all = total.load(), some = done.load();
    return all == 0 ? 0 : static_cast<unsigned>(some < all ? some * 100 / all : 100);
  }
};

}  // namespace tidemark::storage
