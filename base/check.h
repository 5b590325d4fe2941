// Checks on our own logic, on in every build: a failed one prints the expression and its place and aborts,
// because going on with a broken invariant risks data. Never used on input from a peer or a disk.
#pragma once

namespace tidemark::internal {
[[noreturn]] void check_failed(const char* expression, const char* file, int line);
}

#define TIDEMARK_CHECK(expression)                                         \
  do {                                                                     \
    if (!(expression)) [[unlikely]]                                        \
      ::tidemark::internal::check_failed(#expression, __FILE__, __LINE__); \
  } while (false)
