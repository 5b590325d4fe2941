#include "cli/nbd_uri.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "cli/format.h"
#include "cli/point.h"

namespace tidemark::cli {

Result<std::string> nbd_uri(AdminClient& client, const std::string& machine, std::uint64_t epoch, std::uint64_t disk) {
  const auto server = TIDEMARK_TRY(client.get("/v1/server"));
  const std::string directory = text_at(server, "data_directory");
  if (directory.empty()) return odd_answer("a server without a data directory");
  const std::string socket = directory + "/nbd.sock";
  if (::access(socket.c_str(), R_OK | W_OK) != 0)
    return fail(Code::unavailable, socket, "cannot be opened: the server's NBD socket",
                "run this where the server runs, as root or as its user; [nbd] of its configuration may have moved it");
  constexpr std::string_view kClone = "clone:";
  const std::string name = machine.starts_with(kClone)
                               ? "clone/" + path_segment(machine.substr(kClone.size())) + "/disk" + std::to_string(disk)
                               : path_segment(machine) + "/disk" + std::to_string(disk) + "@" + exactly(epoch);
  // Of an URI's query everything may stand as it is that a path usually has; the rest is encoded.
  std::string path;
  for (const char c : socket) path += c == '/' ? std::string(1, c) : path_segment(std::string(1, c));
  return "nbd+unix:///" + name + "?socket=" + path;
}

}  // namespace tidemark::cli
