#include "agent/quiesce.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <sstream>

#include "agent/hook_process.h"
#include "agent/text_file.h"

namespace tidemark::agent {
namespace {

constexpr char kHoldRecord[] = "held";
constexpr char kPre[] = "pre-cut";
constexpr char kPost[] = "post-cut";

std::filesystem::path hold_record(const HookSettings& settings) { return settings.state_dir / kHoldRecord; }
std::filesystem::path stage_folder(const HookSettings& settings, const std::string& stage) {
  return settings.folder / (stage + ".d");
}
std::string hook_title(const std::string& stage, const Hook& hook) { return stage + ".d/" + hook.name; }

Result<HookFolder> read_stage(const HookSettings& settings, const std::string& stage) {
  const auto folder = stage_folder(settings, stage);
  HookFolder found = TIDEMARK_TRY(read_hook_folder(folder));
  for (const std::string& skipped : found.skipped)
    spdlog::info("hook skipped folder={} why=\"{}\"", folder.string(), skipped);
  return found;
}

// `epoch`: nothing after a restart.
std::string run_one(const HookSettings& settings, const std::string& stage, const Hook& hook,
                    std::optional<EpochNumber> epoch, const std::string& result, std::stop_token stop) {
  HookRun run;
  run.path = hook.path;
  run.limit = settings.hook_limit;
  run.stop = std::move(stop);
  run.environment = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                     "HOME=/root",
                     "LANG=C.UTF-8",
                     "TIDEMARK_STAGE=" + stage,
                     "TIDEMARK_MACHINE=" + settings.machine,
                     "TIDEMARK_NAME=" + settings.name,
                     "TIDEMARK_EPOCH=" + (epoch ? std::to_string(epoch->value()) : ""),
                     "TIDEMARK_LIMIT_S=" + fmt::format("{:g}", std::chrono::duration<double>(run.limit).count())};
  if (!result.empty()) run.environment.push_back("TIDEMARK_RESULT=" + result);
  const std::string title = hook_title(stage, hook);
  run.on_line = [&](const std::string& line) { spdlog::info("hook={} said=\"{}\"", title, line); };
  const auto from = std::chrono::steady_clock::now();
  const std::string failure = run_hook(run);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
  spdlog::info("hook={} seconds={:.2f} result=\"{}\"", title, seconds, failure.empty() ? "ok" : failure);
  return failure.empty() ? "" : title + ": " + failure;
}

// In the reverse order of names. `begun`: the pre hooks that were begun, of all that there are.
std::vector<std::string> run_post_hooks(const HookSettings& settings, const std::vector<Hook>& pre,
                                        const std::vector<Hook>& post, const std::vector<std::string>& begun,
                                        std::optional<EpochNumber> epoch, const std::string& result) {
  std::vector<std::string> failures;
  for (auto hook = post.rbegin(); hook != post.rend(); ++hook) {
    const bool has_pre = std::any_of(pre.begin(), pre.end(), [&](const Hook& p) { return p.name == hook->name; });
    if (has_pre && std::find(begun.begin(), begun.end(), hook->name) == begun.end()) continue;
    std::string failure = run_one(settings, kPost, *hook, epoch, result, {});
    if (failure.empty()) continue;
    spdlog::error("ALARM: a hook failed, its application may still stand still hook=\"{}\"", failure);
    failures.push_back(std::move(failure));
  }
  return failures;
}

void forget_record(const HookSettings& settings) {
  if (::unlink(hold_record(settings).c_str()) != 0 && errno != ENOENT)
    spdlog::error("not removed, the post-cut hooks are run again at the next start file={} error={}",
                  hold_record(settings).string(), errno);
}

}  // namespace

Quiesce::Quiesce(HookSettings settings, EpochNumber epoch, const std::stop_token& stop)
    : settings_(std::move(settings)), epoch_(epoch) {
  if (auto found = find_hooks(); !found) {
    failure_ = found.error().message();
    return;
  }
  run_pre(epoch, stop);
  held_from_ = std::chrono::steady_clock::now();
  hold_ = Hold::holds;
  guard_ = std::jthread([this](const std::stop_token& over) { guard(over); });
}

