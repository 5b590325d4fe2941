#include "base/no_blocking.h"

#include <mutex>
#include <utility>

namespace tidemark {
namespace {

thread_local int must_not = 0;
std::mutex mutex;
std::map<std::string, std::uint64_t> blocked;

}  // namespace

NoBlocking::NoBlocking() { ++must_not; }
NoBlocking::~NoBlocking() { --must_not; }

void about_to_block(const char* what) {
  if (must_not == 0) [[likely]]
    return;
  const std::lock_guard lock(mutex);
  ++blocked[what];
}

std::map<std::string, std::uint64_t> take_blocked() {
  const std::lock_guard lock(mutex);
  return std::exchange(blocked, {});
}

}  // namespace tidemark
