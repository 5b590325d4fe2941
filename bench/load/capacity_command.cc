#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "bench/load/commands.h"
#include "bench/load/live_view.h"
#include "bench/load/report.h"

namespace tidemark::bench {
namespace {

using Json = nlohmann::ordered_json;
using Seconds = std::chrono::duration<double>;

constexpr std::size_t kConnectAtOnce = 16;
constexpr auto kConnectTimeout = std::chrono::seconds(300);
constexpr auto kQuiesceTimeout = std::chrono::seconds(60);

struct Trial {
  Json report;
  bool held = false;
};

class Search {
 public:
  Search(Fleet& fleet, ServerWatch& watch, const LoadArguments& arguments, const CapacityArguments& capacity,
         const cli::Interrupt& interrupt)
      : fleet_(fleet),
        watch_(watch),
        arguments_(arguments),
        capacity_(capacity),
        interrupt_(interrupt),
        live_(!arguments.quiet) {}

  Result<Trial> trial(std::size_t machines) {
    if (machines > fleet_.size()) {
      live_.clear();
      TIDEMARK_TRY(enroll_into(fleet_, arguments_, machines - fleet_.size(), interrupt_));
      if (!fleet_.connect(kConnectAtOnce, kConnectTimeout) && !interrupt_.raised())
        return fail(Code::unavailable, arguments_.address,
                    "not all of " + std::to_string(machines) +
                        " machines could connect: " + fleet_.sample().counters.first_error);
    }
    fleet_.activate(machines);
    look_on(arguments_.ramp, nullptr, machines);
    const LoadCounters before = fleet_.sample().counters;
    const auto usage_before = watch_.usage();
    const auto begin = std::chrono::steady_clock::now();
    Histogram staleness;
    look_on(capacity_.trial_seconds, &staleness, machines);
    const double seconds = Seconds(std::chrono::steady_clock::now() - begin).count();
    const LoadCounters after = fleet_.sample().counters;
    const auto usage_after = watch_.usage();
    fleet_.activate(0);
    const bool quiet = fleet_.quiesce(kQuiesceTimeout);
    const Histogram acks = after.ack_us.minus(before.ack_us);
    Trial done;
    const std::uint64_t errors = after.errors - before.errors;
    done.held = quiet && errors == 0 && staleness.count() > 0 &&
                static_cast<double>(staleness.percentile(0.99)) <= capacity_.staleness_ms * 1000;
    done.report = {{"machines", machines},
                   {"held", done.held},
                   {"staleness_us_p50", staleness.percentile(0.5)},
                   {"staleness_us_p99", staleness.percentile(0.99)},
                   {"ack_us_p99", acks.percentile(0.99)},
                   {"blocks_per_s", static_cast<double>(after.blocks_durable - before.blocks_durable) / seconds},
                   {"durable_mib_per_s",
                    static_cast<double>(after.plain_bytes_durable - before.plain_bytes_durable) / seconds / (1 << 20)},
                   {"epochs_per_s", static_cast<double>(after.epochs_durable - before.epochs_durable) / seconds},
                   {"errors", errors}};
    if (usage_before && usage_after)
      done.report["server_cpu_share"] = (usage_after->cpu_seconds - usage_before->cpu_seconds) / seconds;
    if (errors > 0) done.report["first_error"] = after.first_error;
    live_.clear();
    std::fprintf(stderr, "%zu machines: staleness p99 %.0f ms, %.0f blocks/s, %.1f MiB/s: %s\n", machines,
                 static_cast<double>(staleness.percentile(0.99)) / 1000, done.report["blocks_per_s"].get<double>(),
                 done.report["durable_mib_per_s"].get<double>(), done.held ? "held" : "not held");
    return done;
  }

 private:
  void look_on(double seconds, Histogram* staleness, std::size_t machines) {
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::milliseconds>(Seconds(seconds));
    while (!interrupt_.raised() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      const FleetSample sample = fleet_.sample();
      if (staleness != nullptr) staleness->add(sample.staleness_us);
      live_.draw({fmt::format("  trying {} machines: staleness p99 {:.0f} ms", machines,
                              static_cast<double>(sample.staleness_us.percentile(0.99)) / 1000)});
    }
  }