Quiesce::~Quiesce() { release(); }

Status Quiesce::find_hooks() {
  pre_ = TIDEMARK_TRY(read_stage(settings_, kPre)).hooks;
  post_ = TIDEMARK_TRY(read_stage(settings_, kPost)).hooks;
  if (pre_.empty()) {
    return fail(Code::not_found, stage_folder(settings_, kPre).string(), "has no hooks: no application is told",
                "put one there, see docs/agent.md");
  }
  return {};
}

void Quiesce::run_pre(EpochNumber epoch, const std::stop_token& stop) {
  for (const Hook& hook : pre_) {
    if (stop.stop_requested()) {
      failure_ = "the agent was asked to stop";
      return;
    }
    begun_.push_back(hook.name);
    std::string record = std::to_string(epoch.value()) + "\n";
    for (const std::string& name : begun_) record += name + "\n";
    if (auto written = write_file_atomically(hold_record(settings_), record, 0600); !written) {
      // What is not written down is not begun.
      begun_.pop_back();
      failure_ = written.error().message();
      return;
    }
    failure_ = run_one(settings_, kPre, hook, epoch, {}, stop);
    if (!failure_.empty()) return;
  }
}

void Quiesce::run_post() {
  held_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - held_from_).count();
  const bool held = failure_.empty() && hold_ != Hold::expired;
  if (!begun_.empty())
    post_failures_ = run_post_hooks(settings_, pre_, post_, begun_, epoch_, held ? "held" : "failed");
  forget_record(settings_);
}

void Quiesce::guard(const std::stop_token& over) {
  std::mutex mutex;
  std::condition_variable_any asleep;
  std::unique_lock lock(mutex);
  asleep.wait_until(lock, over, held_from_ + settings_.hold_limit, [] { return false; });
  Hold holds = Hold::holds;
  if (over.stop_requested() || !hold_.compare_exchange_strong(holds, Hold::expired)) return;
  spdlog::warn("applications stood still for {:g} s without a cut: they go on",
               std::chrono::duration<double>(settings_.hold_limit).count());
  std::call_once(post_once_, [this] { run_post(); });
}

bool Quiesce::release() {
  if (hold_ == Hold::none) return false;
  Hold holds = Hold::holds;
  const bool in_time = hold_.compare_exchange_strong(holds, Hold::released);
  std::call_once(post_once_, [this] { run_post(); });
  if (guard_.joinable()) {
    guard_.request_stop();
    guard_.join();
  }
  return in_time && failure_.empty();
}

std::vector<std::string> Quiesce::post_failures() const { return post_failures_; }

bool anything_held(const std::filesystem::path& state_dir) {
  std::error_code error;
  return std::filesystem::exists(state_dir / kHoldRecord, error);
}

Result<std::optional<std::vector<std::string>>> release_leftovers(const HookSettings& settings) {
  const auto text = read_text_file(hold_record(settings));
  if (!text && text.error().code == Code::not_found) return std::optional<std::vector<std::string>>{};
  if (!text) return std::unexpected(text.error());
  std::istringstream lines(*text);
  std::string line;
  std::getline(lines, line);  // the epoch, for who looks
  std::vector<std::string> begun;
  while (std::getline(lines, line)) begun.push_back(line);
  spdlog::warn("an agent was killed while applications stood still: the post-cut hooks are run");
  const auto pre = read_stage(settings, kPre);
  const auto post = read_stage(settings, kPost);
  if (!post) return std::unexpected(post.error());  // the record stays
  auto failures =
      run_post_hooks(settings, pre ? pre->hooks : std::vector<Hook>{}, post->hooks, begun, std::nullopt, "killed");
  forget_record(settings);
  return failures;
}

}  // namespace tidemark::agent
