// tidemark-agent: the command line.
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stop_token>
#include <thread>

#include "agent/commands.h"

namespace {

using namespace tidemark;         // NOLINT: this is the program
using namespace tidemark::agent;  // NOLINT

constexpr int kFailed = 1;
constexpr int kUsage = 2;

int complain(const Error& error, bool json) {
  fmt::print(stderr, "tidemark-agent: {}\n", error.message());
  if (json) {
    const nlohmann::ordered_json object = {
        {"error",
         {{"code", to_string(error.code)}, {"object", error.object}, {"what", error.what}, {"remedy", error.remedy}}}};
    fmt::print("{}\n", object.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  }
  return kFailed;
}

// SIGTERM and SIGINT become a stop request, taken by a thread of its own; a second one ends the program at once.
class Signals {
 public:
  Signals() {
    ::sigemptyset(&set_);
    for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set_, number);
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    thread_ = std::thread([this] {
      int number = 0;
      ::sigwait(&set_, &number);
      if (ending_.stop_requested()) return;
      source_.request_stop();
      ::sigwait(&set_, &number);
      if (!ending_.stop_requested()) ::_exit(kFailed);
    });
  }
  ~Signals() {
    ending_.request_stop();
    ::pthread_kill(thread_.native_handle(), SIGTERM);
    thread_.join();
  }
  std::stop_token token() const { return source_.get_token(); }

 private:
  sigset_t set_;
  std::stop_source source_;
  std::stop_source ending_;
  std::thread thread_;
};

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  spdlog::set_default_logger(spdlog::stderr_logger_mt("agent"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  spdlog::set_level(spdlog::level::err);

  CLI::App app{
      "Protects this machine: streams what changes on its disks to a Tidemark staging server.\n\n"
      "  tidemark-agent enroll HOST:7443 --token T    once, with a token from `tidemark token create`\n"
      "  tidemark-agent protect /dev/vdb /srv/db.img  what to protect\n"
      "  tidemark-agent run                           for good (or: sync --once)\n"
      "  tidemark-agent status                        how it goes\n"};
  app.name("tidemark-agent");
  app.set_version_flag("--version", "tidemark-agent " TIDEMARK_VERSION);
  app.require_subcommand(1);
  app.footer("Exit status: 0 done, 1 failed, 2 wrong usage. The manual: docs/agent.md");
  std::string state_dir = "/var/lib/tidemark-agent";
  bool json = false;
  const auto common = [&](CLI::App* command) {
    command->add_option("--state-dir", state_dir, "where identity, configuration and memory are kept")
        ->capture_default_str();
    command->add_flag("--json", json, "one JSON object on stdout, for programs");
    return command;
  };
  common(&app);

  EnrollCommand enroll;
  CLI::App* enroll_app =
      common(app.add_subcommand("enroll", "make this machine known to a server, with a one-time token"));
  enroll_app->add_option("address", enroll.address, "HOST:PORT of the server; else the one in the token");
  enroll_app->add_option("--token", enroll.token, "the token, as `tidemark token create` printed it")->required();
  enroll_app->add_option("--name", enroll.name, "what to call this machine; else its host name");
  enroll_app->add_flag("--replace", enroll.replace, "enrol again, over what is there");

  ProtectCommand protect;
  CLI::App* protect_app =
      common(app.add_subcommand("protect", "add block devices or regular files to what is protected"));
  auto* protect_paths = protect_app->add_option("path", protect.paths, "a disk, a partition, or a disk image");
  protect_app->add_flag("--all", protect.all, "every whole, non-removable disk of this machine")
      ->excludes(protect_paths);

  std::vector<std::string> unprotected;
  CLI::App* unprotect_app =
      common(app.add_subcommand("unprotect", "take disks off the list; the server keeps what it has"));
  unprotect_app->add_option("path", unprotected, "as `status` shows it")->required();

  SyncCommand sync;
  bool once = false;
  CLI::App* sync_app = common(app.add_subcommand("sync", "bring the server up to date once, then exit"));
  sync_app->add_flag("--once", once, "one epoch (the only mode there is; `run` goes on for good)");
  sync_app
      ->add_option("--consistency", sync.consistency,
                   "what to be content with: point (a recovery point) or any (fuzzy too)")
      ->check(CLI::IsMember({"any", "point"}))
      ->capture_default_str();
  sync_app->add_flag("--no-freeze", sync.no_freeze, "never freeze file systems");
  sync_app->add_option("--retry-for", sync.retry_for_s, "seconds to go on trying without an answer")
      ->capture_default_str();
  sync_app->add_option("--rate-limit", sync.rate_limit_mib_s, "MiB a second to send at most")
      ->check(CLI::PositiveNumber);

  CLI::App* run_app =
      common(app.add_subcommand("run", "stay connected and take an epoch every interval_s; SIGTERM ends it"));
  PointCommand point;
  CLI::App* point_app = common(
      app.add_subcommand("point", "ask the running agent for a recovery point of now, and wait until it is durable"));
  point_app->add_flag("--application", point.application, "with the applications told, by the hooks (see the manual)");
  point_app->add_flag("--final", point.final, "the last one, for a planned failover: the agent ends afterwards");
  point_app->add_option("--timeout", point.timeout_s, "seconds to wait for it")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  CLI::App* status_app = common(app.add_subcommand("status", "state, progress, lag, newest point, and what is wrong"));
  CLI::App* untrack_app =
      common(app.add_subcommand("untrack", "remove what tracks writes in the kernel (it outlives the agent)"));
  CLI::App* thaw_app = common(app.add_subcommand(
      "thaw", "undo a freeze that a killed agent left behind, and run the post-cut hooks that it owes"));

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsage;
  }
  if (protect_app->parsed() && !protect.all && protect.paths.empty()) {
    fmt::print(stderr, "tidemark-agent protect: name what to protect, or --all\n");
    return kUsage;
  }

  const StateDir dir(state_dir);
  try {
    Status done;
    if (enroll_app->parsed()) done = do_enroll(dir, enroll, json);
    if (protect_app->parsed()) done = do_protect(dir, protect, json);
    if (unprotect_app->parsed()) done = do_unprotect(dir, unprotected, json);
    if (status_app->parsed()) done = do_status(dir, json);
    if (untrack_app->parsed()) done = do_untrack(dir, json);
    if (thaw_app->parsed()) done = do_thaw(dir, json);
    if (sync_app->parsed() || run_app->parsed() || point_app->parsed()) {
      const Signals signals;
      if (run_app->parsed()) {
        done = do_run(dir, signals.token());
      } else {
        const auto reached = point_app->parsed() ? do_point(dir, point, json, signals.token())
                                                 : do_sync(dir, sync, json, signals.token());
        if (!reached) return complain(reached.error(), json);
        return *reached ? 0 : kFailed;
      }
    }
    return done ? 0 : complain(done.error(), json);
  } catch (const std::exception& error) {  // memory, threads: nothing of ours throws
    return complain(Error{Code::internal, "agent", error.what(), {}}, json);
  }
}
