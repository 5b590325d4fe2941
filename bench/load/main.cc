// tidemark-bench: simulated machines against a real server, over real TLS, and what they did to it.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "bench/load/commands.h"

int main(int argc, char** argv) {
  using namespace tidemark::bench;
  CLI::App app{"Simulates machines that replicate to a Tidemark server, and measures what the server does."};
  app.require_subcommand(1);
  app.set_version_flag("--version", TIDEMARK_VERSION);
  LoadArguments load, storming, finding;
  StormArguments storm;
  CapacityArguments capacity;
  CompareArguments compare;

  auto* load_app = app.add_subcommand("load", "so many machines with a profile, for a while");
  add_server_options(*load_app, load);
  load_app->add_option("--machines", load.machines, "simulated machines")->capture_default_str();
  add_load_options(*load_app, load);
  load_app->add_option("--verify", load.verify, "afterwards read points of so many machines back, and prove every byte")
      ->check(CLI::Range(1, 20'000));

  auto* storm_app = app.add_subcommand("storm", "all machines come back at once: with and without TLS resumption");
  add_server_options(*storm_app, storming);
  storm_app->add_option("--machines", storming.machines, "that come and go")->default_val(1000);
  storm_app->add_option("--healthy", storm.healthy, "machines more that stay, and write meanwhile")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  storm_app->add_option("--rounds", storm.rounds, "of each kind")->check(CLI::Range(1, 100))->capture_default_str();

  auto* find_app = app.add_subcommand("find-capacity", "how many machines of a profile the server holds");
  add_server_options(*find_app, finding);
  add_load_options(*find_app, finding);
  find_app->add_option("--machines", finding.machines, "to begin with")->default_val(16);
  find_app->add_option("--machines-max", capacity.machines_max, "to end with")
      ->check(CLI::Range(1, 20'000))
      ->capture_default_str();
  find_app->add_option("--staleness-ms", capacity.staleness_ms, "p99 of staleness that still counts as held")
      ->check(CLI::Range(1.0, 3.6e6))
      ->capture_default_str();
  find_app->add_option("--trial-seconds", capacity.trial_seconds, "of each trial, after its ramp")
      ->check(CLI::Range(1.0, 3600.0))
      ->capture_default_str();
  find_app->add_option("--precision", capacity.precision, "how close to the limit, as a share")
      ->check(CLI::Range(0.01, 0.5))
      ->capture_default_str();

  auto* compare_app =
      app.add_subcommand("compare", "this server against nbdkit, qemu-nbd, a bare TLS loop and the disk");
  compare_app->add_option("--dir", compare.directory, "where the data of all of them goes")->capture_default_str();
  compare_app->add_option("--repetitions", compare.repetitions, "of each, in alternation")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  compare_app->add_option("--mib", compare.mib, "of bulk")->check(CLI::Range(64, 1 << 20))->capture_default_str();
  compare_app->add_option("--seconds", compare.seconds, "of random writes")
      ->check(CLI::Range(1.0, 600.0))
      ->capture_default_str();
  compare_app->add_option("--json", compare.json_path, "write the report there; - is the standard output");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (*load_app) return run_load(load);
  if (*storm_app) return run_storm(storming, storm);
  if (*find_app) return run_find_capacity(finding, capacity);
  return run_compare(compare);
}
