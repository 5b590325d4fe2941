// Shared values by key, at most so many bytes of them; the least recently used go first. Thread-safe: in parts, each
// with a mutex of its own.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace tidemark::storage {

// A Key has hash(), which is good in its highest bits. `Value` is a shared pointer.
template <typename Key, typename Value>
class ShardedLru {
 public:
  explicit ShardedLru(std::uint64_t bytes_max) : shard_max_(bytes_max / kShards) {}

  Value find(const Key& key) {  // null: it is not here
    Shard& shard = this->shard(key);
    const std::lock_guard lock(shard.mutex);
    const auto found = shard.by_key.find(key);
    if (found == shard.by_key.end()) return nullptr;
    shard.recent.splice(shard.recent.begin(), shard.recent, found->second);
    return found->second->value;
  }

  bool has(const Key& key) const {
    const Shard& shard = this->shard(key);
    const std::lock_guard lock(shard.mutex);
    return shard.by_key.contains(key);
  }

  // In place of what was there. What is too large is passed by.
  void put(const Key& key, Value value, std::uint64_t size) {
    if (size > shard_max_) return;
    Shard& shard = this->shard(key);
    const std::lock_guard lock(shard.mutex);
    if (const auto found = shard.by_key.find(key); found != shard.by_key.end()) shard.drop(found->second);
    while (shard.bytes + size > shard_max_) shard.drop(std::prev(shard.recent.end()));
    shard.recent.push_front({key, std::move(value), size});
    shard.by_key[key] = shard.recent.begin();
    shard.bytes += size;
  }

  std::uint64_t bytes() const {
    std::uint64_t bytes = 0;
    for (const Shard& shard : shards_) {
      const std::lock_guard lock(shard.mutex);
      bytes += shard.bytes;
    }
    return bytes;
  }

 private:
  static constexpr std::size_t kShards = 16;
  struct Hash {
    std::size_t operator()(const Key& key) const { return key.hash(); }
  };
  struct Entry {
    Key key;
    Value value;
    std::uint64_t size;
  };
  using Place = typename std::list<Entry>::iterator;
  struct Shard {
    mutable std::mutex mutex;
    std::list<Entry> recent;  // newest first
    std::unordered_map<Key, Place, Hash> by_key;
    std::uint64_t bytes = 0;

    void drop(Place entry) {
      bytes -= entry->size;
      by_key.erase(entry->key);
      recent.erase(entry);
    }
  };
  Shard& shard(const Key& key) { return shards_[key.hash() >> 60]; }
  const Shard& shard(const Key& key) const { return shards_[key.hash() >> 60]; }

  const std::uint64_t shard_max_;
  std::array<Shard, kShards> shards_;
};

}  // namespace tidemark::storage
