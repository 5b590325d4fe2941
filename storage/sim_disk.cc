#include "storage/sim_disk.h"

#include "storage/sim_disk_state.h"

namespace tidemark::storage {
namespace sim {
namespace {

class SimLock final : public FileLock {
 public:
  SimLock(std::shared_ptr<SimDisk::State> state, std::string path) : state_(std::move(state)), path_(std::move(path)) {}
  ~SimLock() override {
    const std::lock_guard lock(state_->mutex);
    state_->locks.erase(path_);
  }
  SimLock(const SimLock&) = delete;
  SimLock& operator=(const SimLock&) = delete;

 private:
  std::shared_ptr<SimDisk::State> state_;
  std::string path_;
};

class SimFiles final : public FileSystem {
 public:
  explicit SimFiles(std::shared_ptr<SimDisk::State> state) : state_(std::move(state)) {}

  Result<std::unique_ptr<File>> open(const std::string& raw, OpenMode mode, bool direct) override {
    const std::string path = normal(raw);
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(path);
    std::shared_ptr<Inode> inode = state_->find(path);
    if (mode == OpenMode::create) {
      if (inode) return fail_errno(EEXIST, path, "create");
      TIDEMARK_TRY(check_parent(path));
      inode = std::make_shared<Inode>();
      NameChange made{parent_of(path), "", path, inode};
      if (!state_->begin([&] { state_->apply(made); })) return SimDisk::State::dead(path);
      state_->apply(std::move(made));
    }
    if (!inode) return fail_errno(ENOENT, path, "open");
    if (inode->directory) return fail_errno(EISDIR, path, "open");
    return std::make_unique<SimFile>(state_, std::move(inode), path, mode != OpenMode::read, direct);
  }

  Status rename(const std::string& raw_from, const std::string& raw_to) override {
    const std::string from = normal(raw_from), to = normal(raw_to);
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(from);
    const std::shared_ptr<Inode> inode = state_->find(from);
    if (!inode) return fail_errno(ENOENT, from, "rename");
    // One journal entry in one directory is all that Tidemark asks for, so that is all that is simulated.
    if (parent_of(from) != parent_of(to) || inode->directory) return fail_errno(EXDEV, from, "rename to " + to);
    return change_name({parent_of(from), from, to, inode}, from);
  }

  Status remove(const std::string& raw) override {
    const std::string path = normal(raw);
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(path);
    const std::shared_ptr<Inode> inode = state_->find(path);
    if (!inode) return fail_errno(ENOENT, path, "remove");
    if (inode->directory && !children(path).empty()) return fail_errno(ENOTEMPTY, path, "remove");
    return change_name({parent_of(path), path, "", inode}, path);
  }

  Status make_directory(const std::string& raw) override {
    const std::string path = normal(raw);
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(path);
    if (const auto inode = state_->find(path)) {
      if (inode->directory) return {};
      return fail_errno(EEXIST, path, "make the directory");
    }
    TIDEMARK_TRY(check_parent(path));
    auto inode = std::make_shared<Inode>();
    inode->directory = true;
    return change_name({parent_of(path), "", path, std::move(inode)}, path);
  }

  Result<std::vector<std::string>> list(const std::string& raw) override {
    const std::string directory = normal(raw);
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(directory);
    const auto inode = state_->find(directory);
    if (!inode) return fail_errno(ENOENT, directory, "list");
    if (!inode->directory) return fail_errno(ENOTDIR, directory, "list");
    return children(directory);
  }

  Status sync_directory(const std::string& raw) override {
    const std::string path = normal(raw);
    const std::lock_guard lock(state_->mutex);
    if (!state_->begin()) return SimDisk::State::dead(path);
    if (!state_->find(path)) return fail_errno(ENOENT, path, "sync the directory");
    if (state_->hit(state_->faults.sync_error)) return fail_errno(EIO, path, "sync the directory");
    std::erase_if(state_->changes, [&](const NameChange& what) {
      if (what.directory != path) return false;
      change(state_->durable_names, what);
      return true;
    });
    return {};
  }

  Result<bool> exists(const std::string& raw) override {
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(raw);
    return state_->find(normal(raw)) != nullptr;
  }

  Result<SpaceInfo> space(const std::string& path) override {
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(path);
    const std::uint64_t used = state_->used();
    return SpaceInfo{state_->capacity, state_->capacity > used ? state_->capacity - used : 0, 1};
  }

  Result<std::unique_ptr<FileLock>> lock(const std::string& raw) override {
    const std::string path = normal(raw);
    const std::lock_guard guard(state_->mutex);
    if (state_->off) return SimDisk::State::dead(path);
    TIDEMARK_TRY(check_parent(path));
    if (!state_->locks.insert(path).second) return fail(Code::busy, path, "is locked by another process");
    if (!state_->find(path)) {
      if (!state_->begin()) return SimDisk::State::dead(path);
      state_->apply({parent_of(path), "", path, std::make_shared<Inode>()});
    }
    return std::make_unique<SimLock>(state_, path);
  }

