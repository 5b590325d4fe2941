// tidemarkd with a bug planted (base/planted.h), which TIDEMARK_PLANTED_BUG names: the power-cut rig must find what it
// loses. For tests only; nothing installs it.
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/planted.h"
#include "server/commands.h"

int main(int argc, char** argv) {
  const char* const wanted = std::getenv("TIDEMARK_PLANTED_BUG");
  if (wanted == nullptr || std::string_view(wanted) != "log_unsynced") {
    std::fputs("tidemarkd_planted: TIDEMARK_PLANTED_BUG must be log_unsynced\n", stderr);
    return 2;
  }
  tidemark::planted_bug = tidemark::Planted::log_unsynced;
  return tidemark::server::run_command_line(argc, argv);
}
