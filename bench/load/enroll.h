// Enrols the machines of a load run: one token and one enrolment session each, a few at a time.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "net/tls_context.h"

namespace tidemark::bench {

struct Identity {
  MachineId machine;
  std::string name;
  net::Credentials credentials;
};

// `admin_socket` is the server's, `address` its HOST:PORT. Names are PREFIX-first, PREFIX-(first+1), ... `threads`
// share the work. Blocking; `progress` is called with how many are done, `stopped` asked whether to give up
// (Code::cancelled).
struct EnrolOrder {
  std::string admin_socket, address, prefix;
  std::size_t first = 0, count = 1, threads = 1;
  std::function<void(std::size_t)> progress = [](std::size_t) {};
  std::function<bool()> stopped = [] { return false; };
};
Result<std::vector<Identity>> enroll_machines(const EnrolOrder& order);

// Identities of former runs, one JSON object a line, keys included: the file is its owner's alone. Of a file that is
// not there: none. save_identities() replaces the file.
Result<std::vector<Identity>> load_identities(const std::string& path);
Status save_identities(const std::string& path, const std::vector<Identity>& identities);

}  // namespace tidemark::bench
