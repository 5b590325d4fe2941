#include "storage/sim_disk.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/limits.h"
#include "base/random.h"

namespace tidemark::storage {
namespace {

constexpr std::size_t kSector = 512;
constexpr std::size_t kPage = 4096;
using Page = std::array<std::byte, kPage>;
constexpr Page kZeroPage{};

// Bytes in pages that are shared until they are written; an absent page is zeroes.
struct Content {
  std::vector<std::shared_ptr<Page>> pages;
  std::uint64_t size = 0;

  void resize(std::uint64_t to) {
    size = to;
    pages.resize((to + kPage - 1) / kPage);
  }
  const Page& page(std::size_t number) const {
    return number < pages.size() && pages[number] ? *pages[number] : kZeroPage;
  }
  void put(std::uint64_t offset, std::span<const std::byte> bytes) {
    if (offset + bytes.size() > size) resize(offset + bytes.size());
    while (!bytes.empty()) {
      const std::size_t within = offset % kPage;
      const std::size_t n = std::min(bytes.size(), kPage - within);
      auto& page = pages[offset / kPage];
      if (n == kPage && std::memcmp(bytes.data(), kZeroPage.data(), kPage) == 0) {
        page.reset();
      } else {
        if (!page || page.use_count() > 1) page = std::make_shared<Page>(page ? *page : kZeroPage);
        std::memcpy(page->data() + within, bytes.data(), n);
      }
      offset += n;
      bytes = bytes.subspan(n);
    }
  }
  void get(std::uint64_t offset, std::span<std::byte> to) const {
    while (!to.empty()) {
      const std::size_t within = offset % kPage;
      const std::size_t n = std::min(to.size(), kPage - within);
      std::memcpy(to.data(), page(offset / kPage).data() + within, n);
      offset += n;
      to = to.subspan(n);
    }
  }
};

struct Inode {
  bool directory = false;
  Content now;      // what a reader sees
  Content durable;  // what is there after a cut, whatever happens
};
using Names = std::map<std::string, std::shared_ptr<Inode>>;

// One change to a directory that is not durable yet: `from` goes (if not empty), `to` comes (if not empty).
struct NameChange {
  std::string directory;
  std::string from, to;
  std::shared_ptr<Inode> inode;
};

std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return "";
  return slash == 0 ? "/" : path.substr(0, slash);
}
std::string normal(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void change(Names& names, const NameChange& what) {
  if (!what.from.empty()) names.erase(what.from);
  if (!what.to.empty()) names[what.to] = what.inode;
}

struct Operation {
  bool write;
  std::shared_ptr<Inode> inode;
  std::string path;
  std::uint64_t offset;
  std::byte* data;
  std::size_t size;
  IoCompletion* done;
};

}  // namespace

struct SimDisk::State {
  explicit State(std::uint64_t seed, std::uint64_t bytes) : random(seed), capacity(bytes) {
    auto root = std::make_shared<Inode>();
    root->directory = true;
    names["/"] = durable_names["/"] = root;
    names[""] = durable_names[""] = root;  // of relative paths
  }

  mutable std::mutex mutex;
  Random random;
  SimFaults faults;
  std::uint64_t capacity;
  std::uint64_t operations = 0;
  std::optional<std::uint64_t> cut_at;
  bool off = false;
  Names names, durable_names;
  std::vector<NameChange> changes;  // in order, not yet durable
  std::set<std::string> locks;
  std::vector<class SimDiskQueue*> queues;

  static std::unexpected<Error> dead(const std::string& path) {
    return fail_errno(EIO, path, "use it, the power is off");
  }

  bool hit(double chance) { return chance > 0 && random.chance(chance); }

  std::uint64_t used() const {
    std::uint64_t bytes = 0;
    for (const auto& [path, inode] : names) bytes += inode->now.size;
    return bytes;
  }
  bool fits(const Inode& inode, std::uint64_t end) const {
    return end <= inode.now.size || used() + (end - inode.now.size) <= capacity;
  }

  std::shared_ptr<Inode> find(const std::string& path) const {
    const auto found = names.find(path);
    return found == names.end() ? nullptr : found->second;
  }

  // Some sectors of a write, all or none of it, as a cut or a failure in its middle leaves it.
  void put_in_part(Content& content, std::uint64_t offset, std::span<const std::byte> bytes) {
    const std::uint64_t kind = random.below(4);
    if (kind == 0) return;
    std::size_t prefix = kind == 2 ? random.below(bytes.size() / kSector + 1) * kSector : bytes.size();
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t n = std::min(bytes.size() - at, kSector - (offset + at) % kSector);
      if (kind == 1 || (kind == 2 && at < prefix) || (kind == 3 && random.chance(0.5)))
        content.put(offset + at, bytes.subspan(at, n));
      at += n;
    }
  }

