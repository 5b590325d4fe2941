// The simulated disk's asynchronous queue: durable writes in flight, delivered in any order.
#include <deque>

#include "base/check.h"
#include "storage/sim_disk_state.h"

namespace tidemark::storage::sim {
namespace {

struct Operation {
  bool write;
  std::shared_ptr<Inode> inode;
  std::string path;
  std::uint64_t offset;
  std::byte* data;
  std::size_t size;
  IoCompletion* done;
};

class Queue final : public SimQueue, public InFlight {
 public:
  explicit Queue(std::shared_ptr<SimDisk::State> state) : state_(std::move(state)) {
    const std::lock_guard lock(state_->mutex);
    state_->queues.push_back(this);
  }
  ~Queue() override {
    const std::lock_guard lock(state_->mutex);
    std::erase(state_->queues, this);
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  void write_durable(File& file, std::uint64_t offset, std::span<const std::byte> from, IoCompletion& done) override {
    queue(file, true, offset, const_cast<std::byte*>(from.data()), from.size(), done);
  }
  void read(File& file, std::uint64_t offset, std::span<std::byte> to, IoCompletion& done) override {
    queue(file, false, offset, to.data(), to.size(), done);
  }

  void submit() override {
    const std::lock_guard lock(state_->mutex);
    for (Operation& operation : queued_) {
      submitted_.push_back(operation);
      if (operation.write) state_->begin();  // in flight from here on: a cut treats it as such
    }
    queued_.clear();
  }

  std::size_t reap() override { return held_ ? 0 : deliver(0); }
  std::size_t wait(std::size_t least) override {
    submit();
    std::size_t reaped = 0;
    while (reaped < least && submitted() != 0) reaped += deliver(1);
    return reaped;
  }

  void hold(bool held) override { held_ = held; }
  void complete(std::size_t at) override { finish(take(at), std::nullopt); }
  void fail(std::size_t at, int result) override { finish(take(at), result); }
  std::size_t submitted() const override {
    const std::lock_guard lock(state_->mutex);
    return submitted_.size();
  }
  std::size_t in_flight() const override {
    const std::lock_guard lock(state_->mutex);
    return submitted_.size() + queued_.size();
  }
  int event_fd() const override { return -1; }

  // With the state's mutex held, once, when the power goes.
  void cut() override {
    for (const Operation& operation : submitted_)
      if (operation.write) write_in_part(operation);
  }

 private:
  void queue(File& file, bool write, std::uint64_t offset, std::byte* data, std::size_t size, IoCompletion& done) {
    auto* const sim_file = dynamic_cast<SimFile*>(&file);
    TIDEMARK_CHECK(sim_file != nullptr && sim_file->aligned(offset, size, data));
    TIDEMARK_CHECK(!write || sim_file->writable());
    const std::lock_guard lock(state_->mutex);
    queued_.push_back({write, sim_file->inode(), sim_file->path(), offset, data, size, &done});
  }

  Operation take(std::size_t at) {
    const std::lock_guard lock(state_->mutex);
    TIDEMARK_CHECK(at < submitted_.size());
    Operation operation = std::move(submitted_[at]);
    submitted_.erase(submitted_.begin() + static_cast<std::ptrdiff_t>(at));
    return operation;
  }

  // Each operation that is in flight now completes with one chance in two, in any order; at least `least` of them.
  std::size_t deliver(std::size_t least) {
    std::size_t count = 0;
    {
      const std::lock_guard lock(state_->mutex);
      for (std::size_t i = 0; i < submitted_.size(); ++i) count += state_->random.below(2);
      count = std::max(count, std::min(least, submitted_.size()));
      if (state_->off) count = submitted_.size();
    }
    std::size_t done = 0;
    for (; done < count && submitted() > 0; ++done) {
      std::size_t at;
      {
        const std::lock_guard lock(state_->mutex);
        at = state_->random.below(submitted_.size());
      }
      finish(take(at), std::nullopt);
    }
    return done;
  }

  void finish(Operation operation, std::optional<int> forced) {
    int result = 0;
    {
      const std::lock_guard lock(state_->mutex);
      result = operation.write ? write(operation, forced) : read(operation, forced);
    }
    operation.done->on_io_done(result);
  }

  int write(const Operation& operation, std::optional<int> forced) {
    const std::span<const std::byte> bytes(operation.data, operation.size);
    Inode& inode = *operation.inode;
    if (!state_->begin([&] { write_in_part(operation); })) return -EIO;
    if (!forced && !state_->fits(inode, operation.offset + operation.size)) forced = -ENOSPC;
    if (!forced && state_->hit(state_->faults.write_error)) forced = -EIO;
    if (!forced && state_->hit(state_->faults.short_write))
      forced = static_cast<int>(state_->random.below(operation.size / kSector) * kSector);
    if (forced) {
      Content& durable = inode.durable;
      if (*forced > 0) durable.put(operation.offset, bytes.first(static_cast<std::size_t>(*forced)));
      if (*forced != -ENOSPC) state_->put_in_part(durable, operation.offset, bytes);
      copy_back(inode, operation.offset, operation.size);
      return *forced;
    }
    if (state_->hit(state_->faults.lost_write)) return static_cast<int>(operation.size);
    const std::uint64_t at = state_->landing(inode, operation.offset, operation.size);
    inode.durable.put(at, bytes);
    copy_back(inode, at, operation.size);
    return static_cast<int>(operation.size);
  }

  void write_in_part(const Operation& operation) {
    state_->put_in_part(operation.inode->durable, operation.offset, {operation.data, operation.size});
    copy_back(*operation.inode, operation.offset, operation.size);
  }

  // A direct write goes past the cache: a reader sees what the disk has.
  static void copy_back(Inode& inode, std::uint64_t offset, std::size_t size) {
    std::vector<std::byte> bytes(size);
    inode.durable.get(offset, bytes);
    inode.now.put(offset, bytes);
  }

  int read(const Operation& operation, std::optional<int> forced) {
    if (state_->off || state_->hit(state_->faults.read_error)) return -EIO;
    if (forced) return *forced;
    const std::uint64_t size = operation.inode->now.size;
    const std::size_t n =
        operation.offset >= size ? 0 : std::min<std::uint64_t>(operation.size, size - operation.offset);
    operation.inode->now.get(operation.offset, {operation.data, n});
    return static_cast<int>(n);
  }

  std::shared_ptr<SimDisk::State> state_;
  std::vector<Operation> queued_;
  std::deque<Operation> submitted_;
  bool held_ = false;
};

}  // namespace

std::unique_ptr<SimQueue> make_queue(std::shared_ptr<SimDisk::State> state) {
  return std::make_unique<Queue>(std::move(state));
}

}  // namespace tidemark::storage::sim
