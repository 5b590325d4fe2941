// tidemark-bench: a load of simulated machines against a real server, over real TLS, and what it did to it.
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/load/session.h"

namespace {

using namespace tidemark;
using Seconds = std::chrono::duration<double>;

struct ProcessUsage {
  double cpu_seconds = 0;
  std::uint64_t resident_bytes = 0;
};

// Of the server, from /proc; nothing when it is not on this machine.
std::optional<ProcessUsage> usage_of(int pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (pid == 0 || !std::getline(stat, line)) return std::nullopt;
  std::istringstream fields(line.substr(line.rfind(')') + 2));
  std::vector<std::string> field{std::istream_iterator<std::string>(fields), {}};
  if (field.size() < 22) return std::nullopt;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  return ProcessUsage{(std::stod(field[11]) + std::stod(field[12])) / ticks,
                      std::stoull(field[21]) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))};
}

double percentile(std::vector<std::uint32_t>& sorted, double share) {
  if (sorted.empty()) return 0;
  return sorted[std::min(sorted.size() - 1, static_cast<std::size_t>(share * static_cast<double>(sorted.size())))];
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Simulates machines that replicate to a Tidemark server, and measures what the server does."};
  bench::LoadOptions options;
  std::string address, admin_socket, prefix = "bench", json_path;
  std::size_t machines = 1;
  double seconds = 10, warmup = 1;
  std::uint64_t interval_ms = 0, seed = 1;
  int server_pid = 0;
  const std::map<std::string, bench::Profile> profiles{
      {"idle", bench::Profile::idle}, {"bulk", bench::Profile::bulk}, {"small", bench::Profile::small}};
  app.add_option("--server", address, "HOST:PORT of the server")->required();
  app.add_option("--socket", admin_socket, "the server's admin socket, to enrol the machines")->required();
  app.add_option("--server-pid", server_pid, "measure this process's CPU time and memory");
  app.add_option("--machines", machines, "simulated machines")->check(CLI::Range(1, 20000))->capture_default_str();
  app.add_option("--profile", options.profile, "idle, bulk or small")->transform(CLI::CheckedTransformer(profiles));
  app.add_option("--seconds", seconds, "measured time")->check(CLI::Range(0.1, 3600.0))->capture_default_str();
  app.add_option("--warmup", warmup, "seconds before it")->check(CLI::Range(0.0, 600.0))->capture_default_str();
  app.add_option("--block-size", options.block_size, "small: bytes, whole granules up to 64 KiB")
      ->check(CLI::Range(4096, 65536))
      ->capture_default_str();
  app.add_option("--blocks-per-epoch", options.blocks_per_epoch, "small: blocks to an acknowledgement")
      ->check(CLI::Range(1, 200))
      ->capture_default_str();
  app.add_option("--interval-ms", interval_ms, "small: an epoch is due this often; 0: as soon as the last is durable");
  app.add_option("--compressible", options.compressible, "share of every block that is zeroes")
      ->check(CLI::Range(0.0, 0.99));
  app.add_option("--zstd-level", options.zstd_level, "0: send as it is")->check(CLI::Range(0, 19));
  app.add_option("--prefix", prefix, "names of the machines begin with this")->capture_default_str();
  app.add_option("--seed", seed, "of places and contents")->capture_default_str();
  app.add_option("--json", json_path, "write the figures there too");
  CLI11_PARSE(app, argc, argv);
  options.block_size = static_cast<std::uint32_t>(round_down(options.block_size, limits::kGranuleSize));
  options.epoch_interval = std::chrono::milliseconds(interval_ms);

  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (files.rlim_cur < machines + 64) {
    std::fprintf(stderr, "tidemark-bench: %zu machines need as many file descriptors, the limit is %llu (ulimit -n)\n",
                 machines, static_cast<unsigned long long>(files.rlim_cur));
    return 1;
  }
  auto identities = bench::enroll_machines(admin_socket, address, prefix, machines);
  if (!identities) {
    std::fprintf(stderr, "tidemark-bench: %s\n", identities.error().message().c_str());
    return 1;
  }
  const auto before_connect = usage_of(server_pid);

  asio::io_context io(1);
  net::ReceiveBuffer buffer;
  bench::LoadCounters counters;
  std::vector<std::unique_ptr<bench::LoadSession>> sessions;
  for (auto& identity : *identities)
    sessions.push_back(std::make_unique<bench::LoadSession>(io, buffer, address, std::move(identity), options, counters,
                                                            seed + sessions.size()));
  // A server admits so many handshakes at a time; a polite crowd connects in that rhythm.
  for (std::size_t i = 0; i < sessions.size(); ++i) {
    sessions[i]->start();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (i + 1 > counters.connected + counters.errors + 24 && std::chrono::steady_clock::now() < deadline)
      io.run_one();
  }
  const auto connect_deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (counters.connected + counters.errors < sessions.size() && std::chrono::steady_clock::now() < connect_deadline)
    io.run_one_for(std::chrono::milliseconds(100));
  std::fprintf(stderr, "connected %zu of %zu machines\n", counters.connected, machines);

  io.run_for(std::chrono::duration_cast<std::chrono::milliseconds>(Seconds(warmup)));
  const bench::LoadCounters at_start = counters;
  counters.ack_us.clear();
  const auto usage_start = usage_of(server_pid);
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t resident_max = 0;
  for (Seconds passed{0}; passed.count() < seconds; passed = std::chrono::steady_clock::now() - start) {
    io.run_for(std::chrono::milliseconds(100));
    if (const auto usage = usage_of(server_pid)) resident_max = std::max(resident_max, usage->resident_bytes);
  }
  const double wall = Seconds(std::chrono::steady_clock::now() - start).count();
  const auto usage_end = usage_of(server_pid);
  bench::LoadCounters done = counters;

  for (auto& session : sessions) session->finish();
  const auto end_deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (std::ranges::any_of(sessions, [](const auto& s) { return !s->finished(); }) &&
         std::chrono::steady_clock::now() < end_deadline)
    io.run_for(std::chrono::milliseconds(20));

  const double bytes = static_cast<double>(done.plain_bytes_durable - at_start.plain_bytes_durable);
  const double epochs = static_cast<double>(done.epochs_durable - at_start.epochs_durable);
  std::ranges::sort(done.ack_us);
  nlohmann::ordered_json report{{"machines", machines},
                                {"connected", counters.connected},
                                {"errors", counters.errors},
                                {"first_error", counters.first_error},
                                {"seconds", wall},
                                {"durable_mib_per_s", bytes / wall / (1 << 20)},
                                {"epochs_per_s", epochs / wall},
                                {"blocks_per_s", epochs * options.blocks_per_epoch / wall},
                                {"ack_us_p50", percentile(done.ack_us, 0.5)},
                                {"ack_us_p99", percentile(done.ack_us, 0.99)},
                                {"ack_us_max", done.ack_us.empty() ? 0 : done.ack_us.back()}};
  if (usage_start && usage_end) {
    const double cpu = usage_end->cpu_seconds - usage_start->cpu_seconds;
    report["server_cpu_share"] = cpu / wall;
    if (bytes > 0) report["server_cpu_s_per_gib"] = cpu / (bytes / (1 << 30));
    report["server_resident_mib"] = static_cast<double>(resident_max) / (1 << 20);
    if (before_connect)
      report["server_bytes_per_session"] =
          (static_cast<double>(usage_start->resident_bytes) - static_cast<double>(before_connect->resident_bytes)) /
          static_cast<double>(machines);
  }
  if (options.profile != bench::Profile::small) report.erase("blocks_per_s");
  std::printf("%s\n", report.dump(2).c_str());
  if (!json_path.empty()) std::ofstream(json_path) << report.dump(2) << '\n';
  return counters.errors == 0 ? 0 : 1;
}
