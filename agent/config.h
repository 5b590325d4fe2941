// agent.toml: the server, the name, the disks and the few options. Annotated in deploy/tidemark-agent.toml.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "agent/rate_schedule.h"
#include "base/status.h"

namespace tidemark::agent {

// How changes are found.
enum class Tracking : std::uint8_t {
  automatic,  // by the kernel where it can, and said so
  ebpf,       // by the kernel, or not at all
  digests,    // by comparing everything with the server's digests
};

struct Config {
  std::string server;                     // host:port
  std::string name;                       // of this machine
  std::vector<std::string> disks;         // paths
  bool all_disks = false;                 // a running agent adds to `disks` every whole disk that comes, but for ...
  std::vector<std::string> except_disks;  // ... these
  std::chrono::milliseconds interval{0};  // between the starts of two epochs; 0: what suits the tracking
  Tracking tracking = Tracking::automatic;
  std::string bpffs = "/sys/fs/bpf";  // where the tracking is pinned
  bool freeze = true;
  std::chrono::milliseconds freeze_limit{10'000};
  std::string hooks = "/etc/tidemark-agent";  // the folder of pre-cut.d and post-cut.d
  std::chrono::milliseconds hook_limit{30'000};
  std::chrono::milliseconds hold_limit{60'000};           // applications stand still for at most this long
  std::chrono::milliseconds application_points_every{0};  // 0: only when asked for
  std::optional<int> zstd_level;                          // 0: do not compress; none: what suits the way to the server
  double rate_limit_mib_s = 0;                            // 0: none
  std::vector<RateWindow> rate_schedule;                  // in place of rate_limit_mib_s, at their times
  std::chrono::milliseconds audit_period{std::chrono::days(7)};  // of one pass over everything; 0: no audit
  std::string fingerprint_override;                              // for tests: in place of what identifies the machine
  bool skip_free_space = true;                                   // of mounted file systems, and swap
  std::string log_level = "info";
};

// Every key is known, of the right type and within its bounds, or the error names key, line and what is allowed.
Result<Config> parse_config(std::string_view text, const std::string& name);
Result<Config> load_config(const std::filesystem::path& path);

// `text` with one key set to a string or a list of strings; comments and everything else stay. Fails like parse_config
// when the text is no TOML.
Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key, bool value);
Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key,
                             const std::string& value);
Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key,
                             const std::vector<std::string>& value);

// "host:port" or "[::1]:port" with a port of 1..65535.
Status check_address(const std::string& address);

// Puts what is protected into the file: these three and nothing else change. Durable on return.
struct ProtectedDisks {
  std::vector<std::string> disks;
  bool all = false;
  std::vector<std::string> except;
};
Status save_disks(const std::filesystem::path& path, const ProtectedDisks& disks);

}  // namespace tidemark::agent
