#include "server/node.h"

#include "server/session.h"
#include "server/shard.h"

namespace tidemark::server {

Node::Node(Config c, Directory d, Superblock s, Authority a, std::unique_ptr<Tokens> t, storage::FileSystem& f,
           const Clock& k)
    : config(std::move(c)),
      directory(std::move(d)),
      superblock(std::move(s)),
      authority(std::move(a)),
      tokens(std::move(t)),
      files(f),
      clock(k),
      tickets(net::TicketKeys::make()),
      started_us(k.wall_us()),
      audit(directory.audit(), clock),
      seen_time(directory.seen_time()),
      workers(kWorkerThreads, kWorkerQueueMax),
      sessions(config.limits.sessions) {}

Node::~Node() = default;

}  // namespace tidemark::server
