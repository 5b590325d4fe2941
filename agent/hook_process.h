// One hook as a process of its own: with a time limit, an environment of its own, and its output in our log.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <stop_token>
#include <string>
#include <vector>

namespace tidemark::agent {

struct HookRun {
  std::filesystem::path path;
  std::vector<std::string> environment;  // "KEY=value", all there is
  std::chrono::milliseconds limit{30'000};
  // A line that it wrote to stdout or stderr, clean and cut to kHookLineMax. After kHookLinesMax one more tells that
  // there are others.
  std::function<void(const std::string& line)> on_line;
  // Ends it before its time. By default nothing does.
  std::stop_token stop;
};

inline constexpr std::size_t kHookLineMax = 500;
inline constexpr std::size_t kHookLinesMax = 200;
// From SIGTERM to SIGKILL, and from that until it is given up.
inline constexpr std::chrono::milliseconds kHookGrace{3'000};

// Runs it to its end, in a process group of its own, in "/", with /dev/null as its input. Past its limit, or when asked
// to stop, its group is sent SIGTERM, and then SIGKILL. It gets SIGTERM too when the calling thread ends before it.
// What it started in the background may live on; what that writes later is not waited for. Empty: it exited with 0.
// Else what went wrong, in words: "exit status 3". Blocks at most limit + 2 * kHookGrace.
std::string run_hook(const HookRun& run);

}  // namespace tidemark::agent
