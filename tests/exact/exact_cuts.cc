// Are the agent's points exact? Real loop devices, raw and with ext4 and XFS, under many writers; the agent as a
// process of its own, killed at the worst moments; a server in memory, which judges each point against what the writers
// noted.
//
//   exact_cuts --cuts N       until N points were judged. Fails on a wrong one, and unless 99 % of the cuts (--share)
//   were
//                             exact: else it has shown little. That share depends on how busy the machine is otherwise
//   exact_cuts --bug NAME     with this bug planted in the agent: fails unless a point is found wrong within --cuts
//
// Needs root; exit status 77 where that, loop devices or eBPF cannot be had.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "agent/config.h"
#include "agent/ebpf_tracker.h"
#include "agent/runner.h"
#include "base/planted.h"
#include "tests/exact/load.h"
#include "tests/unit/agent/model_server.h"

namespace tidemark::exact {
namespace {

using agent::ModelEpoch;
using agent::ModelServer;
constexpr int kSkipped = 77;
constexpr std::uint64_t kRawSize = 16 << 20;
constexpr std::uint64_t kAreaSize = 4 << 20;
constexpr std::uint64_t kChainOffset = 12 << 20;

volatile std::sig_atomic_t stopped = 0;  // by SIGTERM or SIGINT: devices, mounts and programs are given back

struct Options {
  std::string self, agent_dir, bug;
  std::uint64_t cuts = 300, seed = 1;
  double rate = 100;  // writes a second of each thread
  double share = 99;  // percent
};

Planted bug_named(const std::string& name) {
  if (name == "marks_on_completion_only") return Planted::marks_on_completion_only;
  if (name == "hits_unseen") return Planted::hits_unseen;
  if (name == "hits_alone_read_again") return Planted::hits_alone_read_again;
  if (name == "cut_per_disk") return Planted::cut_per_disk;
  if (name == "cleared_before_durable") return Planted::cleared_before_durable;
  if (name == "in_flight_forgotten") return Planted::in_flight_forgotten;
  return Planted::none;
}

int be_the_agent(const std::string& folder, const std::string& bug) {
  planted_bug = bug_named(bug);
  spdlog::set_level(spdlog::level::warn);
  const agent::StateDir dir(folder);
  const auto config = agent::load_config(dir.config());
  if (!config) return 1;
  const auto done = agent::run_agent(*config, dir, {}, Clock::system(), {});
  if (!done) fmt::print(stderr, "agent: {}\n", done.error().message());
  return done ? 0 : 1;
}

class Rig {
 public:
  explicit Rig(const Options& options) : options_(options), random_(options.seed) {}
  ~Rig();
  int run();

 private:
  bool prepare();
  void start_agent();
  void kill_agent();
  void start_writers();
  ModelServer::Verdict judge(const ModelEpoch& epoch, WallMicros cut_us);
  std::string_view image(const ModelEpoch& epoch, const agent::LoopDevice& disk);
  std::uint64_t random() { return random_ = random_ * 6364136223846793005ULL + 1442695040888963407ULL, random_ >> 33; }

  Options options_;
  std::uint64_t random_;
  agent::TempDir temp_;
  std::vector<std::unique_ptr<agent::LoopDevice>> loops_;  // raw, raw, ext4, XFS
  bool bpffs_ = false;
  std::vector<std::pair<std::size_t, std::unique_ptr<Area>>> areas_;  // by disk
  std::unique_ptr<Chain> chain_;
  std::vector<std::jthread> writers_;
  std::unique_ptr<ModelServer> server_;
  agent::StateDir dir_{temp_ / "state"};

