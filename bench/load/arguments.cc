#include "bench/load/arguments.h"

#include <sys/resource.h>

#include <algorithm>
#include <asio/io_context.hpp>
#include <charconv>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/client.h"
#include "net/connect.h"

namespace tidemark::bench {
namespace {

constexpr std::size_t kMachinesMax = 20'000;
constexpr std::size_t kDescriptorsSpare = 64;
constexpr auto kProbeTimeout = std::chrono::seconds(10);

const std::map<std::string, Profile> kProfiles{
    {"idle", Profile::idle}, {"bulk", Profile::bulk},   {"random4k", Profile::random4k}, {"small", Profile::random4k},
    {"oltp", Profile::oltp}, {"burst", Profile::burst}, {"replay", Profile::replay}};

}  // namespace

void add_server_options(CLI::App& app, LoadArguments& a) {
  app.add_option("--server", a.address, "HOST:PORT of the server")->required();
  app.add_option("--socket", a.admin_socket, "the server's admin socket, to enrol the machines")->required();
  app.add_option("--server-pid", a.server_pid, "the server's process; found by itself when it runs on this machine");
  app.add_option("--prefix", a.prefix, "names of the machines begin with this")->capture_default_str();
  app.add_option("--enrolled", a.enrolled_path,
                 "machines in this file are used again, what is missing is enrolled and added. It holds their keys");
  app.add_option("--threads", a.threads, "0: one for each core")->check(CLI::Range(0, 256))->capture_default_str();
  app.add_option("--json", a.json_path, "write the report there; - is the standard output");
  app.add_flag("--quiet", a.quiet, "no live view");
  app.add_option("--seed", a.seed, "of places and contents")->capture_default_str();
}

void add_load_options(CLI::App& app, LoadArguments& a) {
  std::vector<std::string> names;
  for (const auto& [name, profile] : kProfiles) names.push_back(name);
  app.add_option("--profile", a.profile, "idle, bulk, random4k (or small), oltp, burst, replay")
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  app.add_option("--disks", a.disks, "of each machine")->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--disk-size", a.disk_size, "bytes, or with a unit: 16G")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  app.add_option("--block-size", a.block_size, "random4k, burst: bytes, whole granules of 4096, 65536 at most")
      ->capture_default_str();
  app.add_option("--blocks-per-epoch", a.blocks_per_epoch, "random4k, oltp, burst: blocks to an acknowledgement")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app.add_option("--interval-ms", a.interval_ms,
                 "open loop: an epoch of each machine is due this often; 0: as soon as the last is durable")
      ->check(CLI::Range(0, 3'600'000));
  app.add_option("--rate", a.rate, "open loop: blocks a second of all machines together, instead of --interval-ms")
      ->check(CLI::Range(0.0, 1e9));
  app.add_option("--trace", a.trace_path, "replay: a vscsi trace; without one a synthetic trace is made");
  app.add_option("--speed", a.replay_speed, "replay: 1x, 20x, or flat for flat out")->capture_default_str();
  app.add_option("--compressible", a.compressible, "share of every block that is zeroes")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  app.add_option("--zero-share", a.zero_share, "share of the 64 KiB stretches that are nothing but zeroes")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--zstd-level", a.zstd_level, "0: send as it is; by default 1 with --compressible, else 0")
      ->check(CLI::Range(0, 19));
  app.add_option("--seconds", a.seconds, "measured time")->check(CLI::Range(0.1, 86400.0))->capture_default_str();
  app.add_option("--ramp,--warmup", a.ramp, "seconds before it, in which the load begins")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_option("--hold", a.hold, "seconds before the ramp in which all are connected and say nothing")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_option("--html", a.html_path, "write a page with plots there");
}

Result<std::optional<double>> parse_speed(const std::string& text) {
  if (text == "flat") return std::nullopt;
  const std::string digits = text.ends_with('x') ? text.substr(0, text.size() - 1) : text;
  double speed = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), speed);
  if (error != std::errc{} || end != digits.data() + digits.size() || !(speed >= 0.01 && speed <= 10'000))
    return fail(Code::invalid_argument, "--speed " + text, "it is no speed from 0.01x to 10000x",
                "say 1x, 20x or flat");
  return speed;
}

Result<Prepared> prepare(const LoadArguments& a) {
  PlanShape shape;
  shape.profile = kProfiles.at(a.profile);
  shape.machines = static_cast<std::uint32_t>(a.machines);
  shape.disks = a.disks;
  shape.disk_size = a.disk_size;
  shape.block_size = a.block_size;
  shape.blocks_per_epoch = a.blocks_per_epoch;
  shape.seed = a.seed;
  std::chrono::microseconds interval = std::chrono::milliseconds(a.interval_ms);
  std::string note;
  const bool paced = shape.profile != Profile::bulk && shape.profile != Profile::idle;
  if (!paced && (interval.count() != 0 || a.rate > 0))
    return fail(Code::invalid_argument, "--profile " + a.profile, "it has no rate of its own",
                "leave out --interval-ms and --rate");
  if (a.rate > 0 && (interval.count() != 0 || shape.profile == Profile::replay))
    return fail(Code::invalid_argument, "--rate", "a load goes by one pace: a rate, an interval, or a trace");
  if (a.rate > 0) {
    const double us = static_cast<double>(a.machines) * a.blocks_per_epoch / a.rate * 1e6;
    if (us < 1000 || us > 3.6e9)
      return fail(Code::invalid_argument, "--rate",
                  "each machine would have an epoch every " + std::to_string(us / 1e6) + " s",
                  "change --machines or --blocks-per-epoch");
    interval = std::chrono::microseconds(static_cast<std::int64_t>(us));
  }
  if (shape.profile == Profile::replay) {
    const auto speed = TIDEMARK_TRY(parse_speed(a.replay_speed));
    if (interval.count() == 0) interval = std::chrono::seconds(1);
    if (a.trace_path.empty()) {
      note = "no --trace: replaying a synthetic one, made to look like two hours of a production machine";
      shape.trace = std::make_shared<const Trace>(synthetic_trace(
          a.seed,
          SyntheticShape{.disks = a.disks, .disk_granules = a.disk_size / limits::kGranuleSize, .bytes = 2ULL << 30}));
    } else {
      shape.trace = std::make_shared<const Trace>(TIDEMARK_TRY(load_vscsi(a.trace_path)));
    }
    shape.trace_slice = std::chrono::microseconds(std::max<std::int64_t>(
        1, static_cast<std::int64_t>(static_cast<double>(interval.count()) * speed.value_or(1))));
    if (!speed) interval = {};
  }
  Plan plan = TIDEMARK_TRY(Plan::make(std::move(shape)));
  Content content{.seed = a.seed, .compressible = a.compressible, .zero_share = a.zero_share};
  return Prepared{LoadOptions{.plan = std::move(plan),
                              .content = content,
                              .zstd_level = a.zstd_level.value_or(a.compressible > 0 ? 1 : 0),
                              .epoch_interval = interval},
                  std::move(note)};
}

Status need_descriptors(std::size_t machines) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_cur < machines + kDescriptorsSpare)
    return fail(Code::invalid_argument, std::to_string(machines) + " machines",
                "they need a file descriptor each, and the limit is " + std::to_string(files.rlim_cur),
                "raise it (ulimit -n), or take fewer machines");
  return {};
}

Status check_server(const LoadArguments& a) {
  if (a.machines == 0 || a.machines > kMachinesMax)
    return fail(Code::invalid_argument, "--machines",
                "1 to " + std::to_string(kMachinesMax) + " machines can be simulated");
  TIDEMARK_TRY(net::parse_host_port(a.address));
  TIDEMARK_TRY(cli::AdminClient(a.admin_socket).get("/v1/server"));
  asio::io_context io;
  std::optional<Error> failure;
  net::Connecting probe(io, a.address, kProbeTimeout, [&](auto socket) {
    if (!socket) failure = std::move(socket).error();
  });
  io.run();
  if (failure) {
    if (failure->remedy.empty()) failure->remedy = "is it the address that the server listens on?";
    return std::unexpected(std::move(*failure));
  }
  return {};
}

std::size_t threads_of(const LoadArguments& a) {
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  return std::min(a.machines, a.threads == 0 ? cores : a.threads);
}

}  // namespace tidemark::bench