  Fleet& fleet_;
  ServerWatch& watch_;
  const LoadArguments& arguments_;
  const CapacityArguments& capacity_;
  const cli::Interrupt& interrupt_;
  LiveView live_;
};

}  // namespace

int run_find_capacity(const LoadArguments& given, const CapacityArguments& capacity) {
  LoadArguments arguments = given;
  if (arguments.profile == "bulk" || arguments.profile == "idle" || arguments.rate > 0 ||
      arguments.replay_speed == "flat")
    return complain(Error{Code::invalid_argument, "find-capacity",
                          "it needs a profile in which each machine has a pace of its own",
                          "take random4k, oltp, burst or replay, with --interval-ms"});
  if (arguments.interval_ms == 0) arguments.interval_ms = 500;
  if (static_cast<double>(arguments.interval_ms) > capacity.staleness_ms)
    return complain(
        Error{Code::invalid_argument, "--staleness-ms",
              "a machine with an epoch every " + std::to_string(arguments.interval_ms) + " ms is never that fresh",
              "take a shorter --interval-ms"});
  const std::size_t start = std::min(arguments.machines, capacity.machines_max);
  LoadArguments largest = arguments;
  largest.machines = capacity.machines_max;  // a replay spreads the trace over all of them
  if (const Status status = need_descriptors(largest.machines); !status) return complain(status.error());
  auto prepared = prepare(largest);
  if (!prepared) return complain(prepared.error());
  if (const Status status = check_server(largest); !status) return complain(status.error());
  if (!prepared->note.empty()) std::fprintf(stderr, "tidemark-bench: %s\n", prepared->note.c_str());

  const cli::Interrupt interrupt([] {});
  Fleet fleet(std::move(prepared->options), arguments.address, threads_of(largest), [&] { return interrupt.raised(); });
  ServerWatch watch(arguments.admin_socket, arguments.server_pid);
  Search search(fleet, watch, arguments, capacity, interrupt);
  Json trials = Json::array();
  std::size_t held = 0, failed = 0;  // 0: none yet
  Json best;
  std::optional<Error> ended;
  for (std::size_t next = start; next > 0 && !interrupt.raised();) {
    const auto done = search.trial(next);
    if (!done) {
      ended = done.error();
      break;
    }
    if (interrupt.raised()) break;  // cut short: it says nothing
    trials.push_back(done->report);
    if (done->held) {
      held = next;
      best = done->report;
      if (next >= capacity.machines_max) break;
    } else {
      failed = next;
    }
    if (failed == 0)
      next = std::min(capacity.machines_max, next * 2);
    else if (failed - held <=
             std::max<std::size_t>(1, static_cast<std::size_t>(capacity.precision * static_cast<double>(held))))
      break;
    else
      next = (held + failed) / 2;
  }
  fleet.finish();
  const bool quiet = fleet.quiesce(kQuiesceTimeout);
  Json report{{"version", TIDEMARK_VERSION},
              {"profile", arguments.profile},
              {"interval_ms", arguments.interval_ms},
              {"blocks_per_epoch", arguments.blocks_per_epoch},
              {"staleness_bound_ms", capacity.staleness_ms},
              {"machines_held", held},
              {"limit_reached", failed != 0},
              {"best", best},
              {"trials", trials}};
  if (interrupt.raised()) report["interrupted"] = true;
  if (ended) report["error"] = ended->message();
  if (arguments.json_path != "-") {
    if (held == 0)
      std::printf("this server does not hold a machine of this profile%s\n",
                  interrupt.raised() ? " (interrupted)" : "");
    else
      std::printf(
          "this server holds %s%zu machines of this profile: %s, an epoch every %llu ms, %.0f blocks/s in all, "
          "staleness p99 %.0f ms "
          "(bound %.0f ms)%s\n",
          failed == 0 ? "at least " : "", held, arguments.profile.c_str(),
          static_cast<unsigned long long>(arguments.interval_ms), best["blocks_per_s"].get<double>(),
          best["staleness_us_p99"].get<double>() / 1000, capacity.staleness_ms,
          interrupt.raised() ? " (interrupted)" : "");
  }
  if (const Status status = write_report(arguments.json_path, report.dump(1) + "\n"); !status)
    return complain(status.error());
  if (ended) return complain(*ended);
  return quiet && held > 0 ? 0 : 1;
}

}  // namespace tidemark::bench
