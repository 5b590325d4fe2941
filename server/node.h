// What all parts of a running server share. Filled before the shards start; afterwards every member is immutable or
// thread-safe by itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "server/admission.h"
#include "server/audit.h"
#include "server/authority.h"
#include "server/config.h"
#include "server/data_directories.h"
#include "server/directory.h"
#include "server/export_clients.h"
#include "server/names.h"
#include "server/placement.h"
#include "server/read_holds.h"
#include "server/seen_time.h"
#include "server/space_watch.h"
#include "server/tokens.h"
#include "server/worker_pool.h"
#include "storage/file.h"
#include "storage/master_keys.h"

namespace tidemark::server {

class Shard;
class PartitionHost;
class NbdService;

struct Node {
  Node(Config config, Directory directory, Superblock superblock, Authority authority, std::unique_ptr<Tokens> tokens,
       std::unique_ptr<ExportClients> clients, storage::FileSystem& files, const Clock& clock);
  ~Node();

  static constexpr std::size_t kWorkerThreads = 2;
  static constexpr std::size_t kWorkerQueueMax = 1024;

  const Config config;
  const Directory directory;
  const Superblock superblock;
  const Authority authority;
  const std::unique_ptr<Tokens> tokens;
  const std::unique_ptr<ExportClients> clients;
  std::shared_ptr<const storage::MasterKeys> master_keys;  // null: nothing is encrypted
  storage::FileSystem& files;
  const Clock& clock;
  const net::TicketKeys tickets;
  const WallMicros started_us;
  AuditLog audit;
  SeenTime seen_time;
  WorkerPool workers;
  AdmissionCount sessions;
  MachineNames names;
  Watermarks watermarks;
  DataDirectories directories;
  Occupancy occupancy;
  ReadHolds holds;
  std::vector<std::unique_ptr<Shard>> shards;
  std::unique_ptr<NbdService> nbd;
  std::string listening;  // HOST:PORT, set once bound
  std::string admin_socket;
  std::atomic<bool> stopping{false};

  PartitionId partition_for(const MachineId& machine) const { return partition_of(superblock, machine); }
  Shard& shard_for(PartitionId partition) const { return *shards[partition.value() % shards.size()]; }
  Shard& shard_for(const MachineId& machine) const { return shard_for(partition_for(machine)); }
};

// What is to stay free on the file system: as configured, or what pruning needs (storage/space.h) for all partitions.
std::uint64_t free_space_min(const Node& node);

}  // namespace tidemark::server
