// What a run did, as JSON, as a few lines for people, and as one page with plots.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "bench/load/series.h"

namespace tidemark::bench {

// The measured stretch of a load.
struct Measured {
  double seconds = 0;
  LoadCounters begin, end;
  Histogram staleness_us;
  std::optional<ServerUsage> before_connect, connected, usage_begin, usage_end;  // connected: and still silent
  std::uint64_t resident_max = 0;
  std::optional<Metrics> metrics_begin, metrics_end;
  std::size_t machines = 0;
};
nlohmann::ordered_json report_of(const Measured& measured, const Series& series, const LoadOptions& options);

// Rates and latencies in a few lines.
std::string summary_of(const nlohmann::ordered_json& report);

// One page that needs nothing else: the report stands in it, and a script draws.
std::string page_of(const nlohmann::ordered_json& report);

// "-" is the standard output; "" is nowhere.
Status write_report(const std::string& path, const std::string& text);

nlohmann::ordered_json distribution_of(const Histogram& histogram);  // [[upper end in us, count], ...]

}  // namespace tidemark::bench
