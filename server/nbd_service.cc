#include "server/nbd_service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>
#include <thread>

#include "server/clone_writer.h"
#include "server/logging.h"
#include "server/nbd_clients.h"
#include "server/nbd_reads.h"
#include "server/shard.h"
#include "server/unix_listener.h"
#include "storage/uring_queue.h"

namespace tidemark::server {

struct NbdService::Served {
  std::string path;
  MachineId machine;
  NbdOrigin origin;
  std::unique_ptr<UnixListener> listener;
};

namespace {

std::size_t threads_of(const Config::Nbd& config) {
  return config.threads != 0 ? config.threads : std::max(4U, 2 * std::thread::hardware_concurrency());
}

// Runs on the shard, and waits for it.
template <typename Job>
auto on_shard(Shard& shard, Job job) {
  std::promise<decltype(job())> promise;
  auto future = promise.get_future();
  shard.post([&] { promise.set_value(job()); });
  return future.get();
}

}  // namespace

Status NbdExport::serving() const {
  return host_->state() == PartitionHost::State::serving ? Status() : host_->trouble();
}

NbdService::NbdService(Node& node)
    : node_(node),
      workers_(threads_of(node.config.nbd), kQueueMax),
      memory_(node.config.nbd.memory),
      admission_(node.config.nbd.connections),
      cache_(std::make_shared<storage::BlockCache>(node.config.nbd.cache)) {}

NbdService::~NbdService() = default;

storage::ReadScratch& NbdService::scratch() {
  thread_local const auto scratch = [] {
    auto made = std::make_unique<storage::ReadScratch>();
    // Without a ring of its own the worker reads one piece after the other.
    if (auto queue = storage::make_uring_queue(64)) made->use(*std::move(queue));
    return made;
  }();
  return *scratch;
}

Status NbdService::listen_unix_at(const std::string& path, const NbdOrigin& origin, std::unique_ptr<UnixListener>& to) {
  Shard& first = *node_.shards.front();
  return on_shard(first, [&]() -> Status {
    to = TIDEMARK_TRY(
        UnixListener::listen(first.io(), path, [this, origin](asio::local::stream_protocol::socket socket) {
          accepted(net::PlainStream::Socket(std::move(socket)), origin);
        }));
    to->start();
    return {};
  });
}

Status NbdService::start() {
  const Config::Nbd& config = node_.config.nbd;
  if (config.socket != "none") {
    const std::string path = config.socket.empty() ? node_.directory.nbd_socket() : config.socket;
    const NbdOrigin origin{"unix:" + path, nbd::Handshake::Tls::none, {}};
    TIDEMARK_TRY(listen_unix_at(path, origin, unix_));
    listening_.push_back(origin.socket);
  }
  if (config.listen.empty()) return {};
  const bool tls = config.tls != "off";
  Shard& first = *node_.shards.front();
  auto address = on_shard(first, [&]() -> Result<std::string> {
    tcp_ = TIDEMARK_TRY(net::Acceptor::listen(
        first.io(), config.listen,
        [this, tls](asio::ip::tcp::socket socket) {
          accepted(net::PlainStream::Socket(std::move(socket)),
                   {"tcp:" + tcp_->address(), tls ? nbd::Handshake::Tls::required : nbd::Handshake::Tls::none, {}});
        },
        [](const Error& trouble) { spdlog::warn("accepting pauses{}", kv(trouble)); }));
    return tcp_->address();
  });
  if (!address) return std::unexpected(address.error());
  listening_.push_back("tcp:" + *address);
  if (!tls)
    spdlog::warn("nbd over TCP is in the clear: whoever reaches the address reads every disk and writes to clones{}{}",
                 kv("address", *address), kv("remedy", "set nbd.tls to \"required\""));
  return {};
}

void NbdService::accepted(net::PlainStream::Socket socket, const NbdOrigin& origin) {
  auto ticket = admission_.take();
  if (!ticket) {
    counters_.refused.fetch_add(1, std::memory_order_relaxed);
    spdlog::info("nbd client refused{}{}", kv("socket", origin.socket), kv("why", "too many connections"));
    return;
  }
  const bool tcp = origin.socket.starts_with("tcp:");
  std::error_code error;
  const int descriptor = socket.release(error);
  if (error) return;
  Shard& shard = *node_.shards[next_shard_++ % node_.shards.size()];
  auto holder = std::make_shared<AdmissionCount::Ticket>(std::move(*ticket));
  shard.post([&shard, descriptor, tcp, origin, id = ++next_id_, holder] {
    shard.nbd().adopt(descriptor, tcp, origin, id, std::move(*holder));
  });
}

void NbdService::stop() {
  std::map<std::string, std::unique_ptr<Served>> served;
  {
    const std::lock_guard lock(mutex_);
    served.swap(served_);
  }
  on_shard(*node_.shards.front(), [&] {
    unix_.reset();
    tcp_.reset();
    served.clear();
    return true;
  });
  for (const auto& shard : node_.shards)
    on_shard(*shard, [&] {
      shard->nbd().end_all({Code::cancelled, {}, "the server stops", {}});
      return true;
    });
  workers_.stop();
  for (const auto& shard : node_.shards)
    while (!on_shard(*shard, [&] { return shard->nbd().reads().quiet(); }))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  // What the workers told is on the shards by now, and holds exports; it goes with the connections' end.
  for (const auto& shard : node_.shards) on_shard(*shard, [] { return true; });
}

bool NbdService::find(const std::string& name, const NbdOrigin& origin,
                      std::function<void(Result<std::shared_ptr<NbdExport>>)> done) {
  return node_.workers.post([this, name, origin, done = std::move(done)] { done(open(name, origin)); });
}

bool NbdService::list(const NbdOrigin& origin, std::function<void(Result<std::vector<nbd::ListedExport>>)> done) {
  return node_.workers.post([this, origin, done = std::move(done)] { done(names(origin)); });
}

Result<std::string> NbdService::serve(const std::string& clone, const std::string& path) {
  auto served = std::make_unique<Served>();
  served->path = path;
  served->origin = {"unix:" + path, nbd::Handshake::Tls::none, clone};
  served->machine = TIDEMARK_TRY(node_.names.resolve("clone:" + clone));
  {
    const std::lock_guard lock(mutex_);
    if (served_.contains(clone))
      return fail(Code::already_exists, clone, "it is served at " + served_.at(clone)->path + " already",
                  "`tidemark clone unserve " + clone + "` first");
  }
  TIDEMARK_TRY(listen_unix_at(path, served->origin, served->listener));
  spdlog::info("clone served{}{}", kv("clone", clone), kv("socket", served->origin.socket));
  began(served->machine, "socket " + served->origin.socket);
  const std::lock_guard lock(mutex_);
  served_[clone] = std::move(served);
  return "unix:" + path;
}

Status NbdService::unserve(const std::string& clone) {
  std::unique_ptr<Served> served;
  {
    const std::lock_guard lock(mutex_);
    const auto found = served_.find(clone);
    if (found == served_.end())
      return fail(Code::not_found, clone, "it has no socket of its own", "`tidemark clone list` shows which have");
    served = std::move(found->second);
    served_.erase(found);
  }
  const std::string socket = served->origin.socket;
  ended(served->machine, "socket " + socket);
  on_shard(*node_.shards.front(), [&] {
    served->listener.reset();
    return true;
  });
  for (const auto& shard : node_.shards)
    on_shard(*shard, [&] {
      shard->nbd().end_origin(socket, {Code::cancelled, clone, "it is not served any more", {}});
      return true;
    });
  spdlog::info("clone not served any more{}{}", kv("clone", clone), kv("socket", socket));
  return {};
}

std::vector<std::string> NbdService::sockets_of(const std::string& clone) const {
  const std::lock_guard lock(mutex_);
  const auto found = served_.find(clone);
  return found == served_.end() ? std::vector<std::string>() : std::vector{found->second->origin.socket};
}

void NbdService::end_certificate(const std::string& serial) {
  for (const auto& shard : node_.shards)
    shard->post([shard = shard.get(), serial] {
      shard->nbd().end_certificate(serial, {Code::permission_denied, serial, "its certificate was revoked", {}});
    });
}

void NbdService::began(const MachineId& machine, const std::string& client) {
  const std::lock_guard lock(mutex_);
  users_[machine].push_back(client);
}

void NbdService::ended(const MachineId& machine, const std::string& client) {
  const std::lock_guard lock(mutex_);
  auto& users = users_[machine];
  const auto found = std::find(users.begin(), users.end(), client);
  if (found != users.end()) users.erase(found);
  if (users.empty()) users_.erase(machine);
}

std::vector<std::string> NbdService::users_of(const MachineId& machine) const {
  const std::lock_guard lock(mutex_);
  const auto found = users_.find(machine);
  return found == users_.end() ? std::vector<std::string>() : found->second;
}

Status NbdService::begin_drop(const MachineId& machine, const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (const auto found = users_.find(machine); found != users_.end()) {
    const auto& users = found->second;
    std::string who = users.front();
    for (std::size_t i = 1; i < users.size() && i < 4; ++i) who += ", " + users[i];
    if (users.size() > 4) who += fmt::format(" and {} more", users.size() - 4);
    return fail(Code::busy, name, "it is in use over NBD: " + who, "end those clients, or `tidemark clone unserve` it");
  }
  dropping_.insert(machine);
  return {};
}

void NbdService::dropped(const MachineId& machine) {
  const std::lock_guard lock(mutex_);
  dropping_.erase(machine);
}

void NbdService::tick() {
  std::vector<std::shared_ptr<CloneWriter>> writers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, weak] : writers_)
      if (auto writer = weak.lock()) writers.push_back(std::move(writer));
  }
  for (const auto& writer : writers) writer->tick();
}

std::uint64_t NbdService::unindexed_bytes() const {
  std::uint64_t bytes = 0;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, weak] : writers_)
    if (const auto writer = weak.lock()) bytes += writer->overlay_bytes();
  return bytes;
}

std::size_t NbdService::exports() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::size_t>(
      std::count_if(open_.begin(), open_.end(), [](const auto& one) { return !one.second.expired(); }));
}

}  // namespace tidemark::server
