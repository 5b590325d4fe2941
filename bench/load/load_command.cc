#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "bench/load/commands.h"
#include "bench/load/enroll.h"
#include "bench/load/live_view.h"
#include "bench/load/report.h"
#include "bench/load/verify.h"

namespace tidemark::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr auto kTick = std::chrono::milliseconds(100);
constexpr std::size_t kConnectAtOnce = 16;  // for each thread: a polite crowd
constexpr auto kConnectTimeout = std::chrono::seconds(180);
constexpr auto kQuiesceTimeout = std::chrono::seconds(60);
constexpr std::size_t kOlderPoints = 2;  // read back beside the newest

double seconds_since(Clock::time_point then) { return Seconds(Clock::now() - then).count(); }

std::vector<std::string> live_lines(const FleetSample& sample, const Series& series, double seconds, double of,
                                    const Histogram& staleness) {
  const SeriesPoint last = series.points().empty() ? SeriesPoint{} : series.points().back();
  const auto& c = sample.counters;
  return {
      fmt::format("  {:.0f} s of {:.0f} s   {} machines connected, {} retries, {} errors", seconds, of, c.connected,
                  c.connect_retries, c.errors),
      fmt::format("  durable   {:>9.1f} MiB/s {:>9.0f} epochs/s {:>9.0f} blocks/s", last.mib_per_s, last.epochs_per_s,
                  last.blocks_per_s),
      fmt::format("  ack       {:>9.2f} ms p50 {:>9.2f} ms p99", last.ack_p50_ms, last.ack_p99_ms),
      fmt::format("  staleness {:>9.0f} ms p50 {:>9.0f} ms p99", static_cast<double>(staleness.percentile(0.5)) / 1000,
                  static_cast<double>(staleness.percentile(0.99)) / 1000),
      fmt::format("  server    {:>9.0f} % CPU  {:>9.0f} MiB", last.server_cpu * 100, last.server_mib),
      "  Ctrl-C ends the load, with a report of what was done"};
}

// Looks on for `seconds`. With `measured` what is seen counts.
void look_on(Fleet& fleet, ServerWatch& watch, double seconds, Clock::time_point origin, double total, Series& series,
             LiveView& live, const cli::Interrupt& interrupt, Measured* measured) {
  const auto begin = Clock::now();
  auto next_point = begin + std::chrono::seconds(1);
  Histogram staleness;
  while (!interrupt.raised() && seconds_since(begin) < seconds) {
    const auto end = begin + std::chrono::duration_cast<Clock::duration>(Seconds(seconds));
    std::this_thread::sleep_until(std::min(Clock::now() + kTick, end));
    const FleetSample sample = fleet.sample();
    staleness.add(sample.staleness_us);
    if (measured != nullptr) {
      measured->staleness_us.add(sample.staleness_us);
      if (watch.local())
        if (const auto usage = watch.usage())
          measured->resident_max = std::max(measured->resident_max, usage->resident_bytes);
    }
    if (Clock::now() < next_point) continue;
    next_point += std::chrono::seconds(1);
    const double now = seconds_since(origin);
    series.add(now, sample, staleness, watch.usage());
    live.draw(live_lines(sample, series, now, total, staleness));
    staleness = {};
  }
}

nlohmann::ordered_json verify(Fleet& fleet, const LoadArguments& arguments, const cli::Interrupt& interrupt) {
  Verified all;
  const std::size_t count = std::min(arguments.verify, fleet.size());
  for (std::size_t i = 0; i < count; ++i) {
    if (interrupt.raised()) return {{"error", "it was stopped"}};
    const auto one =
        verify_machine(arguments.admin_socket, fleet.options(), fleet.written(i * fleet.size() / count), kOlderPoints);
    if (!one) return {{"error", one.error().message()}};
    all.points += one->points;
    all.disks += one->disks;
    all.written_bytes += one->written_bytes;
    all.zero_bytes += one->zero_bytes;
  }
  return {{"machines", count},
          {"points", all.points},
          {"disks", all.disks},
          {"written_bytes", all.written_bytes},
          {"zero_bytes", all.zero_bytes}};
}

}  // namespace

int complain(const Error& error) {
  std::fprintf(stderr, "tidemark-bench: %s\n", error.message().c_str());
  return 1;
}

