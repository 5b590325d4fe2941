#include "cli/spawn.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>

extern char** environ;

namespace tidemark::cli {
namespace {

constexpr std::size_t kKept = 64 << 10;
constexpr int kLookEvery_ms = 100;

// The child gets default signals and none blocked: ours are, while we wait for Ctrl-C.
Result<int> spawn(const std::vector<std::string>& command, posix_spawn_file_actions_t& actions, short flags = 0) {
  const std::string program = find_program(command.front());
  if (program.empty()) return fail(Code::not_found, command.front(), "is not installed");
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, static_cast<short>(POSIX_SPAWN_SETSIGMASK | flags));
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, program.c_str(), &actions, &attributes, arguments.data(), environ);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return fail_errno(error, program, "start");
  return pid;
}

struct Pipe {
  int read = -1, write = -1;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) == 0) {
      read = ends[0];
      write = ends[1];
    }
  }
  ~Pipe() {
    if (read >= 0) ::close(read);
    close_write();
  }
  void close_write() {
    if (write >= 0) ::close(std::exchange(write, -1));
  }
};

}  // namespace

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return ::access(name.c_str(), X_OK) == 0 ? name : "";
  const char* const path = ::getenv("PATH");
  std::istringstream places(std::string(path == nullptr ? "/usr/bin:/bin" : path) + ":/usr/sbin:/sbin");
  for (std::string place; std::getline(places, place, ':');)
    if (const std::string found = place + "/" + name; !place.empty() && ::access(found.c_str(), X_OK) == 0)
      return found;
  return {};
}

Status need_program(const std::string& name, const std::string& package) {
  if (!find_program(name).empty()) return {};
  return fail(Code::not_found, name, "is not installed here", "on Debian: apt install " + package);
}

Result<Ran> run_program(const std::vector<std::string>& command, const std::function<bool()>& stopped,
                        const std::function<void(const std::string&)>& output) {
  Pipe out, err;
  if (out.read < 0 || err.read < 0) return fail_errno(errno, command.front(), "make a pipe for");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out.write, 1);
  posix_spawn_file_actions_adddup2(&actions, err.write, 2);
  auto started = spawn(command, actions);
  posix_spawn_file_actions_destroy(&actions);
  const int pid = TIDEMARK_TRY(std::move(started));
  out.close_write();
  err.close_write();
  Ran ran;
  bool cancelled = false;
  pollfd ready[2] = {{out.read, POLLIN, 0}, {err.read, POLLIN, 0}};
  while (ready[0].fd >= 0 || ready[1].fd >= 0) {
    if (::poll(ready, 2, kLookEvery_ms) < 0 && errno != EINTR) break;
    if (!cancelled && stopped && stopped()) {
      cancelled = true;
      ::kill(pid, SIGTERM);
    }
    for (int i = 0; i < 2; ++i) {
      if (ready[i].fd < 0 || ready[i].revents == 0) continue;
      char buffer[4096];
      const ssize_t n = ::read(ready[i].fd, buffer, sizeof buffer);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        ready[i].fd = -1;
        continue;
      }
      const std::string text(buffer, static_cast<std::size_t>(n));
      if (i == 0 && output) output(text);
      std::string& kept = i == 0 ? ran.out : ran.err;
      if (kept.size() < kKept) kept += text;
    }
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (cancelled) return fail(Code::cancelled, {}, "interrupted");
  ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

Result<int> start_program(const std::vector<std::string>& command, const std::string& log) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  auto started = spawn(command, actions, POSIX_SPAWN_SETSID);
  posix_spawn_file_actions_destroy(&actions);
  return started;
}

bool has_ended(int pid) {
  int status = 0;
  return ::waitpid(pid, &status, WNOHANG) == pid;
}

}  // namespace tidemark::cli
