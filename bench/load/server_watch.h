// The server's own account of itself: CPU and memory from /proc when it runs on this machine, else from its metrics;
// and the counters of its metrics, before and after. Belongs to one thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "cli/client.h"

namespace tidemark::bench {

struct ServerUsage {
  double cpu_seconds = 0;
  std::uint64_t resident_bytes = 0;
};

// Sums over labels, by name; of histograms the buckets as "name{le=BOUND}".
using Metrics = std::map<std::string, double>;
Metrics parse_metrics(const std::string& text);

class ServerWatch {
 public:
  // `pid` 0: whoever listens on the admin socket, if that is a tidemarkd of this machine.
  ServerWatch(std::string admin_socket, int pid);
  std::optional<ServerUsage> usage();  // nothing when it cannot be known
  Result<Metrics> metrics();
  bool local() const { return pid_ != 0; }

 private:
  std::string admin_socket_;
  int pid_;
};

std::optional<ServerUsage> usage_of(int pid);  // from /proc

}  // namespace tidemark::bench
