#include "agent/hook_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "agent/file_descriptor.h"
#include "wire/messages.h"

namespace tidemark::agent {
namespace {

using HookTime = std::chrono::steady_clock::time_point;
constexpr int kLookMs = 10;          // how often it is looked for a process that closed its output
constexpr int kCannotExecute = 126;  // as shells say it
constexpr std::size_t kDrainMax = 64 << 10;

// Cuts a stream into lines for the log.
class Lines {
 public:
  explicit Lines(const std::function<void(const std::string&)>& on_line) : on_line_(on_line) {}
  void add(std::string_view text) {
    for (const char c : text) {
      if (c == '\n') {
        flush();
      } else if (line_.size() < kHookLineMax) {
        line_ += c;
      }
      pending_ = c != '\n';
    }
  }
  void flush() {
    pending_ = false;
    const std::string line = std::exchange(line_, {});
    if (!on_line_ || ++count_ > kHookLinesMax + 1) return;
    on_line_(count_ > kHookLinesMax ? fmt::format("(more than {} lines: the rest is not logged)", kHookLinesMax)
                                    : wire::clean_text(line));
  }
  void end() {
    if (pending_) flush();
  }

 private:
  const std::function<void(const std::string&)>& on_line_;
  std::string line_;
  std::size_t count_ = 0;
  bool pending_ = false;
};

// In the child, between fork and exec of a process with threads: system calls only.
[[noreturn]] void become(const char* path, char* const* arguments, char* const* environment, int output, pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(kCannotExecute);
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  const int input = ::open("/dev/null", O_RDONLY);
  ::dup2(input, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(output, STDERR_FILENO);
  ::syscall(SYS_close_range, 3, ~0U, 0);
  (void)!::chdir("/");
  ::execve(path, arguments, environment);
  const char* why = ::strerrordesc_np(errno);
  if (why != nullptr) {
    (void)!::write(STDERR_FILENO, why, std::strlen(why));
    (void)!::write(STDERR_FILENO, "\n", 1);
  }
  ::_exit(kCannotExecute);
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

std::string end_text(int status) {
  if (WIFSIGNALED(status)) return fmt::format("ended by signal {}", WTERMSIG(status));
  const int code = WEXITSTATUS(status);
  if (code == 0) return {};
  return fmt::format("exit status {}{}", code, code == kCannotExecute ? " (it could not be executed)" : "");
}

// The first of a group that was sent SIGTERM is gone: the others get the same time.
void end_group(pid_t group) {
  const auto deadline = std::chrono::steady_clock::now() + kHookGrace;
  while (::kill(-group, 0) == 0 && std::chrono::steady_clock::now() < deadline) ::poll(nullptr, 0, kLookMs);
  ::kill(-group, SIGKILL);
}

}  // namespace

std::string run_hook(const HookRun& run) {
  int pipe_ends[2];
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) return fmt::format("no pipe for it: {}", std::strerror(errno));
  FileDescriptor output(pipe_ends[0]);
  FileDescriptor input(pipe_ends[1]);
  ::fcntl(output.get(), F_SETFL, O_NONBLOCK);
  std::vector<std::string> arguments_text{run.path.string()}, environment_text = run.environment;
  const auto arguments = pointers(arguments_text);
  const auto environment = pointers(environment_text);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return fmt::format("no process for it: {}", std::strerror(errno));
  if (child == 0) become(arguments_text[0].c_str(), arguments.data(), environment.data(), input.get(), parent);
  ::setpgid(child, child);  // whoever is first
  input.reset();

  Lines lines(run.on_line);
  bool open = true;
  const auto take_output = [&] {  // false: nothing more just now
    char piece[4096];
    const ssize_t n = ::read(output.get(), piece, sizeof piece);
    if (n > 0) lines.add({piece, static_cast<std::size_t>(n)});
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) open = false;
    return n > 0;
  };

  HookTime deadline = std::chrono::steady_clock::now() + run.limit;
  std::string why_ended;  // by us
  int killed_with = 0;
  while (true) {
    pollfd news{open ? output.get() : -1, POLLIN, 0};
    ::poll(&news, 1, kLookMs);
    if (open) take_output();
    int status = 0;
    const pid_t ended = ::waitpid(child, &status, WNOHANG);
    if (ended == child) {
      // What it wrote is in the pipe; what its offspring goes on to write is nobody's.
      for (std::size_t taken = 0; open && taken < kDrainMax && take_output(); taken += 4096) {
      }
      lines.end();
      if (why_ended.empty()) return end_text(status);
      end_group(child);
      return why_ended;
    }
    if (ended < 0 && errno != EINTR) return fmt::format("it could not be waited for: {}", std::strerror(errno));
    const auto now = std::chrono::steady_clock::now();
    if (killed_with == 0 && run.stop.stop_requested()) {
      why_ended = "ended because the agent was asked to stop";
      deadline = now;
    }
    if (now < deadline) continue;
    if (killed_with == SIGKILL) {
      lines.end();
      return fmt::format("{}, and process {} could not be ended", why_ended, child);
    }
    if (why_ended.empty()) {
      why_ended = fmt::format("time limit of {:g} s", std::chrono::duration<double>(run.limit).count());
    }
    killed_with = killed_with == 0 ? SIGTERM : SIGKILL;
    ::kill(-child, killed_with);
    deadline = now + kHookGrace;
  }
}

}  // namespace tidemark::agent
