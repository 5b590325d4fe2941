#include "agent/lease.h"

#include <fcntl.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>

#include "base/limits.h"

namespace tidemark::agent {
namespace {

struct Slot {
  std::atomic<int> fd{-1};
  std::atomic<bool> broken{false};
};
std::array<Slot, 2 * limits::kDisksPerMachineMax> slots;
std::mutex taking;

// Async-signal-safe: atomics and fcntl(2) only. Looks at every lease, for a signal can stand for several breaks.
void on_lease_break(int, siginfo_t*, void*) {
  const int saved_errno = errno;
  for (Slot& slot : slots) {
    const int fd = slot.fd.load();
    if (fd < 0 || ::fcntl(fd, F_GETLEASE) == F_RDLCK) continue;
    slot.broken.store(true);
    ::fcntl(fd, F_SETLEASE, F_UNLCK);
  }
  errno = saved_errno;
}

int lease_signal() { return SIGRTMIN + 5; }

void install_handler() {
  struct sigaction action{};
  action.sa_sigaction = on_lease_break;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(lease_signal(), &action, nullptr);
  ::sigaction(SIGIO, &action, nullptr);  // what the kernel sends when the queue of real-time signals is full
}

}  // namespace

Result<std::unique_ptr<ReadLease>> ReadLease::take(int fd, const std::string& name) {
  const std::lock_guard lock(taking);
  static const bool installed = (install_handler(), true);
  (void)installed;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].fd.load() >= 0) continue;
    if (::fcntl(fd, F_SETSIG, lease_signal()) != 0) return fail_errno(errno, name, "choose the signal of its lease");
    if (::fcntl(fd, F_SETLEASE, F_RDLCK) != 0) {
      if (errno == EAGAIN || errno == EBUSY) return fail(Code::busy, name, "open for writing");
      auto error = fail_errno(errno, name, "take a read lease");
      error.error().code = Code::unsupported;
      return error;
    }
    slots[i].broken.store(false);
    slots[i].fd.store(fd);
    // A break between the two lines above found no slot: it is seen here, and given up here.
    if (::fcntl(fd, F_GETLEASE) != F_RDLCK) {
      ::fcntl(fd, F_SETLEASE, F_UNLCK);
      slots[i].fd.store(-1);
      return fail(Code::busy, name, "being opened for writing");
    }
    return std::unique_ptr<ReadLease>(new ReadLease(i));
  }
  return fail(Code::unsupported, name, "no more leases can be held");
}

ReadLease::~ReadLease() {
  const std::lock_guard lock(taking);
  const int fd = slots[slot_].fd.load();
  ::fcntl(fd, F_SETLEASE, F_UNLCK);
  slots[slot_].fd.store(-1);
}

bool ReadLease::held() const {
  const Slot& slot = slots[slot_];
  return ::fcntl(slot.fd.load(), F_GETLEASE) == F_RDLCK && !slot.broken.load();
}

}  // namespace tidemark::agent
