// Notices when what the sessions of a partition sent does not become durable, and tells their agents: to wait
// (Throttle, with the reason), or, when the log can get no further segment for want of space, that this is so: then
// nobody knows for how long, and their sessions end with Code::no_space.
//
// The reason is the store's answer to a worker, since asking it may wait for the index. Belongs to the shard's thread.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"

namespace tidemark::storage {
class Partition;
}

namespace tidemark::server {

class PartitionHost;
class Session;
class Shard;

class DelayWatch {
 public:
  DelayWatch(Shard& shard, PartitionHost& host) : shard_(shard), host_(host) {}

  void tick(const std::vector<Session*>& sessions);  // every second, with all of them
  // Code::no_space while the log was last found without a segment to go on with and without space for one.
  Status space() const;
  std::size_t throttled() const { return throttled_; }  // sessions, as of the last tick

 private:
  struct Finding {
    std::string why;
    std::optional<Error> no_space;
  };
  static Finding look(const storage::Partition& partition, std::uint64_t lag_max);
  void ask();

  Shard& shard_;
  PartitionHost& host_;
  std::optional<Finding> finding_;
  bool asking_ = false;
  std::size_t throttled_ = 0;
};

}  // namespace tidemark::server
