// Replays a trace of block writes over a whole month of the default ladder into a real store: real log, index, settler
// and files, a clock that is moved. Checks every point against a model, and what the store takes and writes against the
// targets. Then the same for bulk: an initial sync, and what becomes of it.
//
// usage: trace_replay [--trace FILE] [--json FILE] [--small] ...; exit status 1: a point is wrong or a target is
// missed.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "bench/load/trace.h"
#include "tests/replay/history.h"

namespace tidemark::replay {
namespace {

using namespace std::chrono_literals;
using bench::load_vscsi, bench::synthetic_trace, bench::SyntheticShape, bench::Trace, bench::TraceWrite;
using Granules = std::set<std::pair<std::uint32_t, std::uint64_t>>;

// With --small, partly filled segments and their tables weigh more: what is checked there is that no figure runs away.
struct Targets {
  double space = 1.10, trace = 2.0, bulk = 1.05;
};
constexpr Targets kTargets, kSmallTargets{1.25, 2.6, 1.05};
constexpr std::uint64_t kTickSeconds = 600;
constexpr WallMicros kBegin = 1'700'000'000'000'000;

struct Options {
  std::string trace_path, json_path, directory;
  double days = 33;
  std::uint64_t seed = 1;
  unsigned crashes = 8;
  std::uint64_t segment_mib = 64;
  std::uint64_t bulk_mib = 2048;
  storage::SettlerOptions settler;
  bool small = false, verbose = false;
  const Targets& targets() const { return small ? kSmallTargets : kTargets; }
};

[[noreturn]] void give_up(const std::string& what) {
  fmt::print(stderr, "trace_replay: {}\n", what);
  std::exit(1);
}
void good(const Status& status, const char* doing) {
  if (!status) give_up(fmt::format("{}: {}", doing, status.error().message()));
}
void right(const std::optional<std::string>& wrong) {
  if (wrong) give_up("WRONG: " + *wrong);
}

double mib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }
double ratio(double a, double b) { return b == 0 ? 0 : a / b; }

double cpu_seconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

storage::PartitionOptions partition_options(const Options& options) {
  storage::PartitionOptions partition;
  partition.segment_size = options.segment_mib << 20;
  partition.settler = options.settler;
  partition.settler.cold_segment_size = partition.segment_size;
  return partition;
}

// What docs/operating.md states: segments that wait, the one on deck and the one being written.
std::uint64_t constant_reserve(const storage::PartitionOptions& options) {
  return (2 * std::uint64_t{options.reserve_segments} + 2) * options.segment_size;
}

nlohmann::json json_of(const Written& written, std::uint64_t index, std::uint64_t received) {
  return {{"received_mib", mib(received)},
          {"log_mib", mib(written.log)},
          {"format_mib", mib(written.format)},
          {"settle_mib", mib(written.cold)},
          {"index_mib", mib(index)},
          {"other_mib", mib(written.other)},
          {"amplification", ratio(static_cast<double>(written.total() + index), static_cast<double>(received))}};
}

class Report {
 public:
  void row(const std::string& name, double value, double target, const std::string& unit) {
    const bool holds = value <= target;
    ok_ = ok_ && holds;
    fmt::print("{:<72} {:>8.3f} {:<6} target <= {:<5} {}\n", name, value, unit, target, holds ? "holds" : "MISSED");
    rows_.push_back({{"row", name}, {"value", value}, {"target", target}, {"unit", unit}, {"holds", holds}});
  }
  void note(const std::string& name, nlohmann::json value) { notes_[name] = std::move(value); }
  bool write(const std::string& path) const {
    if (!path.empty()) std::ofstream(path) << nlohmann::json{{"rows", rows_}, {"notes", notes_}}.dump(2) << '\n';
    return ok_;
  }

 private:
  bool ok_ = true;
  nlohmann::json rows_ = nlohmann::json::array(), notes_;
};

class Replay {
 public:
  Replay(const Options& options, Report& report)
      : options_(options), report_(report), partition_(partition_options(options)) {}

  void trace_phase(const Trace& trace, bool recorded);
  void bulk_phase();

