// The program `tidemark`, without its main(), so that tests can call it.
#pragma once

#include <iosfwd>
#include <span>
#include <string>

namespace tidemark::cli {

// Exit status: 0 done; 1 it failed, or a verification found damage; 2 the command line is wrong.
int run(std::span<const std::string> arguments, std::istream& in, std::ostream& out, std::ostream& err);

}  // namespace tidemark::cli
