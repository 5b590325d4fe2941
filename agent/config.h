// agent.toml: the server, the name, the disks and the few options. Annotated in deploy/tidemark-agent.toml.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace tidemark::agent {

struct Config {
  std::string server;                          // host:port
  std::string name;                            // of this machine
  std::vector<std::string> disks;              // paths
  std::chrono::milliseconds interval{10'000};  // between the starts of two epochs
  bool freeze = true;
  std::chrono::milliseconds freeze_limit{10'000};
  int zstd_level = 1;                // 0: do not compress
  double rate_limit_mib_s = 0;       // 0: none
  std::string fingerprint_override;  // for tests: in place of what identifies the machine
  std::string log_level = "info";
};

// Every key is known, of the right type and within its bounds, or the error names key, line and what is allowed.
Result<Config> parse_config(std::string_view text, const std::string& name);
Result<Config> load_config(const std::filesystem::path& path);

// `text` with one key set to a string or a list of strings; comments and everything else stay. Fails like parse_config
// when the text is no TOML.
Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key,
                             const std::string& value);
Result<std::string> with_key(std::string_view text, const std::string& name, const std::string& key,
                             const std::vector<std::string>& value);

// "host:port" or "[::1]:port" with a port of 1..65535.
Status check_address(const std::string& address);

}  // namespace tidemark::agent
