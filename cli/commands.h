// What each command does once its arguments are known: asks the server and writes the answer for people or, with
// --json, as it is.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "cli/client.h"

namespace tidemark::cli {

struct Context {
  AdminClient& client;
  bool json = false;
  bool terminal = false;  // a person watches: progress bars, questions
  std::istream& in;
  std::ostream& out;
  std::ostream& err;
  const Clock& clock = Clock::system();
};

// The exit status of a command that was carried out, else the error.
using Outcome = Result<int>;

struct TokenRequest {
  std::string ttl = "1h";
  std::string machine;
  std::string address;
};
Outcome create_token(Context& context, const TokenRequest& request);

Outcome list_machines(Context& context);
Outcome show_machine(Context& context, const std::string& machine);
Outcome rename_machine(Context& context, const std::string& machine, const std::string& name);
Outcome decide_quarantine(Context& context, const std::string& machine, bool accept);
Outcome revoke_machine(Context& context, const std::string& machine);

Outcome list_points(Context& context, const std::string& machine, std::uint64_t limit, bool fuzzy);

Outcome show_server(Context& context);

// "90s", "15m", "1h", "2d" in seconds.
Result<std::uint64_t> parse_duration(const std::string& text);

}  // namespace tidemark::cli
