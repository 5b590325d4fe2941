// A thread that serves many must not wait for a disk. While a NoBlocking lives on a thread, whatever waits there for
// one is noted, to be told: it is an error of ours. Costs a look at a thread's own variable.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace tidemark {

class NoBlocking {
 public:
  NoBlocking();
  ~NoBlocking();
  NoBlocking(const NoBlocking&) = delete;
  NoBlocking& operator=(const NoBlocking&) = delete;
};

// Called by what is about to wait for a disk. `what`: a literal, such as "sync a file".
void about_to_block(const char* what);

// What waited where it must not since the last call, and how often. Any thread.
std::map<std::string, std::uint64_t> take_blocked();

}  // namespace tidemark
