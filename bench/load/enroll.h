// Enrols the machines of a load run: one token and one enrolment session each, a few at a time.
#pragma once

#include <cstddef>
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

// `admin_socket` is the server's, `address` its HOST:PORT. Names are PREFIX-0, PREFIX-1, ... Blocking.
Result<std::vector<Identity>> enroll_machines(const std::string& admin_socket, const std::string& address,
                                              const std::string& prefix, std::size_t count);

}  // namespace tidemark::bench