  // What was written and not synced: each sector old or new, by chance.
  void settle_by_chance(Inode& inode) {
    Content& kept = inode.durable;
    if (kept.size != inode.now.size && random.chance(0.5)) kept.resize(inode.now.size);
    for (std::size_t number = 0; number < kept.pages.size() && number < inode.now.pages.size(); ++number) {
      if (kept.pages[number] == inode.now.pages[number]) continue;
      const Page& page = inode.now.page(number);
      const std::uint64_t mode = random.below(3);  // whole pages mostly, torn ones often enough
      if (mode == 0) continue;
      for (std::size_t at = 0; at < kPage; at += kSector) {
        if (number * kPage + at + kSector > kept.size || (mode == 2 && random.chance(0.5))) continue;
        kept.put(number * kPage + at, std::span(page).subspan(at, kSector));
      }
    }
  }

  void power_off();

  // True: go on with the operation. False: the power went during it; `in_part` had its chance to leave a trace.
  template <typename InPart>
  bool begin(InPart&& in_part) {
    if (off) return false;
    if (cut_at && operations >= *cut_at) {
      in_part();
      power_off();
      return false;
    }
    ++operations;
    return true;
  }
  bool begin() {
    return begin([] {});
  }

  // A name change, begun by the caller.
  void apply(NameChange what) {
    change(names, what);
    changes.push_back(std::move(what));
  }

  // Where a write really goes.
  std::uint64_t landing(const Inode& inode, std::uint64_t offset, std::size_t size) {
    if (!hit(faults.misdirect) || inode.now.size < size + kPage) return offset;
    return random.below((inode.now.size - size) / kPage + 1) * kPage;
  }
};

namespace {

class SimFile final : public File {
 public:
  SimFile(std::shared_ptr<SimDisk::State> state, std::shared_ptr<Inode> inode, std::string path, bool writable,
          bool direct)
      : state_(std::move(state)),
        inode_(std::move(inode)),
        path_(std::move(path)),
        writable_(writable),
        direct_(direct) {}

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> to) override {
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(path_);
    if (!aligned(offset, to.size(), to.data())) return fail_errno(EINVAL, path_, "read unaligned");
    if (state_->hit(state_->faults.read_error)) return fail_errno(EIO, path_, "read");
    const std::uint64_t size = inode_->now.size;
    const std::size_t n = offset >= size ? 0 : std::min<std::uint64_t>(to.size(), size - offset);
    inode_->now.get(offset, to.first(n));
    return n;
  }

  Status write_at(std::uint64_t offset, std::span<const std::byte> from) override {
    const std::lock_guard lock(state_->mutex);
    if (!writable_) return fail_errno(EBADF, path_, "write");
    if (!aligned(offset, from.size(), from.data())) return fail_errno(EINVAL, path_, "write unaligned");
    if (!state_->begin([&] { state_->put_in_part(inode_->now, offset, from); })) return SimDisk::State::dead(path_);
    if (!state_->fits(*inode_, offset + from.size())) return fail_errno(ENOSPC, path_, "write");
    if (state_->hit(state_->faults.write_error)) {
      state_->put_in_part(inode_->now, offset, from);
      return fail_errno(EIO, path_, "write");
    }
    if (state_->hit(state_->faults.lost_write)) return {};
    inode_->now.put(state_->landing(*inode_, offset, from.size()), from);
    return {};
  }

  Status sync() override {
    const std::lock_guard lock(state_->mutex);
    if (!state_->begin([&] { state_->settle_by_chance(*inode_); })) return SimDisk::State::dead(path_);
    if (state_->hit(state_->faults.sync_error)) {
      state_->settle_by_chance(*inode_);
      inode_->now = inode_->durable;  // the cache drops what it could not write
      return fail_errno(EIO, path_, "sync");
    }
    inode_->durable = inode_->now;
    return {};
  }

  Result<std::uint64_t> size() override {
    const std::lock_guard lock(state_->mutex);
    if (state_->off) return SimDisk::State::dead(path_);
    return inode_->now.size;
  }

  Status allocate(std::uint64_t size) override {
    const std::lock_guard lock(state_->mutex);
    if (!state_->begin()) return SimDisk::State::dead(path_);
    if (!state_->fits(*inode_, size)) return fail_errno(ENOSPC, path_, "reserve " + std::to_string(size) + " bytes");
    if (size > inode_->now.size) inode_->now.resize(size);
    return {};
  }
  const std::string& path() const override { return path_; }
  const std::shared_ptr<Inode>& inode() const { return inode_; }
  bool writable() const { return writable_; }

