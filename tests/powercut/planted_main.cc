// tidemarkd with a bug planted (base/planted.h), which TIDEMARK_PLANTED_BUG names: the power-cut rig must find what it
// loses. For tests only; nothing installs it.
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "base/planted.h"
#include "server/commands.h"

int main(int argc, char** argv) {
  using tidemark::Planted;
  constexpr std::pair<std::string_view, Planted> kBugs[] = {{"log_unsynced", Planted::log_unsynced},
                                                            {"settled_unsynced", Planted::settled_unsynced}};
  const char* const wanted = std::getenv("TIDEMARK_PLANTED_BUG");
  for (const auto& [name, bug] : kBugs)
    if (wanted != nullptr && name == wanted) tidemark::planted_bug = bug;
  if (tidemark::planted_bug == Planted::none) {
    std::fputs("tidemarkd_planted: TIDEMARK_PLANTED_BUG must be log_unsynced or settled_unsynced\n", stderr);
    return 2;
  }
  return tidemark::server::run_command_line(argc, argv);
}
