#include "storage/uring_queue.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>

#include "base/check.h"
#include "base/planted.h"
#include "storage/system_files.h"

namespace tidemark::storage {
namespace {

class UringQueue final : public IoQueue {
 public:
  UringQueue(const io_uring& ring, int event_fd) : ring_(ring), event_fd_(event_fd) {}
  ~UringQueue() override {
    io_uring_queue_exit(&ring_);
    ::close(event_fd_);
  }
  UringQueue(const UringQueue&) = delete;
  UringQueue& operator=(const UringQueue&) = delete;

  void write_durable(File& file, std::uint64_t offset, std::span<const std::byte> from, IoCompletion& done) override {
    queue({fd_of(file), true, offset, const_cast<std::byte*>(from.data()), from.size(), &done});
  }
  void read(File& file, std::uint64_t offset, std::span<std::byte> to, IoCompletion& done) override {
    queue({fd_of(file), false, offset, to.data(), to.size(), &done});
  }

  void submit() override {
    do {
      prepare_waiting();
      if (io_uring_sq_ready(&ring_) == 0) return;
      // Refused for now (too many completions not yet reaped, no memory): what is queued stays there for the next turn.
      if (!accepted(io_uring_submit(&ring_))) return;
    } while (!waiting_.empty());
  }

  std::size_t reap() override {
    if (in_flight_ == 0) return 0;
    // A refusal is no loss: the next wake-up or turn asks again.
    const int entered = io_uring_get_events(&ring_);
    TIDEMARK_CHECK(entered >= 0 || entered == -EINTR || entered == -EAGAIN || entered == -EBUSY || entered == -ENOMEM);
    std::size_t reaped = 0;
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      IoCompletion* const done = static_cast<IoCompletion*>(io_uring_cqe_get_data(cqe));
      const int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);  // before the call: it may queue more
      --in_flight_;
      ++reaped;
      done->on_io_done(result);
    }
    return reaped;
  }

  std::size_t in_flight() const override { return in_flight_; }
  int event_fd() const override { return event_fd_; }

  std::size_t wait(std::size_t least) override {
    std::size_t reaped = 0;
    while (reaped < least && in_flight_ > 0) {
      prepare_waiting();
      // One that is still waiting for room in the ring cannot be waited for.
      const std::size_t there = std::min(least - reaped, in_flight_ - waiting_.size());
      accepted(io_uring_submit_and_wait(&ring_, static_cast<unsigned>(there)));
      reaped += reap();
    }
    return reaped;
  }

 private:
  struct Operation {
    int fd;
    bool write;
    std::uint64_t offset;
    std::byte* data;
    std::size_t size;
    IoCompletion* done;
  };

  static int fd_of(File& file) {
    const auto* const system_file = dynamic_cast<SystemFile*>(&file);
    TIDEMARK_CHECK(system_file != nullptr);
    return system_file->fd();
  }

  static bool accepted(int result) {
    if (result >= 0) return true;
    TIDEMARK_CHECK(result == -EINTR || result == -EAGAIN || result == -EBUSY || result == -ENOMEM);
    return false;
  }

  void queue(const Operation& operation) {
    TIDEMARK_CHECK(operation.size <= INT32_MAX);
    ++in_flight_;
    // Order does not matter to the ring, but what waits goes first, so that nothing waits for ever.
    if (!waiting_.empty() || !prepare(operation)) waiting_.push_back(operation);
  }

  bool prepare(const Operation& operation) {
    io_uring_sqe* const sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) return false;
    const auto size = static_cast<unsigned>(operation.size);
    if (operation.write) {
      io_uring_prep_write(sqe, operation.fd, operation.data, size, operation.offset);
      sqe->rw_flags = planted(Planted::log_unsynced) ? 0 : RWF_DSYNC;
    } else {
      io_uring_prep_read(sqe, operation.fd, operation.data, size, operation.offset);
    }
    io_uring_sqe_set_data(sqe, operation.done);
    return true;
  }

  void prepare_waiting() {
    while (!waiting_.empty() && prepare(waiting_.front())) waiting_.pop_front();
  }

  io_uring ring_;
  int event_fd_;
  std::size_t in_flight_ = 0;      // queued, waiting and submitted
  std::deque<Operation> waiting_;  // did not fit the submission queue; bounded by what its users may have in flight
};

}  // namespace

Result<std::unique_ptr<IoQueue>> make_uring_queue(std::uint32_t entries) {
  // From the newest kernels' best to what any kernel with io_uring takes.
  constexpr unsigned kFlags[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0};
  io_uring ring;
  int failed = 0;
  for (const unsigned flags : kFlags) {
    failed = io_uring_queue_init(entries, &ring, flags);
    if (failed != -EINVAL) break;
  }
  if (failed != 0) {
    auto error = fail_errno(-failed, "io_uring", "make a ring of " + std::to_string(entries) + " entries");
    error.error().remedy =
        "use a kernel from 5.10 on, and allow io_uring (sysctl kernel.io_uring_disabled, container profile)";
    return error;
  }
  const int event_fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (event_fd < 0) failed = -errno;
  if (failed == 0) failed = io_uring_register_eventfd(&ring, event_fd);
  if (failed != 0) {
    io_uring_queue_exit(&ring);
    if (event_fd >= 0) ::close(event_fd);
    return fail_errno(-failed, "io_uring", "register an eventfd");
  }
  return std::make_unique<UringQueue>(ring, event_fd);
}

}  // namespace tidemark::storage
