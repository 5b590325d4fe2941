// The NBD server of a tidemarkd: its listening sockets, the exports that are open, and the threads that read for them.
//
//   connection (on a shard) -> find() -> NbdExport, shared by all who ask for the same disk at the same point
//                           -> work()  : lookups, reads, decoding, on a bounded number of threads
//
// An export lives as long as a connection or a dedicated socket has it; while it does, its point is held, and a clone
// cannot be dropped. Thread-safe, but for start() and stop().
#pragma once

#include <asio/io_context.hpp>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/status.h"
#include "nbd/handshake.h"
#include "net/acceptor.h"
#include "net/plain_stream.h"
#include "server/admission.h"
#include "server/nbd_export.h"
#include "server/nbd_memory.h"
#include "server/worker_pool.h"
#include "storage/block_cache.h"

namespace tidemark::server {

class CloneWriter;
struct Node;
class UnixListener;

// Where a connection came in, and what is to be had there.
struct NbdOrigin {
  std::string socket;  // "unix:/path" or an address
  nbd::Handshake::Tls tls = nbd::Handshake::Tls::none;
  std::string clone;  // of a socket that serves one clone: nothing else is to be had there
};

struct NbdCounters {
  std::atomic<std::uint64_t> connections{0}, refused{0}, read_bytes{0}, written_bytes{0}, requests{0}, errors{0},
      flushes{0}, shard_reads{0}, worker_reads{0};
};

class NbdService {
 public:
  static constexpr std::size_t kListMax = 1000;    // names told to a client that asks for all
  static constexpr std::size_t kQueueMax = 65536;  // of jobs for the workers

  explicit NbdService(Node& node);
  ~NbdService();

  Status start();  // listens; the shards run
  void stop();     // ends all clients; nothing is under way when it returns

  // Both answer on a worker of the node; false: it has too much to do.
  bool find(const std::string& name, const NbdOrigin& origin,
            std::function<void(Result<std::shared_ptr<NbdExport>>)> done);
  bool list(const NbdOrigin& origin, std::function<void(Result<std::vector<nbd::ListedExport>>)> done);

  // Opens a socket at `path` where only this clone is to be had; its disk 0 under the name "" too.
  Result<std::string> serve(const std::string& clone, const std::string& path);
  Status unserve(const std::string& clone);
  std::vector<std::string> sockets_of(const std::string& clone) const;

  // Who uses the disks of this machine or clone: a text for each.
  void began(const MachineId& machine, const std::string& client);
  void ended(const MachineId& machine, const std::string& client);
  std::vector<std::string> users_of(const MachineId& machine) const;
  // From now on nobody can open one, until dropped(); Code::busy: somebody has, and the error says who.
  Status begin_drop(const MachineId& machine, const std::string& name);
  void dropped(const MachineId& machine);

  void end_certificate(const std::string& serial);  // whoever is connected with it

  void tick();                            // about once a second
  std::uint64_t unindexed_bytes() const;  // written to clones
  [[nodiscard]] bool work(std::function<void()> job) { return workers_.post(std::move(job)); }
  static storage::ReadScratch& scratch();  // of the worker that asks
  NbdMemory& memory() { return memory_; }
  NbdCounters& counters() { return counters_; }
  AdmissionCount& admission() { return admission_; }
  const std::shared_ptr<storage::BlockCache>& cache() const { return cache_; }
  std::size_t exports() const;
  const std::vector<std::string>& listening() const { return listening_; }

 private:
  using Key = std::tuple<MachineId, DiskId, EpochNumber>;

  Result<std::shared_ptr<NbdExport>> open(const std::string& name, const NbdOrigin& origin);
  Result<std::vector<nbd::ListedExport>> names(const NbdOrigin& origin);
  void accepted(net::PlainStream::Socket socket, const NbdOrigin& origin);
  Status listen_unix_at(const std::string& path, const NbdOrigin& origin, std::unique_ptr<UnixListener>& to);

  Node& node_;
  WorkerPool workers_;
  NbdMemory memory_;
  AdmissionCount admission_;
  const std::shared_ptr<storage::BlockCache> cache_;
  NbdCounters counters_;
  std::atomic<std::size_t> next_shard_{0};
  std::atomic<std::uint64_t> next_id_{0};
  std::vector<std::string> listening_;
  std::unique_ptr<UnixListener> unix_;
  std::unique_ptr<net::Acceptor> tcp_;

  mutable std::mutex mutex_;
  std::mutex opening_;  // one at a time, so that two do not make the same
  std::map<Key, std::weak_ptr<NbdExport>> open_;
  std::map<MachineId, std::weak_ptr<CloneWriter>> writers_;
  std::map<MachineId, std::vector<std::string>> users_;
  std::set<MachineId> dropping_;
  struct Served;
  std::map<std::string, std::unique_ptr<Served>> served_;  // by clone
};

}  // namespace tidemark::server
