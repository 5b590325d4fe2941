// tidemarkd with a bug planted (base/planted.h), which TIDEMARK_PLANTED_BUG names: the power-cut rig and the
// crash loops must find what it loses. For tests only; nothing installs it.
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/planted.h"
#include "server/commands.h"

int main(int argc, char** argv) {
  const char* const wanted = std::getenv("TIDEMARK_PLANTED_BUG");
  const std::string_view bug = wanted == nullptr ? "" : wanted;
  if (bug == "log_unsynced") {
    tidemark::planted_bug = tidemark::Planted::log_unsynced;
  } else if (bug == "flush_ignored") {
    tidemark::planted_bug = tidemark::Planted::flush_ignored;
  } else {
    std::fputs("tidemarkd_planted: TIDEMARK_PLANTED_BUG must be log_unsynced or flush_ignored\n", stderr);
    return 2;
  }
  return tidemark::server::run_command_line(argc, argv);
}
