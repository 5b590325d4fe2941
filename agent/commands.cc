#include "agent/commands.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "agent/block_device.h"
#include "agent/choose_tracker.h"
#include "agent/config.h"
#include "agent/enroll.h"
#include "agent/freeze.h"
#include "agent/kernel_marks.h"
#include "agent/machine_facts.h"
#include "agent/quiesce.h"
#include "agent/runner.h"
#include "agent/source.h"
#include "agent/status_board.h"
#include "agent/text_file.h"
#include "net/certificates.h"

namespace tidemark::agent {
namespace {

using Json = nlohmann::ordered_json;

void print(const Json& json) {
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  std::fputs(text.c_str(), stdout);
}

std::string kind_text(pb::EpochKind kind) {
  switch (kind) {
    case pb::INITIAL: return "initial";
    case pb::DELTA: return "delta";
    case pb::RESCAN: return "rescan";
    default: return "none";
  }
}

Json epoch_to_json(const EpochReport& report) {
  Json json;
  json["epoch"] = report.epoch.value();
  json["kind"] = kind_text(report.kind);
  json["consistency"] = to_string(report.consistency);
  json["point"] = report.point;
  json["unchanged"] = report.unchanged;
  json["reason"] = report.reason;
  json["cut_time"] = format_rfc3339(report.cut_us);
  json["compared_bytes"] = report.compared_bytes;
  json["skipped_bytes"] = report.skipped_bytes;
  json["changed_bytes"] = report.changed_bytes;
  json["sent_bytes"] = report.sent_bytes;
  json["zero_bytes"] = report.zero_bytes;
  json["duration_seconds"] = report.seconds;
  json["frozen_seconds"] = report.frozen_seconds;
  json["resumed"] = report.resumed;
  json["resumed_bytes"] = report.resumed_bytes;
  return json;
}

std::string epoch_to_text(const EpochReport& report) {
  std::string text;
  if (report.unchanged) {
    text = fmt::format("epoch {} is still what the disks hold ({} compared, {:.1f} s)\n", report.epoch.value(),
                       size_text(report.compared_bytes), report.seconds);
  } else if (!report.committed) {
    text = fmt::format(
        "nothing differs from epoch {}, but it could not be proven for one moment ({} compared, {:.1f} s)\n",
        report.epoch.value(), size_text(report.compared_bytes), report.seconds);
  } else {
    text = fmt::format("epoch {} ({}): {} {}, {} changed, {} sent, {:.1f} s\n", report.epoch.value(),
                       kind_text(report.kind), to_string(report.consistency),
                       report.point ? "consistent point" : "epoch, no recovery point", size_text(report.changed_bytes),
                       size_text(report.sent_bytes), report.seconds);
    if (report.resumed)
      text +=
          fmt::format("  it went on where it had been cut: {} were there already\n", size_text(report.resumed_bytes));
  }
  if (report.skipped_bytes != 0)
    text += fmt::format("  {} of free space and swap were not read\n", size_text(report.skipped_bytes));
  if (!report.reason.empty()) text += "  because " + report.reason + "\n";
  if (!report.remedy.empty() && !report.point) text += "  " + report.remedy + "\n";
  return text;
}

// Absolute, with links kept for devices (/dev/disk/by-id stays what the user chose) and resolved for files.
Result<std::string> normal_path(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return fail_errno(errno, path, "find what is to be protected");
  std::error_code error;
  const auto absolute = S_ISBLK(status.st_mode) ? std::filesystem::absolute(path, error).lexically_normal()
                                                : std::filesystem::canonical(path, error);
  if (error) return fail_errno(error.value(), path, "find the real place of");
  return absolute.string();
}

Result<Config> enrolled_config(const StateDir& dir) {
  if (!dir.enrolled()) {
    return fail(Code::not_found, dir.path().string(), "this machine is not enrolled",
                "enrol it: tidemark-agent enroll --token T");
  }
  return load_config(dir.config());
}

}  // namespace

Status do_enroll(const StateDir& dir, const EnrollCommand& command, bool json) {
  TIDEMARK_TRY(dir.create());
  const StateLock lock = TIDEMARK_TRY(StateLock::take(dir));
  std::string override_text;
  std::string name = command.name;
  if (const auto config = load_config(dir.config())) {
    override_text = config->fingerprint_override;
    if (name.empty()) name = config->name;  // enrolled before: the same machine
  }
  EnrollRequest request{command.token, command.address, name, command.replace,
                        TIDEMARK_TRY(machine_fingerprint({}, "/etc/machine-id", override_text))};
  const Enrolled enrolled = TIDEMARK_TRY(enroll(dir, request));
  if (json) {
    print(Json{{"machine", enrolled.machine.to_string()},
               {"name", enrolled.name},
               {"server", enrolled.server},
               {"certificate_expires", format_rfc3339(enrolled.certificate_expires_us)},
               {"state_dir", dir.path().string()}});
  } else {
    fmt::print("enrolled as {} ({}) at {}\nnext: tidemark-agent protect PATH..., then tidemark-agent run\n",
               enrolled.name, enrolled.machine.to_string(), enrolled.server);
  }
  return {};
}

Status do_protect(const StateDir& dir, const ProtectCommand& command, bool json) {
  const Config config = TIDEMARK_TRY(enrolled_config(dir));
  std::vector<std::string> wanted = command.paths;
  std::vector<std::string> disks = config.disks, except = config.except_disks;
  if (command.all) {
    wanted = TIDEMARK_TRY(list_whole_disks({}));
    std::erase_if(wanted, [&](const std::string& path) { return std::ranges::find(except, path) != except.end(); });
  }
  for (const std::string& path : wanted) {
    const std::string normal = TIDEMARK_TRY(normal_path(path));
    TIDEMARK_TRY(open_source(normal));  // says what is wrong with it before anything is written
    if (std::find(disks.begin(), disks.end(), normal) == disks.end()) disks.push_back(normal);
    std::erase(except, normal);
  }
  const bool all = config.all_disks || command.all;
  // Disks that are on the list already may be away just now: their state is told by `status`.
  Json listed = Json::array();
  std::string text;
  const auto names = disk_names(disks);
  std::vector<std::pair<std::string, std::string>> identities;
  for (std::size_t i = 0; i < disks.size(); ++i) {
    const auto source = open_source(disks[i]);
    Json disk{{"path", disks[i]}, {"name", names[i]}};
    if (source) {
      for (const auto& [identity, other] : identities) {
        if (identity == (*source)->identity()) {
          return fail(Code::already_exists, disks[i], "the same disk as " + other, "protect it once");
        }
      }
      identities.emplace_back((*source)->identity(), disks[i]);
      disk["identity"] = (*source)->identity();
      disk["kind"] = to_string((*source)->kind());
      disk["size"] = (*source)->size();
      text += fmt::format("{}  {}  {}  {}\n", disks[i], to_string((*source)->kind()), size_text((*source)->size()),
                          (*source)->identity());
      disk["untracked"] = nullptr;
      const auto tracked = describe_tracked({}, disks[i], (*source)->identity(), (*source)->size());
      if (config.tracking != Tracking::digests && !tracked) {
        disk["untracked"] = tracked.error().what;
        text += fmt::format("    its writes cannot be tracked, so all disks are compared again and again: {}\n",
                            tracked.error().what);
      }
    } else {
      disk["identity"] = disk["kind"] = disk["size"] = disk["untracked"] = nullptr;
      text += fmt::format("{}  {}\n", disks[i], source.error().what);
    }
    listed.push_back(std::move(disk));
  }
  TIDEMARK_TRY(save_disks(dir.config(), {disks, all, except}));
  if (json) {
    print(Json{{"disks", listed}, {"all", all}, {"except", except}});
  } else {
    fmt::print("{}", text);
    if (all)
      fmt::print("and every disk that comes{}\n",
                 except.empty() ? "" : fmt::format(", but {}", fmt::join(except, ", ")));
    if (StateLock::held(dir)) fmt::print("the running agent takes it up when it is started again\n");
  }
  return {};
}

Status do_unprotect(const StateDir& dir, const std::vector<std::string>& paths, bool json) {
  const Config config = TIDEMARK_TRY(enrolled_config(dir));
  std::vector<std::string> disks = config.disks, except = config.except_disks;
  for (const std::string& path : paths) {
    std::error_code error;
    const std::string absolute = std::filesystem::absolute(path, error).lexically_normal();
    const std::string real = std::filesystem::weakly_canonical(path, error);
    const auto found =
        std::find_if(disks.begin(), disks.end(), [&](const std::string& d) { return d == absolute || d == real; });
    if (found == disks.end())
      return fail(Code::not_found, path, "is not protected", "`tidemark-agent status` lists what is");
    if (config.all_disks) except.push_back(*found);  // or it would come back
    disks.erase(found);
  }
  TIDEMARK_TRY(save_disks(dir.config(), {disks, config.all_disks, except}));
  const auto names = disk_names(disks);
  Json listed = Json::array();
  for (std::size_t i = 0; i < disks.size(); ++i) {
    listed.push_back(Json{{"path", disks[i]}, {"name", names[i]}});
    if (!json) fmt::print("{}\n", disks[i]);
  }
  if (json) print(Json{{"disks", listed}, {"all", config.all_disks}, {"except", except}});
  return {};
}

Result<bool> do_sync(const StateDir& dir, const SyncCommand& command, bool json, std::stop_token stop) {
  Config config = TIDEMARK_TRY(enrolled_config(dir));
  const StateLock lock = TIDEMARK_TRY(StateLock::take(dir));
  if (command.no_freeze) config.freeze = false;
  if (command.rate_limit_mib_s > 0) {
    config.rate_limit_mib_s = command.rate_limit_mib_s;
    config.rate_schedule.clear();
  }
  RunOptions options;
  options.once = true;
  options.want_point = command.consistency == "point";
  options.retry_for = std::chrono::seconds(command.retry_for_s);
  options.bar = ::isatty(STDERR_FILENO) == 1;
  const RunOutcome outcome = TIDEMARK_TRY(run_agent(config, dir, options, Clock::system(), std::move(stop)));
  if (outcome.epochs.empty()) return fail(Code::internal, "sync", "it ended without an epoch");
  const EpochReport& last = outcome.epochs.back();
  if (json) {
    Json object = epoch_to_json(last);
    object["reconnects"] = outcome.reconnects;
    object["epochs"] = Json::array();
    for (const EpochReport& epoch : outcome.epochs) object["epochs"].push_back(epoch_to_json(epoch));
    print(object);
  } else {
    for (const EpochReport& epoch : outcome.epochs) fmt::print("{}", epoch_to_text(epoch));
  }
  return last.point || !options.want_point;
}

Status do_run(const StateDir& dir, std::stop_token stop) {
  const Config config = TIDEMARK_TRY(enrolled_config(dir));
  const StateLock lock = TIDEMARK_TRY(StateLock::take(dir));
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  TIDEMARK_TRY(run_agent(config, dir, {}, Clock::system(), std::move(stop)));
  return {};
}

Status do_status(const StateDir& dir, bool json) {
  const Config config = TIDEMARK_TRY(enrolled_config(dir));
  const MachineId machine = TIDEMARK_TRY(dir.machine());
  const Memory memory = TIDEMARK_TRY(load_memory(dir.memory(), machine));
  const bool running = StateLock::held(dir);
  StatusReport report;
  if (const auto text = read_text_file(dir.status())) {
    if (auto parsed = parse_report(*text, dir.status().string())) report = std::move(*parsed);
  }
  report.machine = machine;
  report.name = config.name;
  report.take(memory);  // the truth; the status file is only news
  if (!running) {
    report.pid = 0;
    report.connected = false;
    report.rate_cap.reset();
    report.rate_bytes_per_second = 0;
    if (report.state != State::stopped) {
      // It did not end in order, or left with something to say: the cause stays.
      report.state = State::stopped;
      if (report.cause.empty()) report.remedy = "start it: tidemark-agent run";
    }
    report.server = config.server;
    std::vector<DiskStatus> disks;
    const auto names = disk_names(config.disks);
    for (std::size_t i = 0; i < config.disks.size(); ++i) {
      const auto known = std::find_if(report.disks.begin(), report.disks.end(),
                                      [&](const DiskStatus& d) { return d.path == config.disks[i]; });
      disks.push_back(known != report.disks.end() ? *known : DiskStatus{config.disks[i], names[i], -1, 0});
    }
    report.disks = std::move(disks);
  }
  const WallMicros now = Clock::system().wall_us();
  std::fputs(json ? report_json(report, now, running).c_str() : report_text(report, now, running).c_str(), stdout);
  return {};
}

namespace {

// What a killed agent left standing still goes on, by the hooks that the configuration names.
Result<std::optional<std::vector<std::string>>> let_applications_go(const StateDir& dir) {
  if (!anything_held(dir.path())) return std::optional<std::vector<std::string>>{};
  const Config config = TIDEMARK_TRY(load_config(dir.config()));
  const MachineId machine = TIDEMARK_TRY(dir.machine());
  return release_leftovers(
      HookSettings{config.hooks, dir.path(), config.hook_limit, config.hold_limit, machine.to_string(), config.name});
}

}  // namespace

Status do_thaw(const StateDir& dir, bool json) {
  const StateLock lock = TIDEMARK_TRY(StateLock::take(dir));
  const auto thawed = TIDEMARK_TRY(thaw_leftovers(dir.path()));
  // What was thawed counts, whatever becomes of the hooks.
  const auto released = let_applications_go(dir);
  const bool held = released && released->has_value();
  if (json) {
    print(
        Json{{"thawed", thawed}, {"released", held}, {"hooks_failed", held ? **released : std::vector<std::string>{}}});
  } else {
    for (const std::string& place : thawed) fmt::print("thawed {}\n", place);
    if (thawed.empty()) fmt::print("nothing was left frozen\n");
    if (held) fmt::print("the post-cut hooks were run, for applications that were left standing still\n");
    if (held) {
      for (const std::string& failure : **released) fmt::print("failed: {}\n", failure);
    }
  }
  return released ? Status() : std::unexpected(released.error());
}

Status do_untrack(const StateDir& dir, bool json) {
  const StateLock lock = TIDEMARK_TRY(StateLock::take(dir));
  const auto config = TIDEMARK_TRY(load_config(dir.config()));
  const auto pins = pins_of(config, TIDEMARK_TRY(dir.machine()));
  std::error_code error;
  const bool tracked = std::filesystem::exists(pins, error);
  TIDEMARK_TRY(KernelMarks::unpin(pins));
  if (json) {
    print(Json{{"untracked", tracked}});
  } else {
    fmt::print("{}\n", tracked ? "the kernel tracks this machine's disks no more" : "nothing was tracked");
  }
  return {};
}

}  // namespace tidemark::agent
