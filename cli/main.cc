#include <signal.h>

#include <iostream>
#include <string>
#include <vector>

#include "cli/program.h"

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);  // a server that went away is an error to tell, not a death
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return tidemark::cli::run(arguments, std::cin, std::cout, std::cerr);
}
