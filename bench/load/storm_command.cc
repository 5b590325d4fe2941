#include <fmt/format.h>

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
constexpr auto kTimeout = std::chrono::seconds(300);
constexpr auto kGoneTimeout = std::chrono::seconds(30);
constexpr auto kHealthyInterval = std::chrono::milliseconds(200);

// Until the server has noticed that they are gone: what comes back before that is another thing to measure.
void wait_until_gone(ServerWatch& watch, std::size_t left, const cli::Interrupt& interrupt) {
  const auto deadline = std::chrono::steady_clock::now() + kGoneTimeout;
  while (!interrupt.raised() && std::chrono::steady_clock::now() < deadline) {
    const auto metrics = watch.metrics();
    if (!metrics || !metrics->contains("tidemark_sessions") ||
        metrics->at("tidemark_sessions") <= static_cast<double>(left))
      return;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

Json one_storm(Fleet& fleet, ServerWatch& watch, std::size_t healthy, bool resume, LiveView& live,
               const cli::Interrupt& interrupt) {
  fleet.disconnect(0, false, !resume);
  wait_until_gone(watch, healthy, interrupt);
  const LoadCounters before = fleet.sample().counters;
  const auto usage_before = watch.usage();
  const auto begin = std::chrono::steady_clock::now();
  const bool back = fleet.connect(0, kTimeout, [&] {
    if (live.shown())
      live.draw({fmt::format("  {}: {} of {} are back after {:.1f} s", resume ? "resumed" : "full handshakes",
                             fleet.sample().counters.connected, fleet.size(),
                             Seconds(std::chrono::steady_clock::now() - begin).count())});
  });
  const double seconds = Seconds(std::chrono::steady_clock::now() - begin).count();
  const auto usage_after = watch.usage();
  const LoadCounters after = fleet.sample().counters;
  const Histogram connects = after.connect_us.minus(before.connect_us);
  Json report{{"kind", resume ? "resumed" : "full"},
              {"all_back", back},
              {"seconds", seconds},
              {"connected", after.connected},
              {"connect_us_p50", connects.percentile(0.5)},
              {"connect_us_p99", connects.percentile(0.99)},
              {"connect_us_max", connects.max()},
              {"resumed", after.resumed - before.resumed},
              {"retries", after.connect_retries - before.connect_retries},
              {"dropped", after.dropped - before.dropped},
              {"per_s", static_cast<double>(after.welcomes - before.welcomes) / seconds}};
  if (usage_before && usage_after && after.welcomes > before.welcomes)
    report["server_cpu_ms_per_connection"] = (usage_after->cpu_seconds - usage_before->cpu_seconds) * 1000 /
                                             static_cast<double>(after.welcomes - before.welcomes);
  return report;
}

}  // namespace

int run_storm(const LoadArguments& arguments, const StormArguments& storm) {
  LoadArguments all = arguments;
  all.machines += storm.healthy;
  all.profile = "random4k";
  all.blocks_per_epoch = 1;
  all.interval_ms = static_cast<std::uint64_t>(kHealthyInterval.count());
  if (const Status status = need_descriptors(all.machines); !status) return complain(status.error());
  auto prepared = prepare(all);
  if (!prepared) return complain(prepared.error());
  if (const Status status = check_server(all); !status) return complain(status.error());

  const cli::Interrupt interrupt([] {});
  const auto stopped = [&] { return interrupt.raised(); };
  auto identities = enroll(all, 0, all.machines, interrupt);
  if (!identities) return complain(identities.error());
  // The healthy have a thread of their own: what delays them is the server, not the storm's end of thousands of
  // handshakes.
  const auto others = identities->begin() + static_cast<std::ptrdiff_t>(storm.healthy);
  Fleet healthy(prepared->options, all.address, 1, stopped);
  healthy.add({identities->begin(), others});
  Fleet fleet(std::move(prepared->options), all.address, threads_of(all), stopped);
  fleet.add({others, identities->end()});
  ServerWatch watch(all.admin_socket, all.server_pid);
  LiveView live(!all.quiet);
  const bool there = healthy.connect(kConnectAtOnce, kTimeout) && fleet.connect(kConnectAtOnce, kTimeout);
  std::fprintf(stderr, "connected %llu of %zu machines\n",
               static_cast<unsigned long long>(healthy.sample().counters.connected + fleet.sample().counters.connected),
               all.machines);
  LoadCounters end = healthy.sample().counters;
  end.add(fleet.sample().counters);
  if (!there && !interrupt.raised())
    return complain(Error{Code::timed_out, all.address, "not all machines could connect: " + end.first_error, {}});
  healthy.activate(storm.healthy);
  Json rounds = Json::array();
  for (std::size_t i = 0; i < storm.rounds && !interrupt.raised(); ++i)
    for (const bool resume : {true, false})
      if (!interrupt.raised()) rounds.push_back(one_storm(fleet, watch, storm.healthy, resume, live, interrupt));
  live.clear();
  healthy.finish();
  const bool quiet = healthy.quiesce(std::chrono::seconds(60));
  const LoadCounters steady = healthy.sample().counters;
  end = fleet.sample().counters;
  end.add(steady);
  bool good = quiet && end.errors == 0;
  for (const auto& round : rounds) good = good && round["all_back"].get<bool>();
  Json report{{"version", TIDEMARK_VERSION},
              {"machines", arguments.machines},
              {"healthy", storm.healthy},
              {"rounds", rounds},
              {"dropped", end.dropped},
              {"errors", end.errors},
              {"first_error", end.first_error},
              {"healthy_ack_us_p50", steady.ack_us.percentile(0.5)},
              {"healthy_ack_us_p99", steady.ack_us.percentile(0.99)},
              {"healthy_epochs", steady.epochs_durable}};
  if (interrupt.raised()) report["interrupted"] = true;
  if (all.json_path != "-") {
    for (const auto& r : rounds)
      std::printf(
          "%-16s %zu machines back in %.2f s (%.0f a second), p99 %.0f ms, %llu retries%s\n",
          r["kind"] == "resumed" ? "resumed" : "full handshakes", arguments.machines, r["seconds"].get<double>(),
          r["per_s"].get<double>(), r["connect_us_p99"].get<double>() / 1000,
          static_cast<unsigned long long>(r["retries"].get<std::uint64_t>()),
          r.contains("server_cpu_ms_per_connection")
              ? fmt::format(", {:.2f} ms of server CPU each", r["server_cpu_ms_per_connection"].get<double>()).c_str()
              : "");
    std::printf("%-16s %zu machines, %llu epochs, ack p99 %.1f ms, %llu dropped\n", "healthy", storm.healthy,
                static_cast<unsigned long long>(steady.epochs_durable),
                static_cast<double>(steady.ack_us.percentile(0.99)) / 1000,
                static_cast<unsigned long long>(end.dropped));
    if (end.errors > 0)
      std::printf("errors: %llu, the first: %s\n", static_cast<unsigned long long>(end.errors),
                  end.first_error.c_str());
  }
  if (const Status status = write_report(all.json_path, report.dump(1) + "\n"); !status)
    return complain(status.error());
  return good ? 0 : 1;
}

}  // namespace tidemark::bench
