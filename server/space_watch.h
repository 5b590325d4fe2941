// Watches what the machines of a partition take, and holds those that take too much: by their quota, or because their
// file system fills up (server/watermark.h). Held means that no more credit is granted, or no faster than a rate, and
// that the agent is told why, every second. It ends by itself when there is room.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "server/quota.h"
#include "server/watermark.h"

namespace tidemark::server {

class PartitionHost;
class Shard;

// Why and how a machine is held. Plain values.
struct SpaceHold {
  Watermark::Hold kind = Watermark::Hold::none;
  std::uint64_t rate = 0;  // bytes per second, when slowed
  std::string reason, remedy;
};

// The watermarks of all file systems that partitions are on. Shared by the shards, thread-safe.
class Watermarks {
 public:
  explicit Watermarks(Watermark::Marks marks) : marks_(marks) {}

  struct FileSystem {
    std::uint64_t id = 0, total = 0, available = 0;
  };
  // Tells what the machines of one partition have stored by now, and gives what is decided for each, in this order.
  std::vector<Watermark::Decision> report(Watermark::Time now, const FileSystem& on,
                                          const std::vector<Watermark::Machine>& machines);
  struct View {
    FileSystem on;
    Watermark::Level level = Watermark::Level::low;
    double used = 0;
    std::size_t slowed = 0, paused = 0;
  };
  std::vector<View> views() const;
  View view(std::uint64_t file_system) const;
  const Watermark::Marks& marks() const { return marks_; }

 private:
  struct Kept {
    explicit Kept(Watermark::Marks marks) : mark(marks) {}
    Watermark mark;
    FileSystem on;
    Watermark::Time decided{};
  };
  void tell(const Kept& kept, Watermark::Level before) const;

  const Watermark::Marks marks_;
  mutable std::mutex mutex_;
  std::map<std::uint64_t, Kept> kept_;
};

// What is known of one machine's room. Kept by its shard.
struct MachineRoom {
  std::uint64_t logical_bytes = 0, stored_bytes = 0;
  std::uint64_t received_bytes = 0;  // of blocks, made durable since the server started
  std::uint64_t growth = 0;          // bytes per second
  QuotaGate quota;
  SpaceHold hold;
  std::string near_quota;  // that it is; empty: it is not
};

class SpaceWatch {
 public:
  SpaceWatch(Shard& shard, PartitionHost& host) : shard_(shard), host_(host) {}

  void tick();  // every second, on the shard's thread, while it serves
  void received(const MachineId& machine, std::uint64_t bytes) { rooms_[machine].received_bytes += bytes; }
  const MachineRoom& room(const MachineId& machine) const;

  struct Totals {
    std::uint64_t logical_bytes = 0, stored_bytes = 0;
    std::size_t near_quota = 0, over_quota = 0, slowed = 0, paused = 0;  // machines
  };
  const Totals& totals() const { return totals_; }  // as of the last look

 private:
  void look();
  void judge(const MachineId& machine, MachineRoom& room);
  void hold(const MachineId& machine, MachineRoom& room, const Watermark::Decision& decision,
            const Watermarks::View& view);
  void apply();

  Shard& shard_;
  PartitionHost& host_;
  std::unordered_map<MachineId, MachineRoom> rooms_;
  Totals totals_;
};

}  // namespace tidemark::server