 private:
  struct Space {
    std::uint64_t stored = 0, needed = 0;
    double ratio = 0;  // beside the reserve
  };
  Space space(Store& store, History& history) {
    const auto kept = history.kept();
    if (!kept) give_up(kept.error().message());
    const std::uint64_t stored = store.stored().total(), constant = constant_reserve(partition_);
    const std::uint64_t needed = history.model().needed(*kept).bytes;
    const std::uint64_t beside = stored - std::min(stored, constant);
    return {stored, needed, ratio(static_cast<double>(beside), static_cast<double>(needed))};
  }
  void quiesce(Store& store, History& history, std::uint64_t seconds) {
    for (std::uint64_t passed = 0; passed < seconds; passed += kTickSeconds) {
      clock_.advance(std::chrono::seconds(kTickSeconds));
      good(history.retain(), "retention");
      good(store.background(), "background");
    }
  }
  void check_points(History& history, std::size_t at_most) {
    const auto kept = history.kept();
    if (!kept) give_up(kept.error().message());
    for (std::size_t i = 0; i < kept->size(); ++i) {
      // All, or the newest and some others.
      const bool chosen = kept->size() <= at_most || i + 1 == kept->size() || random_.below(kept->size()) < at_most;
      if (chosen) right(history.check_point((*kept)[i])), ++points_checked_;
    }
  }
  void crash(Store& store, History& history, const Granules& granules) {
    good(history.half_epoch(granules), "an epoch that is cut off");
    store.crash();
    good(store.open(), "open after a crash");
    history.begin_life();
    good(history.abort_open(), "abort");
    check_points(history, 2);
  }