Result<std::vector<Identity>> enroll(const LoadArguments& arguments, std::size_t first, std::size_t count,
                                     const cli::Interrupt& interrupt) {
  const bool terminal = !arguments.quiet && ::isatty(STDERR_FILENO) == 1;
  EnrolOrder order{.admin_socket = arguments.admin_socket,
                   .address = arguments.address,
                   .prefix = arguments.prefix,
                   .first = first,
                   .count = count,
                   .threads = threads_of(arguments)};
  if (terminal)
    order.progress = [count](std::size_t done) {
      if (done % 16 == 0 || done == count)
        std::fprintf(stderr, "\renrolled %zu of %zu%s", done, count, done == count ? "\n" : "");
    };
  order.stopped = [&] { return interrupt.raised(); };
  std::vector<Identity> known;
  if (!arguments.enrolled_path.empty()) known = TIDEMARK_TRY(load_identities(arguments.enrolled_path));
  const std::size_t wanted = first + count;
  order.first = std::clamp(known.size(), order.first, wanted);
  order.count = wanted - order.first;
  auto fresh = TIDEMARK_TRY(enroll_machines(order));
  std::vector<Identity> all(known.begin() + static_cast<std::ptrdiff_t>(std::min(first, known.size())),
                            known.begin() + static_cast<std::ptrdiff_t>(std::min(wanted, known.size())));
  all.insert(all.end(), fresh.begin(), fresh.end());
  if (!arguments.enrolled_path.empty() && !fresh.empty()) {
    known.insert(known.end(), fresh.begin(), fresh.end());
    TIDEMARK_TRY(save_identities(arguments.enrolled_path, known));
  }
  std::fprintf(stderr, "enrolled %zu machines, %zu were known\n", fresh.size(), all.size() - fresh.size());
  return all;
}

Status enroll_into(Fleet& fleet, const LoadArguments& arguments, std::size_t count, const cli::Interrupt& interrupt) {
  fleet.add(TIDEMARK_TRY(enroll(arguments, fleet.size(), count, interrupt)));
  return {};
}

int run_load(const LoadArguments& arguments) {
  if (arguments.verify > 0 && !arguments.enrolled_path.empty())
    return complain(Error{Code::invalid_argument, "--verify",
                          "what machines of former runs have written before is not known any more",
                          "leave out --enrolled"});
  if (const Status status = need_descriptors(arguments.machines); !status) return complain(status.error());
  auto prepared = prepare(arguments);
  if (!prepared) return complain(prepared.error());
  if (const Status status = check_server(arguments); !status) return complain(status.error());
  if (!prepared->note.empty()) std::fprintf(stderr, "tidemark-bench: %s\n", prepared->note.c_str());

  const cli::Interrupt interrupt([] {});
  Fleet fleet(std::move(prepared->options), arguments.address, threads_of(arguments),
              [&] { return interrupt.raised(); });
  if (const Status status = enroll_into(fleet, arguments, arguments.machines, interrupt); !status)
    return complain(status.error());
  ServerWatch watch(arguments.admin_socket, arguments.server_pid);
  Measured measured;
  measured.machines = arguments.machines;
  measured.before_connect = watch.usage();
  LiveView live(!arguments.quiet);
  fleet.connect(kConnectAtOnce, kConnectTimeout, [&] {
    if (live.shown())
      live.draw({fmt::format("  connected {} of {}", fleet.sample().counters.connected, arguments.machines)});
  });
  live.clear();
  const FleetSample there = fleet.sample();
  std::fprintf(stderr, "connected %zu of %zu machines\n", static_cast<std::size_t>(there.counters.connected),
               arguments.machines);
  if (there.counters.connected == 0 && !interrupt.raised())
    return complain(
        Error{Code::unavailable, arguments.address, "no machine could connect: " + there.counters.first_error, {}});

  Series series;
  const auto origin = Clock::now();
  const double total = arguments.hold + arguments.ramp + arguments.seconds;
  series.add(0, there, {}, watch.usage());
  look_on(fleet, watch, arguments.hold, origin, total, series, live, interrupt, nullptr);
  measured.connected = watch.usage();
  fleet.activate(arguments.machines);
  look_on(fleet, watch, arguments.ramp, origin, total, series, live, interrupt, nullptr);
  if (auto metrics = watch.metrics()) measured.metrics_begin = std::move(*metrics);
  measured.usage_begin = watch.usage();
  measured.begin = fleet.sample().counters;
  const auto begin = Clock::now();
  look_on(fleet, watch, arguments.seconds, origin, total, series, live, interrupt, &measured);
  measured.end = fleet.sample().counters;
  measured.seconds = seconds_since(begin);
  measured.usage_end = watch.usage();
  if (measured.usage_end) measured.resident_max = std::max(measured.resident_max, measured.usage_end->resident_bytes);
  if (auto metrics = watch.metrics()) measured.metrics_end = std::move(*metrics);
  live.clear();

  fleet.finish();
  const bool quiet = fleet.quiesce(kQuiesceTimeout);
  auto report = report_of(measured, series, fleet.options());
  if (interrupt.raised()) report["interrupted"] = true;
  if (!prepared->note.empty()) report["note"] = prepared->note;
  bool good = measured.end.errors == 0;
  if (!quiet) {
    good = false;
    report["errors"] = measured.end.errors + 1;
    if (measured.end.first_error.empty())
      report["first_error"] = "what was under way at the end did not become durable within a minute";
  }
  if (arguments.verify > 0 && !interrupt.raised()) {
    report["verified"] = verify(fleet, arguments, interrupt);
    good = good && !report["verified"].contains("error");
  }
  if (arguments.json_path != "-") std::fputs(summary_of(report).c_str(), stdout);
  for (const auto& [path, text] :
       {std::pair{arguments.json_path, report.dump(1) + "\n"}, {arguments.html_path, page_of(report)}})
    if (const Status status = write_report(path, text); !status) return complain(status.error());
  return good ? 0 : 1;
}

}  // namespace tidemark::bench
