// Private to the simulated disk (storage/sim_disk.h): its state, shared by its files, names and queues. Everything in
// it is guarded by its mutex.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/random.h"
#include "storage/sim_disk.h"

namespace tidemark::storage::sim {

inline constexpr std::size_t kSector = 512;
inline constexpr std::size_t kPage = 4096;
using Page = std::array<std::byte, kPage>;
inline constexpr Page kZeroPage{};

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

inline std::string parent_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return "";
  return slash == 0 ? "/" : path.substr(0, slash);
}
inline std::string normal(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

inline void change(Names& names, const NameChange& what) {
  if (!what.from.empty()) names.erase(what.from);
  if (!what.to.empty()) names[what.to] = what.inode;
}

// What is in flight when the power goes.
class InFlight {
 public:
  virtual void cut() = 0;  // with the mutex held, once: each write may be there whole, in part or not at all

 protected:
  ~InFlight() = default;
};

}  // namespace tidemark::storage::sim

namespace tidemark::storage {

struct SimDisk::State {
  explicit State(std::uint64_t seed, std::uint64_t bytes) : random(seed), capacity(bytes) {
    auto root = std::make_shared<sim::Inode>();
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
  sim::Names names, durable_names;
  std::vector<sim::NameChange> changes;  // in order, not yet durable
  std::set<std::string> locks;
  std::vector<sim::InFlight*> queues;

  static std::unexpected<Error> dead(const std::string& path) {
    return fail_errno(EIO, path, "use it, the power is off");
  }

  bool hit(double chance) { return chance > 0 && random.chance(chance); }

  std::uint64_t used() const {
    std::uint64_t bytes = 0;
    for (const auto& [path, inode] : names) bytes += inode->now.size;
    return bytes;
  }
  bool fits(const sim::Inode& inode, std::uint64_t end) const {
    return end <= inode.now.size || used() + (end - inode.now.size) <= capacity;
  }

  std::shared_ptr<sim::Inode> find(const std::string& path) const {
    const auto found = names.find(path);
    return found == names.end() ? nullptr : found->second;
  }

  // Some sectors of a write, all or none of it, as a cut or a failure in its middle leaves it.
  void put_in_part(sim::Content& content, std::uint64_t offset, std::span<const std::byte> bytes) {
    const std::uint64_t kind = random.below(4);
    if (kind == 0) return;
    std::size_t prefix = kind == 2 ? random.below(bytes.size() / sim::kSector + 1) * sim::kSector : bytes.size();
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t n = std::min(bytes.size() - at, sim::kSector - (offset + at) % sim::kSector);
      if (kind == 1 || (kind == 2 && at < prefix) || (kind == 3 && random.chance(0.5)))
        content.put(offset + at, bytes.subspan(at, n));
      at += n;
    }
  }

  // What was written and not synced: each sector old or new, by chance.
  void settle_by_chance(sim::Inode& inode) {
    sim::Content& kept = inode.durable;
    if (kept.size != inode.now.size && random.chance(0.5)) kept.resize(inode.now.size);
    for (std::size_t number = 0; number < kept.pages.size() && number < inode.now.pages.size(); ++number) {
      if (kept.pages[number] == inode.now.pages[number]) continue;
      const sim::Page& page = inode.now.page(number);
      const std::uint64_t mode = random.below(3);  // whole pages mostly, torn ones often enough
      if (mode == 0) continue;
      for (std::size_t at = 0; at < sim::kPage; at += sim::kSector) {
        if (number * sim::kPage + at + sim::kSector > kept.size || (mode == 2 && random.chance(0.5))) continue;
        kept.put(number * sim::kPage + at, std::span(page).subspan(at, sim::kSector));
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
  void apply(sim::NameChange what) {
    sim::change(names, what);
    changes.push_back(std::move(what));
  }

  // Where a write really goes.
  std::uint64_t landing(const sim::Inode& inode, std::uint64_t offset, std::size_t size) {
    if (!hit(faults.misdirect) || inode.now.size < size + sim::kPage) return offset;
    return random.below((inode.now.size - size) / sim::kPage + 1) * sim::kPage;
  }
};

namespace sim {

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

std::unique_ptr<SimQueue> make_queue(std::shared_ptr<SimDisk::State> state);

}  // namespace sim
}  // namespace tidemark::storage
