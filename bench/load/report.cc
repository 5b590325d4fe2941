#include "bench/load/report.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>

namespace tidemark::bench {
namespace {

using Json = nlohmann::ordered_json;

double rounded(double value) { return std::round(value * 1000) / 1000; }

Json series_of(const Series& series) {
  Json points = Json::array();
  for (const SeriesPoint& p : series.points())
    points.push_back({{"s", rounded(p.seconds)},
                      {"mib_per_s", rounded(p.mib_per_s)},
                      {"blocks_per_s", rounded(p.blocks_per_s)},
                      {"epochs_per_s", rounded(p.epochs_per_s)},
                      {"ack_p50_ms", p.ack_p50_ms},
                      {"ack_p99_ms", p.ack_p99_ms},
                      {"staleness_p50_ms", p.staleness_p50_ms},
                      {"staleness_p99_ms", p.staleness_p99_ms},
                      {"server_cpu", rounded(p.server_cpu)},
                      {"server_mib", rounded(p.server_mib)},
                      {"connected", p.connected}});
  return points;
}

// Of a cumulative histogram over seconds; within a bucket, samples are taken to be spread evenly. Null above the last
// bound, and when there are none.
Json quantile_ms(const std::map<double, double>& at_most, double share) {
  if (at_most.empty() || at_most.rbegin()->second == 0) return nullptr;
  const double wanted = share * at_most.rbegin()->second;
  double bound_before = 0, count_before = 0;
  for (const auto& [bound, count] : at_most) {
    if (count >= wanted && std::isfinite(bound))
      return rounded(1000 * (bound_before + (bound - bound_before) * (wanted - count_before) / (count - count_before)));
    bound_before = bound;
    count_before = count;
  }
  return nullptr;
}

// What the server itself counted meanwhile.
Json server_side(const Metrics& begin, const Metrics& end) {
  const auto at = [](const Metrics& metrics, const std::string& name) {
    const auto found = metrics.find(name);
    return found == metrics.end() ? 0.0 : found->second;
  };
  const auto grown = [&](const std::string& name) { return at(end, name) - at(begin, name); };
  Json out;
  const double commits = grown("tidemark_log_commits_total");
  out["log_commits"] = commits;
  if (commits > 0) {
    out["records_per_commit"] = rounded(grown("tidemark_log_records_total") / commits);
    out["bytes_per_commit"] = rounded(grown("tidemark_log_written_bytes_total") / commits);
    out["log_write_ms_mean"] = rounded(grown("tidemark_log_write_seconds_total") / commits * 1000);
  }
  if (const double received = grown("tidemark_received_block_bytes_total"); received > 0)
    out["written_per_received"] = rounded(grown("tidemark_log_written_bytes_total") / received);
  out["shard_cpu_s"] = rounded(grown("tidemark_shard_cpu_seconds_total"));
  out["waits"] = grown("tidemark_waits_total");
  out["throttles"] = grown("tidemark_throttles_total");
  out["index_lag_bytes"] = at(end, "tidemark_index_lag_bytes");
  out["machine_lag_s_max"] = rounded(at(end, "tidemark_machine_lag_seconds_max"));
  // From an EpochCommit received to its being durable, as the server measured it.
  const std::string name = "tidemark_ack_seconds_bucket{le=";
  std::map<double, double> at_most;  // how many took no longer
  for (auto bucket = end.lower_bound(name); bucket != end.end() && bucket->first.starts_with(name); ++bucket)
    at_most[std::strtod(bucket->first.c_str() + name.size(), nullptr)] = bucket->second - at(begin, bucket->first);
  out["ack_samples"] = at_most.empty() ? 0.0 : at_most.rbegin()->second;
  out["ack_ms_p50"] = quantile_ms(at_most, 0.5);
  out["ack_ms_p99"] = quantile_ms(at_most, 0.99);
  return out;
}

}  // namespace

Json distribution_of(const Histogram& histogram) {
  Json out = Json::array();
  for (std::size_t i = 0; i < histogram.buckets().size(); ++i)
    if (histogram.buckets()[i] != 0) out.push_back({Histogram::upper_end(i), histogram.buckets()[i]});
  return out;
}

Json report_of(const Measured& m, const Series& series, const LoadOptions& options) {
  const PlanShape& shape = options.plan.shape();
  const double wall = m.seconds;
  const auto grown = [&](std::uint64_t LoadCounters::* field) {
    return static_cast<double>(m.end.*field - m.begin.*field);
  };
  const double bytes = grown(&LoadCounters::plain_bytes_durable), epochs = grown(&LoadCounters::epochs_durable);
  const double sent = grown(&LoadCounters::payload_bytes_sent);
  const Histogram acks = m.end.ack_us.minus(m.begin.ack_us);
  Json report{{"version", TIDEMARK_VERSION},
              {"profile", to_string(shape.profile)},
              {"machines", m.machines},
              {"disks", shape.disks},
              {"disk_size", shape.disk_size},
              {"interval_ms", static_cast<double>(options.epoch_interval.count()) / 1000},
              {"seed", shape.seed},
              {"connected", m.end.connected},
              {"errors", m.end.errors},
              {"first_error", m.end.first_error},
              {"dropped", m.end.dropped},
              {"connect_retries", m.end.connect_retries},
              {"throttles", m.end.throttles},
              {"seconds", wall},
              {"durable_mib_per_s", bytes / wall / (1 << 20)},
              {"sent_mib_per_s", sent / wall / (1 << 20)},
              {"epochs_per_s", epochs / wall},
              {"blocks_per_s", grown(&LoadCounters::blocks_durable) / wall},
              {"ack_us_p50", acks.percentile(0.5)},
              {"ack_us_p90", acks.percentile(0.9)},
              {"ack_us_p99", acks.percentile(0.99)},
              {"ack_us_p999", acks.percentile(0.999)},
              {"ack_us_max", acks.max()},
              {"ack_samples", acks.count()},
              {"staleness_us_p50", m.staleness_us.percentile(0.5)},
              {"staleness_us_p99", m.staleness_us.percentile(0.99)},
              {"staleness_us_max", m.staleness_us.max()},
              {"connect_us_p50", m.end.connect_us.percentile(0.5)},
              {"connect_us_p99", m.end.connect_us.percentile(0.99)}};
  if (m.usage_begin && m.usage_end) {
    const double cpu = m.usage_end->cpu_seconds - m.usage_begin->cpu_seconds;
    report["server_cpu_share"] = cpu / wall;
    if (bytes > 0) report["server_cpu_s_per_gib"] = cpu / (bytes / (1 << 30));
    report["server_resident_mib"] = static_cast<double>(m.resident_max) / (1 << 20);
    if (m.before_connect && m.connected)
      report["server_bytes_per_session"] =
          (static_cast<double>(m.connected->resident_bytes) - static_cast<double>(m.before_connect->resident_bytes)) /
          static_cast<double>(m.machines);
  }
  if (shape.profile == Profile::bulk || shape.profile == Profile::idle) report.erase("blocks_per_s");
  if (m.metrics_begin && m.metrics_end) report["server"] = server_side(*m.metrics_begin, *m.metrics_end);
  report["series"] = series_of(series);
  report["ack_distribution_us"] = distribution_of(acks);
  report["staleness_distribution_us"] = distribution_of(m.staleness_us);
  return report;
}

std::string summary_of(const Json& r) {
  const auto number = [&](const char* key) {
    return r.contains(key) && r[key].is_number() ? r[key].get<double>() : 0.0;
  };
  const auto line = [](const std::string& what, const std::string& value) {
    return fmt::format("{:<22}{}\n", what, value);
  };
  std::string out;
  out += line("profile", fmt::format("{}, {:.0f} machines x {:.0f} disks", r.value("profile", ""), number("machines"),
                                     number("disks")));
  out += line("measured",
              fmt::format("{:.1f} s{}", number("seconds"), r.value("interrupted", false) ? ", interrupted" : ""));
  out += line("durable",
              fmt::format("{:.1f} MiB/s, {:.1f} epochs/s", number("durable_mib_per_s"), number("epochs_per_s")) +
                  (r.contains("blocks_per_s") ? fmt::format(", {:.0f} blocks/s", number("blocks_per_s")) : ""));
  if (number("ack_samples") > 0)
    out += line("acknowledged after",
                fmt::format("p50 {:.2f} ms, p99 {:.2f} ms, at most {:.2f} ms", number("ack_us_p50") / 1000,
                            number("ack_us_p99") / 1000, number("ack_us_max") / 1000));
  if (number("staleness_us_max") > 0)
    out += line("staleness",
                fmt::format("p50 {:.0f} ms, p99 {:.0f} ms, at most {:.0f} ms", number("staleness_us_p50") / 1000,
                            number("staleness_us_p99") / 1000, number("staleness_us_max") / 1000));
  if (r.contains("server_cpu_share")) {
    out += line(
        "server",
        fmt::format("{:.0f} % of a core, {:.0f} MiB", number("server_cpu_share") * 100, number("server_resident_mib")) +
            (r.contains("server_cpu_s_per_gib") ? fmt::format(", {:.2f} CPU s/GiB", number("server_cpu_s_per_gib"))
                                                : "") +
            (r.contains("server_bytes_per_session")
                 ? fmt::format(", {:.1f} KiB a session", number("server_bytes_per_session") / 1024)
                 : ""));
  } else {
    out += line("server", "its CPU and memory are not known: it runs elsewhere, and its metrics do not say");
  }
  if (r.contains("verified"))
    out += line("verified",
                r["verified"].contains("error")
                    ? r["verified"]["error"].get<std::string>()
                    : fmt::format("{} points of {} machines, every byte: {:.1f} MiB as written, the rest zeroes",
                                  r["verified"].value("points", 0), r["verified"].value("machines", 0),
                                  r["verified"].value("written_bytes", 0.0) / (1 << 20)));
  if (number("errors") > 0)
    out += line("errors", fmt::format("{:.0f}, the first: {}", number("errors"), r.value("first_error", "")));
  return out;
}

Status write_report(const std::string& path, const std::string& text) {
  if (path.empty()) return {};
  if (path == "-") {
    std::fputs(text.c_str(), stdout);
    return {};
  }
  std::ofstream file(path);
  if (!(file << text) || !file.flush()) return fail(Code::io, path, "the report cannot be written there");
  return {};
}

}  // namespace tidemark::bench
