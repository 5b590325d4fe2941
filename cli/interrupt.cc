#include "cli/interrupt.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/check.h"

namespace tidemark::cli {
namespace {

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

}  // namespace

struct Interrupt::Saved {
  sigset_t mask;
};

Interrupt::Interrupt(std::function<void()> raised) : on_raise_(std::move(raised)), saved_(std::make_unique<Saved>()) {
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, &saved_->mask);
  signal_fd_ = ::signalfd(-1, &set, SFD_CLOEXEC);
  stop_fd_ = ::eventfd(0, EFD_CLOEXEC);
  TIDEMARK_CHECK(signal_fd_ >= 0 && stop_fd_ >= 0);
  thread_ = std::thread([this] { wait(); });
}

Interrupt::~Interrupt() {
  const std::uint64_t one = 1;
  TIDEMARK_CHECK(::write(stop_fd_, &one, sizeof one) == sizeof one);
  thread_.join();
  ::close(signal_fd_);
  ::close(stop_fd_);
  pthread_sigmask(SIG_SETMASK, &saved_->mask, nullptr);
}

void Interrupt::wait() {
  pollfd ready[2] = {{signal_fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
  for (;;) {
    if (::poll(ready, 2, -1) < 0) continue;  // EINTR
    if (ready[1].revents != 0) return;
    signalfd_siginfo info;
    if (::read(signal_fd_, &info, sizeof info) == sizeof info) break;
  }
  raised_ = true;
  on_raise_();
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);  // the next one takes its usual course
  while (::poll(&ready[1], 1, -1) < 0) {
  }
}

}  // namespace tidemark::cli