 private:
  Status change_name(NameChange what, const std::string& path) {
    if (!state_->begin([&] { state_->apply(what); })) return SimDisk::State::dead(path);
    state_->apply(std::move(what));
    return {};
  }
  Status check_parent(const std::string& path) {
    const auto parent = state_->find(parent_of(path));
    if (parent && parent->directory) return {};
    return fail_errno(ENOENT, path, "make it, its directory does not exist");
  }
  std::vector<std::string> children(const std::string& directory) const {
    std::vector<std::string> names;
    for (const auto& [path, inode] : state_->names)
      if (!path.empty() && path != "/" && parent_of(path) == directory)
        names.push_back(path.substr(path.rfind('/') + 1));
    return names;  // of a map: sorted already
  }

  std::shared_ptr<SimDisk::State> state_;
};

}  // namespace
}  // namespace sim

// Turns the durable state into what is found afterwards.
void SimDisk::State::power_off() {
  if (off) return;
  off = true;
  for (sim::InFlight* const queue : queues) queue->cut();
  std::set<std::string> directories;
  for (const sim::NameChange& what : changes) directories.insert(what.directory);
  for (const std::string& directory : directories) {
    const auto count = static_cast<std::uint64_t>(
        std::ranges::count_if(changes, [&](const sim::NameChange& what) { return what.directory == directory; }));
    std::uint64_t kept = random.below(count + 1);
    for (const sim::NameChange& what : changes) {
      if (what.directory != directory) continue;
      if (kept-- == 0) break;
      sim::change(durable_names, what);
    }
  }
  changes.clear();
  // A file whose directory did not survive is gone with it; a map's order visits directories before their content.
  for (auto at = durable_names.begin(); at != durable_names.end();) {
    const bool orphan = at->first != "/" && !at->first.empty() && !durable_names.contains(sim::parent_of(at->first));
    at = orphan ? durable_names.erase(at) : std::next(at);
  }
  for (const auto& [path, inode] : durable_names) settle_by_chance(*inode);
}

SimDisk::SimDisk(std::uint64_t seed, std::uint64_t capacity) : state_(std::make_shared<State>(seed, capacity)) {}
SimDisk::SimDisk(std::shared_ptr<State> state) : state_(std::move(state)) {}
SimDisk::~SimDisk() = default;

FileSystem& SimDisk::files() {
  const std::lock_guard lock(state_->mutex);
  if (!files_) files_ = std::make_unique<sim::SimFiles>(state_);
  return *files_;
}
std::unique_ptr<SimQueue> SimDisk::make_queue() { return sim::make_queue(state_); }

void SimDisk::set_faults(const SimFaults& faults) {
  const std::lock_guard lock(state_->mutex);
  state_->faults = faults;
}
SimFaults SimDisk::faults() const {
  const std::lock_guard lock(state_->mutex);
  return state_->faults;
}
void SimDisk::set_capacity(std::uint64_t bytes) {
  const std::lock_guard lock(state_->mutex);
  state_->capacity = bytes;
}
std::uint64_t SimDisk::operations() const {
  const std::lock_guard lock(state_->mutex);
  return state_->operations;
}
void SimDisk::cut_power_at(std::uint64_t operation) {
  const std::lock_guard lock(state_->mutex);
  state_->cut_at = operation;
}
bool SimDisk::powered_off() const {
  const std::lock_guard lock(state_->mutex);
  return state_->off;
}

std::unique_ptr<SimDisk> SimDisk::crash() {
  const std::lock_guard lock(state_->mutex);
  state_->power_off();
  auto after = std::make_shared<State>(state_->random.next(), state_->capacity);
  for (const auto& [path, inode] : state_->durable_names) {
    auto copy = std::make_shared<sim::Inode>();
    copy->directory = inode->directory;
    copy->now = copy->durable = inode->durable;
    after->names[path] = after->durable_names[path] = std::move(copy);
  }
  return std::unique_ptr<SimDisk>(new SimDisk(std::move(after)));
}

bool SimDisk::flip_bit(const std::string& path, std::uint64_t offset, unsigned bit) {
  const std::lock_guard lock(state_->mutex);
  const auto inode = state_->find(sim::normal(path));
  if (!inode || offset >= inode->now.size) return false;
  for (sim::Content* content : {&inode->now, &inode->durable}) {
    if (offset >= content->size) continue;
    std::byte byte = content->page(offset / sim::kPage)[offset % sim::kPage];
    byte ^= std::byte{1} << (bit % 8);
    content->put(offset, {&byte, 1});
  }
  return true;
}

bool SimDisk::overwrite(const std::string& path, std::uint64_t offset, std::span<const std::byte> bytes) {
  const std::lock_guard lock(state_->mutex);
  const auto inode = state_->find(sim::normal(path));
  if (!inode || offset + bytes.size() > inode->now.size) return false;
  inode->now.put(offset, bytes);
  if (offset + bytes.size() <= inode->durable.size) inode->durable.put(offset, bytes);
  return true;
}

}  // namespace tidemark::storage
