#include "bench/load/series.h"

#include <algorithm>

namespace tidemark::bench {

void Series::add(double seconds, const FleetSample& sample, const Histogram& staleness,
                 const std::optional<ServerUsage>& usage) {
  const LoadCounters& now = sample.counters;
  const double length = seconds - last_seconds_;
  if (last_ && length > 0) {
    const auto rate = [&](std::uint64_t after, std::uint64_t before) {
      return static_cast<double>(after - before) / length;
    };
    const auto ms = [](std::uint64_t us) { return static_cast<double>(us) / 1000; };
    const Histogram acks = now.ack_us.minus(last_->ack_us);
    points_.push_back(
        {.seconds = seconds,
         .length = length,
         .mib_per_s = rate(now.plain_bytes_durable, last_->plain_bytes_durable) / (1 << 20),
         .blocks_per_s = rate(now.blocks_durable, last_->blocks_durable),
         .epochs_per_s = rate(now.epochs_durable, last_->epochs_durable),
         .ack_p50_ms = ms(acks.percentile(0.5)),
         .ack_p99_ms = ms(acks.percentile(0.99)),
         .staleness_p50_ms = ms(staleness.percentile(0.5)),
         .staleness_p99_ms = ms(staleness.percentile(0.99)),
         .server_cpu = usage && last_usage_ ? (usage->cpu_seconds - last_usage_->cpu_seconds) / length : 0,
         .server_mib = usage ? static_cast<double>(usage->resident_bytes) / (1 << 20) : 0,
         .connected = static_cast<double>(now.connected)});
    if (points_.size() > kPointsMax) halve();
  }
  last_ = now;
  last_usage_ = usage;
  last_seconds_ = seconds;
}

// Rates are averaged by length; of latencies the worse one stays.
void Series::halve() {
  std::vector<SeriesPoint> joined;
  for (std::size_t i = 0; i + 1 < points_.size(); i += 2) {
    const SeriesPoint &a = points_[i], &b = points_[i + 1];
    SeriesPoint both = b;
    both.length = a.length + b.length;
    const auto mean = [&](double SeriesPoint::* field) {
      both.*field = (a.*field * a.length + b.*field * b.length) / both.length;
    };
    for (const auto field :
         {&SeriesPoint::mib_per_s, &SeriesPoint::blocks_per_s, &SeriesPoint::epochs_per_s, &SeriesPoint::server_cpu})
      mean(field);
    for (const auto field : {&SeriesPoint::ack_p50_ms, &SeriesPoint::ack_p99_ms, &SeriesPoint::staleness_p50_ms,
                             &SeriesPoint::staleness_p99_ms, &SeriesPoint::server_mib})
      both.*field = std::max(a.*field, b.*field);
    joined.push_back(both);
  }
  if (points_.size() % 2 != 0) joined.push_back(points_.back());
  points_ = std::move(joined);
}

}  // namespace tidemark::bench
