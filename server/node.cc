#include "server/node.h"

#include "server/nbd_service.h"
#include "server/session.h"
#include "server/shard.h"
#include "storage/space.h"

namespace tidemark::server {

Node::Node(Config c, Directory d, Superblock s, Authority a, std::unique_ptr<Tokens> t,
           std::unique_ptr<ExportClients> e, storage::FileSystem& f, const Clock& k)
    : config(std::move(c)),
      directory(std::move(d)),
      superblock(std::move(s)),
      authority(std::move(a)),
      tokens(std::move(t)),
      clients(std::move(e)),
      files(f),
      clock(k),
      tickets(net::TicketKeys::make()),
      started_us(k.wall_us()),
      audit(directory.audit(), clock),
      seen_time(directory.seen_time()),
      workers(kWorkerThreads, kWorkerQueueMax),
      sessions(config.limits.sessions),
      watermarks({.high = config.storage.high_water, .full = config.storage.full_water}),
      directories(files, directory, superblock),
      occupancy(superblock.partitions),
      nbd(std::make_unique<NbdService>(*this)) {}

Node::~Node() = default;

std::uint64_t free_space_min(const Node& node) {
  const auto& storage = node.config.storage;
  if (storage.free_space_min != 0) return storage.free_space_min;
  return node.superblock.partitions * storage::free_space_needed(storage.segment_size);
}

}  // namespace tidemark::server