  std::mutex mutex_;
  std::condition_variable changed_;
  pid_t agent_ = -1;
  bool agent_killed_ = false;
  std::uint64_t points_ = 0, fuzzy_ = 0, kills_ = 0, dropped_ = 0;
  std::string wrong_;
};

bool Rig::prepare() {
  if (::geteuid() != 0) return fmt::print("skipped: not root\n"), false;
  const std::uint64_t sizes[] = {kRawSize, kRawSize, 32 << 20, 64 << 20};
  for (std::size_t i = 0; i < 4; ++i) {
    loops_.push_back(std::make_unique<agent::LoopDevice>(temp_, fmt::format("disk{}", i), sizes[i], i % 2 == 1));
    if (!loops_[i]->why_not().empty()) return fmt::print("skipped: {}\n", loops_[i]->why_not()), false;
  }
  std::filesystem::create_directories(temp_ / "bpf");
  bpffs_ = ::mount("bpf", (temp_ / "bpf").c_str(), "bpf", 0, nullptr) == 0;
  if (!bpffs_) return fmt::print("skipped: no BPF file system here\n"), false;
  const std::string xfs = "mkfs.xfs -q -f --unsupported " + loops_[3]->path() + " >/dev/null 2>&1";
  if (!loops_[2]->mount_ext4(temp_ / "ext4") || std::system(xfs.c_str()) != 0 ||
      !loops_[3]->mount(temp_ / "xfs", "xfs"))
    return fmt::print("skipped: ext4 or XFS cannot be had here\n"), false;
  const auto add = [&](std::size_t disk, const std::string& name, const std::string& path, std::uint64_t offset,
                       bool buffered, bool device) {
    areas_.emplace_back(disk, std::make_unique<Area>(name, path, offset, kAreaSize, buffered, device));
    if (device) return;
    areas_.back().second->fill();
    areas_.back().second->find_extents();
  };
  for (std::size_t i = 0; i < 2; ++i) {
    add(i, fmt::format("raw{}", i), loops_[i]->path(), 0, false, true);
    add(i, fmt::format("raw{} buffered", i), loops_[i]->path(), kAreaSize, true, true);
  }
  for (std::size_t i = 2; i < 4; ++i) {
    const std::string place = i == 2 ? "ext4" : "xfs";
    add(i, place, temp_ / (place + "/direct"), 0, false, false);
    add(i, place + " buffered", temp_ / (place + "/buffered"), 0, true, false);
  }
  chain_ = std::make_unique<Chain>(loops_[0]->path(), loops_[1]->path(), kChainOffset);
  server_ = std::make_unique<ModelServer>();
  std::string disks;
  for (const auto& loop : loops_) disks += fmt::format("{}\"{}\"", disks.empty() ? "" : ", ", loop->path());
  server_->enroll(dir_,
                  fmt::format("disks = [{}]\ntracking = \"ebpf\"\nbpffs = \"{}\"\ninterval_s = 0.1\nzstd_level = 0\n"
                              "freeze = false\n",
                              disks, (temp_ / "bpf").string()));
  return true;
}

Rig::~Rig() {
  writers_.clear();
  kill_agent();
  server_.reset();
  areas_.clear();
  chain_.reset();
  if (bpffs_) {
    (void)agent::KernelMarks::unpin(temp_ / "bpf/tidemark-0123456789abcdef0123456789abcdef");
    for (int i = 0; ::umount((temp_ / "bpf").c_str()) != 0 && i < 100; ++i) ::usleep(20'000);
  }
}

void Rig::start_agent() {
  const std::string folder = dir_.path().string();
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::execl(options_.self.c_str(), options_.self.c_str(), "--agent", folder.c_str(), "--bug",
            options_.bug.empty() ? "none" : options_.bug.c_str(), nullptr);
    ::_exit(127);
  }
  const std::lock_guard lock(mutex_);
  agent_ = child;
  agent_killed_ = false;
}

void Rig::kill_agent() {
  if (agent_ <= 0) return;
  ::kill(agent_, SIGKILL);
  int status = 0;
  ::waitpid(agent_, &status, 0);
  agent_ = -1;
}

void Rig::start_writers() {
  const auto pace =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(1 / options_.rate));
  std::uint64_t seed = options_.seed * 1000 + 1;
  const auto add = [&](auto step) {
    writers_.emplace_back(
        [step, pace, state = std::uint64_t{++seed * 0x9E3779B97F4A7C15ULL}](const std::stop_token& stop) mutable {
          auto next = std::chrono::steady_clock::now();
          while (!stop.stop_requested()) {
            step(state);
            next = std::max(next + pace, std::chrono::steady_clock::now() - std::chrono::milliseconds(50));
            std::this_thread::sleep_until(next);
          }
        });
  };
  for (auto& [disk, area] : areas_) {
    add([&on = *area](std::uint64_t& state) { on.write_some(state); });
    add([&on = *area](std::uint64_t& state) { on.write_some(state); });
  }
  for (std::uint64_t slot = 0; slot < Chain::kSlots; ++slot) add([this, slot](std::uint64_t&) { chain_->step(slot); });
}

std::string_view Rig::image(const ModelEpoch& epoch, const agent::LoopDevice& disk) {
  // In the order of the configuration.
  std::uint32_t number = 0;
  for (const auto& loop : loops_) {
    if (loop.get() == &disk) break;
    ++number;
  }
  return epoch.disks.at(number);
}

// On the server's thread, before the epoch is said to be durable.
ModelServer::Verdict Rig::judge(const ModelEpoch& epoch, WallMicros cut_us) {
  const std::lock_guard lock(mutex_);
  if (agent_killed_) return {false, true};
  if (epoch.consistency == pb::FUZZY) {
    ++fuzzy_;
    fmt::print("not exact: epoch {}\n", epoch.number.value());
  } else {
    const std::int64_t to = cut_us + agent::EbpfTracker::kCutWidthUs + 1;
    for (auto& [disk, area] : areas_) {
      std::string wrong = area->ledger().judge(area->from_image(image(epoch, *loops_[disk])), cut_us, to);
      if (wrong_.empty() && !wrong.empty()) wrong_ = fmt::format("epoch {}: {}", epoch.number.value(), wrong);
    }
    std::string wrong = chain_->judge(image(epoch, *loops_[0]), image(epoch, *loops_[1]));
    if (wrong_.empty() && !wrong.empty()) wrong_ = fmt::format("epoch {}: {}", epoch.number.value(), wrong);
    ++points_;
  }
  changed_.notify_all();
  if (points_ < 3 || random() % 6 != 0) return {};
  // Between the flip and Durable: the epoch is lost, or it is durable and the agent never hears of it.
  ::kill(agent_, SIGKILL);
  agent_killed_ = true;
  ++kills_;
  const bool keep = random() % 3 == 0;
  if (!keep) ++dropped_;
  return {keep, true};
}

int Rig::run() {
  if (!prepare()) return kSkipped;
  server_->on_commit([this](const ModelEpoch& epoch, WallMicros cut_us) { return judge(epoch, cut_us); });
  const auto from = std::chrono::steady_clock::now();
  start_writers();
  start_agent();
  std::unique_lock lock(mutex_);
  while (points_ < options_.cuts && wrong_.empty() && stopped == 0) {
    changed_.wait_for(lock, std::chrono::milliseconds(20));
    int status = 0;
    const bool ended = agent_ > 0 && ::waitpid(agent_, &status, WNOHANG) == agent_;
    if (!ended) continue;
    if (!agent_killed_) return agent_ = -1, fmt::print("the agent ended by itself: status {:#x}\n", status), 1;
    lock.unlock();
    start_agent();
    lock.lock();
  }
  lock.unlock();
  if (stopped != 0) return fmt::print("stopped after {} points\n", points_), 1;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
  writers_.clear();
  kill_agent();
  std::uint64_t writes = 0;
  for (auto& [disk, area] : areas_) writes += area->ledger().writes();
  const double share =
      100.0 * static_cast<double>(points_) / static_cast<double>(std::max<std::uint64_t>(1, points_ + fuzzy_));
  fmt::print(
      "{} points judged on 4 disks in {:.0f} s, {:.1f} % of the cuts were exact; {:.0f} writes a second by {} threads; "
      "{} kills before Durable, {} epochs lost with them; {} digests asked for\n",
      points_, seconds, share, static_cast<double>(writes) / seconds, areas_.size() * 2 + Chain::kSlots, kills_,
      dropped_, server_->digest_requests());
  if (!wrong_.empty()) fmt::print("WRONG: {}\n", wrong_);
  if (options_.bug != "none" && !options_.bug.empty()) {
    if (wrong_.empty()) fmt::print("the planted bug {} was not found\n", options_.bug);
    return wrong_.empty() ? 1 : 0;
  }
  if (server_->digest_requests() != 0) return fmt::print("a restarted agent compared digests: tracking was lost\n"), 1;
  return wrong_.empty() && share >= options_.share ? 0 : 1;
}

}  // namespace
}  // namespace tidemark::exact

int main(int argc, char** argv) {
  tidemark::exact::Options options;
  options.self = std::filesystem::canonical("/proc/self/exe");
  CLI::App app("are the agent's points exact?");
  app.add_option("--cuts", options.cuts, "points to judge");
  app.add_option("--seed", options.seed, "of what is written and when the agent is killed");
  app.add_option("--rate", options.rate, "writes a second of each thread");
  app.add_option("--share", options.share, "percent of the cuts that have to be exact");
  app.add_option("--bug", options.bug, "planted in the agent; it must be found");
  app.add_option("--agent", options.agent_dir, "be the agent of this state directory")->group("");
  CLI11_PARSE(app, argc, argv);
  if (!options.agent_dir.empty()) return tidemark::exact::be_the_agent(options.agent_dir, options.bug);
  ::setvbuf(stdout, nullptr, _IOLBF, 0);
  spdlog::set_level(spdlog::level::err);
  for (const int signal_number : {SIGTERM, SIGINT}) ::signal(signal_number, [](int) { tidemark::exact::stopped = 1; });
  return tidemark::exact::Rig(options).run();
}
