// What a run looked like over time, in at most kPointsMax points: when there would be more, neighbours are joined.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "bench/load/fleet.h"
#include "bench/load/server_watch.h"

namespace tidemark::bench {

struct SeriesPoint {
  double seconds = 0, length = 0;  // its end since the load began; how long it is
  double mib_per_s = 0, blocks_per_s = 0, epochs_per_s = 0;
  double ack_p50_ms = 0, ack_p99_ms = 0;
  double staleness_p50_ms = 0, staleness_p99_ms = 0;
  double server_cpu = 0;  // cores
  double server_mib = 0;
  double connected = 0;
};

class Series {
 public:
  static constexpr std::size_t kPointsMax = 600;

  // `staleness` is of all samples since the last point.
  void add(double seconds, const FleetSample& sample, const Histogram& staleness,
           const std::optional<ServerUsage>& usage);
  const std::vector<SeriesPoint>& points() const { return points_; }

 private:
  void halve();

  std::vector<SeriesPoint> points_;
  std::optional<LoadCounters> last_;
  std::optional<ServerUsage> last_usage_;
  double last_seconds_ = 0;
};

}  // namespace tidemark::bench