  const Options& options_;
  Report& report_;
  const storage::PartitionOptions partition_;
  ManualClock clock_{kBegin};
  Random random_{options_.seed};
  std::uint64_t points_checked_ = 0;
};

void Replay::trace_phase(const Trace& trace, bool recorded) {
  const double stretch = options_.days * 86'400e6 / static_cast<double>(trace.duration_us);
  Store store(options_.directory + "/trace", partition_, clock_);
  good(store.create(), "create");
  good(store.open(), "open");
  History history(store, clock_, 1, trace.disk_granules);
  good(history.add_machine(), "add a machine");

  const auto started = std::chrono::steady_clock::now();
  const double cpu = cpu_seconds();
  std::uint64_t now_s = 0, next_tick = kTickSeconds, next_sample = 86'400;
  const auto total_s = static_cast<std::uint64_t>(options_.days * 86'400);
  const std::uint64_t crash_every = options_.crashes == 0 ? UINT64_MAX : total_s / (options_.crashes + 1);
  std::uint64_t next_crash = crash_every;
  double space_worst = 0;
  auto samples = nlohmann::json::array();
  const auto advance_to = [&](std::uint64_t second) {
    clock_.advance(std::chrono::seconds(second - now_s));
    now_s = second;
  };
  const auto ticks_until = [&](std::uint64_t second) {
    while (next_tick <= second) {
      advance_to(next_tick);
      next_tick += kTickSeconds;
      good(history.retain(), "retention");
      good(store.background(), "background");
      if (now_s < next_sample) continue;
      next_sample += 86'400;
      const Space sampled = space(store, history);
      // A store that holds less than a few segments is all reserve.
      if (sampled.needed >= 8 * partition_.segment_size) space_worst = std::max(space_worst, sampled.ratio);
      if (options_.verbose)
        fmt::print(stderr,
                   "day {:.0f}: stored {:.0f} MiB, needed {:.0f} MiB, {:.3f}; log segments {}, moved {:.0f} MiB\n",
                   static_cast<double>(now_s) / 86'400, mib(sampled.stored), mib(sampled.needed), sampled.ratio,
                   store.log_segments(), mib(store.written().cold));
      samples.push_back({{"day", static_cast<double>(now_s) / 86'400},
                         {"stored_mib", mib(sampled.stored)},
                         {"needed_mib", mib(sampled.needed)},
                         {"ratio", sampled.ratio}});
    }
  };
  Granules granules;
  for (std::size_t i = 0; i < trace.writes.size();) {
    // An epoch a second: what the agent's bitmap gathers in it.
    const auto second = static_cast<std::uint64_t>(static_cast<double>(trace.writes[i].time_us) * stretch / 1e6);
    granules.clear();
    for (; i < trace.writes.size(); ++i) {
      const TraceWrite& write = trace.writes[i];
      if (static_cast<std::uint64_t>(static_cast<double>(write.time_us) * stretch / 1e6) != second) break;
      for (std::uint32_t g = 0; g < write.granules; ++g) granules.emplace(write.disk, write.first_granule + g);
    }
    ticks_until(second);
    advance_to(second);
    if (second >= next_crash) {
      next_crash += crash_every;
      crash(store, history, granules);
    }
    good(history.epoch(granules), "an epoch");
    store.partition().on_idle();  // a second without another commit: the durable LSN goes out
    store.pump();
  }
  ticks_until(total_s);
  quiesce(store, history, kTickSeconds * 2);
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();

  const auto written = store.written();
  const std::uint64_t index = store.index_written();
  const Space at_end = space(store, history);
  const auto stored = store.stored();
  fmt::print("{} trace: {} writes stretched over {} days, {} epochs, {:.0f} MiB received; {:.0f} s ({:.0f} s CPU)\n",
             recorded ? "recorded" : "synthetic", trace.writes.size(), options_.days, history.epochs(),
             mib(history.received()), wall, cpu_seconds() - cpu);
  fmt::print("written: log {:.0f} MiB, formatting {:.0f}, settling {:.0f}, index {:.0f}, other {:.0f}\n",
             mib(written.log), mib(written.format), mib(written.cold), mib(index), mib(written.other));
  fmt::print(
      "stored: log {:.0f} MiB, reserve {:.0f}, cold {:.0f}, index {:.1f}; needed {:.0f}, constant reserve {:.0f}\n",
      mib(stored.log), mib(stored.reserve), mib(stored.cold), mib(stored.index), mib(at_end.needed),
      mib(constant_reserve(partition_)));
  report_.note("trace", {{"recorded", recorded},
                         {"days", options_.days},
                         {"epochs", history.epochs()},
                         {"written", json_of(written, index, history.received())},
                         {"space_ratio_worst_of_a_sample_a_day", space_worst},
                         {"samples", samples}});

  right(history.check_ladder());
  check_points(history, SIZE_MAX);
  good(store.close(), "close");
  store.lose_index();
  good(store.open(), "open without an index");
  history.begin_life();
  right(history.check_ladder());
  check_points(history, 4);
  good(store.close(), "close");
  fmt::print("points compared whole: {} ({:.0f} MiB), after {} crashes and with the index made anew\n", points_checked_,
             mib(history.bytes_compared()), options_.crashes);
  report_.row("trace: stored beside the reserve, at the end, over what kept versions need", at_end.ratio,
              options_.targets().space, "ratio");
  fmt::print(
      "the same, the worst of a sample a day: {:.3f} (within a day of a burst its points are still thinning out)\n",
      space_worst);
  report_.row("trace: bytes written over bytes received",
              ratio(static_cast<double>(written.total() + index), static_cast<double>(history.received())),
              options_.targets().trace, "ratio");
}

void Replay::bulk_phase() {
  Store store(options_.directory + "/bulk", partition_, clock_);
  good(store.create(), "create");
  good(store.open(), "open");
  const std::uint64_t size = options_.bulk_mib * ((1 << 20) / limits::kGranuleSize);
  History history(store, clock_, 2, {size});
  good(history.add_machine(), "add a machine");
  good(store.background(), "background");  // the reserve is there before, once and for all
  const auto before = store.written();
  const std::uint64_t index_before = store.index_written();
  Granules granules;
  for (std::uint64_t granule = 0; granule < size; ++granule) granules.emplace_hint(granules.end(), 0, granule);
  good(history.epoch(granules), "a bulk epoch");
  quiesce(store, history, 86'400);
  auto written = store.written();
  written.log -= before.log, written.format -= before.format, written.cold -= before.cold,
      written.other -= before.other;
  const std::uint64_t index = store.index_written() - index_before;
  fmt::print("bulk: {:.0f} MiB received; written: log {:.0f} MiB, formatting {:.0f}, settling {:.0f}, index {:.1f}\n",
             mib(history.received()), mib(written.log), mib(written.format), mib(written.cold), mib(index));
  report_.note("bulk", json_of(written, index, history.received()));
  report_.row("bulk: bytes written over bytes received, a day later",
              ratio(static_cast<double>(written.total() + index), static_cast<double>(history.received())),
              options_.targets().bulk, "ratio");
  check_points(history, SIZE_MAX);

  // Most of it is overwritten, a piece a day, until the first points are gone: what was left as it is goes as well.
  for (unsigned day = 0; day < 34; ++day) {
    granules.clear();
    const std::uint64_t from = day < 8 ? size / 10 * day : size / 10 * 8;
    for (std::uint64_t granule = from; granule < from + (day < 8 ? size / 10 : 16); ++granule)
      granules.emplace_hint(granules.end(), 0, granule);
    good(history.epoch(granules), "an epoch");
    quiesce(store, history, 86'400);
    if (day % 8 == 3) crash(store, history, granules);
  }
  quiesce(store, history, kTickSeconds * 2);
  const Space at_end = space(store, history);
  right(history.check_ladder());
  check_points(history, options_.small ? SIZE_MAX : 4);
  good(store.close(), "close");
  store.lose_index();
  good(store.open(), "open without an index");
  history.begin_life();
  right(history.check_ladder());
  check_points(history, 4);
  good(store.close(), "close");
  report_.row("bulk, overwritten for a month: stored beside the reserve over needed", at_end.ratio,
              options_.targets().space, "ratio");
}

Options parse(int argc, char** argv) {
  Options options;
  CLI::App app("replays a trace over a month of the ladder into a real store, and checks points, space and writes");
  app.add_option("--trace", options.trace_path, "a vscsi trace of version 2 (default: a synthetic one)");
  app.add_option("--json", options.json_path, "where to write the figures");
  app.add_option("--directory", options.directory, "where the store is made (default: a temporary directory)");
  app.add_option("--days", options.days, "how long the trace is stretched")->check(CLI::Range(1.0, 400.0));
  app.add_option("--seed", options.seed, "of the synthetic trace and of crash points");
  app.add_option("--crashes", options.crashes, "processes that die on the way");
  app.add_option("--segment-mib", options.segment_mib)->check(CLI::Range(8, 256));
  app.add_option("--bulk-mib", options.bulk_mib, "size of the bulk load; 0: none");
  app.add_option("--log-garbage", options.settler.log_garbage_max, "SettlerOptions::log_garbage_max");
  app.add_option("--garbage", options.settler.garbage_max, "SettlerOptions::garbage_max");
  app.add_option("--mature-after", options.settler.mature_after, "SettlerOptions::mature_after");
  app.add_flag("--small", options.small, "a synthetic trace of three small disks, small segments");
  app.add_flag("--verbose", options.verbose, "a line a day of the replayed month");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  if (options.small) {
    options.segment_mib = 8;
    options.bulk_mib = 96;
    options.crashes = 4;
  }
  return options;
}

int run(Options options) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  spdlog::set_level(spdlog::level::err);
  const bool temporary = options.directory.empty();
  if (temporary) {
    std::string pattern = (std::filesystem::temp_directory_path() / "tidemark-replay-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) give_up("cannot make a temporary directory");
    options.directory = pattern;
  }
  Report report;
  Trace trace;
  const bool recorded = !options.trace_path.empty() && !options.small;
  if (recorded) {
    auto loaded = load_vscsi(options.trace_path);
    if (!loaded) give_up(loaded.error().message());
    trace = std::move(*loaded);
  } else {
    fmt::print("no recorded trace: a synthetic one of the same shape is used\n");
    trace = synthetic_trace(options.seed, options.small ? SyntheticShape{3, 12'288, 160ULL << 20}
                                                        : SyntheticShape{1, 5'373'952, 2300ULL << 20});
  }
  Replay(options, report).trace_phase(trace, recorded);
  if (options.bulk_mib != 0) Replay(options, report).bulk_phase();
  if (temporary) std::filesystem::remove_all(options.directory);
  return report.write(options.json_path) ? 0 : 1;
}

}  // namespace
}  // namespace tidemark::replay

int main(int argc, char** argv) { return tidemark::replay::run(tidemark::replay::parse(argc, argv)); }
