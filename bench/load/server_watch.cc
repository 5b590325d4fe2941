#include "bench/load/server_watch.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <vector>

namespace tidemark::bench {
namespace {

// Whose process listens there; 0 when it is not a tidemarkd here (a forwarded socket, for one).
int listener_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return 0;
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return 0;
  ucred peer{};
  socklen_t size = sizeof peer;
  const bool known = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
                     ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0;
  ::close(fd);
  if (!known) return 0;
  std::string name;
  std::getline(std::ifstream("/proc/" + std::to_string(peer.pid) + "/comm") >> std::ws, name);
  return name == "tidemarkd" ? peer.pid : 0;
}

}  // namespace

std::optional<ServerUsage> usage_of(int pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (pid == 0 || !std::getline(stat, line)) return std::nullopt;
  std::istringstream fields(line.substr(line.rfind(')') + 2));
  const std::vector<std::string> field{std::istream_iterator<std::string>(fields), {}};
  if (field.size() < 22) return std::nullopt;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  return ServerUsage{(std::stod(field[11]) + std::stod(field[12])) / ticks,
                     std::stoull(field[21]) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))};
}

Metrics parse_metrics(const std::string& text) {
  Metrics metrics;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line.front() == '#') continue;
    const std::size_t space = line.rfind(' ');
    if (space == std::string::npos) continue;
    std::string name = line.substr(0, space);
    const std::size_t brace = name.find('{');
    std::string bound;
    if (const std::size_t at = name.find("le=\""); brace != std::string::npos && at != std::string::npos)
      bound = "{le=" + name.substr(at + 4, name.find('"', at + 4) - at - 4) + "}";
    char* end = nullptr;
    const double value = std::strtod(line.c_str() + space + 1, &end);
    if (end == line.c_str() + space + 1) continue;
    metrics[name.substr(0, brace) + bound] += value;
  }
  return metrics;
}

ServerWatch::ServerWatch(std::string admin_socket, int pid)
    : admin_socket_(std::move(admin_socket)), pid_(pid != 0 ? pid : listener_of(admin_socket_)) {}

std::optional<ServerUsage> ServerWatch::usage() {
  if (pid_ != 0) return usage_of(pid_);
  const auto values = metrics();
  if (!values) return std::nullopt;
  const auto cpu = values->find("tidemark_process_cpu_seconds_total"),
             resident = values->find("tidemark_process_resident_bytes");
  if (cpu == values->end() || resident == values->end()) return std::nullopt;
  return ServerUsage{cpu->second, static_cast<std::uint64_t>(resident->second)};
}

Result<Metrics> ServerWatch::metrics() {
  constexpr std::size_t kTextMax = 64 << 20;
  cli::AdminClient client(admin_socket_);
  std::string text;
  const auto take = [&](std::span<const std::byte> bytes) -> Status {
    if (text.size() + bytes.size() > kTextMax) return fail(Code::protocol, admin_socket_, "its metrics have no end");
    text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return {};
  };
  TIDEMARK_TRY(client.stream({.path = "/metrics"}, take));
  return parse_metrics(text);
}

}  // namespace tidemark::bench