  bool aligned(std::uint64_t offset, std::size_t size, const void* address) const {
    return !direct_ || (offset % limits::kIoAlignment == 0 && size % limits::kIoAlignment == 0 &&
                        reinterpret_cast<std::uintptr_t>(address) % limits::kIoAlignment == 0);
  }

 private:
  std::shared_ptr<SimDisk::State> state_;
  std::shared_ptr<Inode> inode_;
  std::string path_;
  bool writable_;
  bool direct_;
};

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
    return SpaceInfo{state_->capacity, state_->capacity > used ? state_->capacity - used : 0};
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

class SimDiskQueue final : public SimQueue {
 public:
  explicit SimDiskQueue(std::shared_ptr<SimDisk::State> state) : state_(std::move(state)) {
    const std::lock_guard lock(state_->mutex);
    state_->queues.push_back(this);
  }
  ~SimDiskQueue() override {
    const std::lock_guard lock(state_->mutex);
    std::erase(state_->queues, this);
  }
  SimDiskQueue(const SimDiskQueue&) = delete;
  SimDiskQueue& operator=(const SimDiskQueue&) = delete;

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
  std::size_t wait() override {
    submit();
    return submitted() == 0 ? 0 : deliver(1);
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
  void cut() {
    for (const Operation& operation : submitted_)
      if (operation.write)
        state_->put_in_part(operation.inode->durable, operation.offset, {operation.data, operation.size});
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
    if (!state_->begin([&] { state_->put_in_part(inode.durable, operation.offset, bytes); })) return -EIO;
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

// Turns the durable state into what is found afterwards.
void SimDisk::State::power_off() {
  if (off) return;
  off = true;
  for (SimDiskQueue* const queue : queues) queue->cut();
  std::set<std::string> directories;
  for (const NameChange& what : changes) directories.insert(what.directory);
  for (const std::string& directory : directories) {
    const auto count = static_cast<std::uint64_t>(
        std::ranges::count_if(changes, [&](const NameChange& what) { return what.directory == directory; }));
    std::uint64_t kept = random.below(count + 1);
    for (const NameChange& what : changes) {
      if (what.directory != directory) continue;
      if (kept-- == 0) break;
      change(durable_names, what);
    }
  }
  changes.clear();
  // A file whose directory did not survive is gone with it; a map's order visits directories before their content.
  for (auto at = durable_names.begin(); at != durable_names.end();) {
    const bool orphan = at->first != "/" && !at->first.empty() && !durable_names.contains(parent_of(at->first));
    at = orphan ? durable_names.erase(at) : std::next(at);
  }
  for (const auto& [path, inode] : durable_names) settle_by_chance(*inode);
}

SimDisk::SimDisk(std::uint64_t seed, std::uint64_t capacity) : state_(std::make_shared<State>(seed, capacity)) {}
SimDisk::SimDisk(std::shared_ptr<State> state) : state_(std::move(state)) {}
SimDisk::~SimDisk() = default;

FileSystem& SimDisk::files() {
  const std::lock_guard lock(state_->mutex);
  if (!files_) files_ = std::make_unique<SimFiles>(state_);
  return *files_;
}
std::unique_ptr<SimQueue> SimDisk::make_queue() { return std::make_unique<SimDiskQueue>(state_); }

void SimDisk::set_faults(const SimFaults& faults) {
  const std::lock_guard lock(state_->mutex);
  state_->faults = faults;
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
    auto copy = std::make_shared<Inode>();
    copy->directory = inode->directory;
    copy->now = copy->durable = inode->durable;
    after->names[path] = after->durable_names[path] = std::move(copy);
  }
  return std::unique_ptr<SimDisk>(new SimDisk(std::move(after)));
}

bool SimDisk::flip_bit(const std::string& path, std::uint64_t offset, unsigned bit) {
  const std::lock_guard lock(state_->mutex);
  const auto inode = state_->find(normal(path));
  if (!inode || offset >= inode->now.size) return false;
  for (Content* content : {&inode->now, &inode->durable}) {
    if (offset >= content->size) continue;
    std::byte byte = content->page(offset / kPage)[offset % kPage];
    byte ^= std::byte{1} << (bit % 8);
    content->put(offset, {&byte, 1});
  }
  return true;
}

bool SimDisk::overwrite(const std::string& path, std::uint64_t offset, std::span<const std::byte> bytes) {
  const std::lock_guard lock(state_->mutex);
  const auto inode = state_->find(normal(path));
  if (!inode || offset + bytes.size() > inode->now.size) return false;
  inode->now.put(offset, bytes);
  if (offset + bytes.size() <= inode->durable.size) inode->durable.put(offset, bytes);
  return true;
}

}  // namespace tidemark::storage
