#include "server/server.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <thread>

#include "net/acceptor.h"
#include "server/admin.h"
#include "server/logging.h"
#include "server/master_key.h"
#include "server/nbd_service.h"
#include "server/node.h"
#include "server/partition_host.h"
#include "server/session.h"
#include "server/shard.h"

namespace tidemark::server {
namespace {

constexpr std::chrono::milliseconds kWaitForOpening{10'000}, kWaitForRebuild{1'000};
// So long no handshake was done: who holds them all keeps silent, and the next ones are turned away.
constexpr std::chrono::milliseconds kWaitForHandshakes{2'000};

unsigned shard_count(const Config& config, std::uint32_t partitions) {
  const unsigned wanted =
      config.server.shards != 0 ? config.server.shards : std::max(1U, std::thread::hardware_concurrency());
  return std::min<unsigned>(wanted, partitions);
}

// As many descriptors as the system grants: one a session, and the store's.
void raise_descriptor_limit(std::uint32_t sessions) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < sessions + 1024ULL)
    spdlog::info("fewer descriptors than sessions: some connections will have to wait{}{}",
                 kv("descriptors", limit.rlim_max), kv("sessions", sessions));
}

}  // namespace

struct Server::Impl {
  Impl(Config config, Directory directory, Superblock superblock, Authority authority, std::unique_ptr<Tokens> tokens,
       std::unique_ptr<ExportClients> clients, storage::FileSystem& files, const Clock& clock)
      : node(std::move(config), std::move(directory), std::move(superblock), std::move(authority), std::move(tokens),
             std::move(clients), files, clock),
        rates(node.config.limits.per_source_handshakes) {}

  std::unique_ptr<storage::FileLock> lock;  // released last
  Node node;
  // On the first shard's thread, as long as that runs.
  SourceRates rates;
  std::unique_ptr<net::Acceptor> acceptor;
  std::size_t next_shard = 0;
  std::optional<Shard::Time> full_since;  // all shards have as many handshakes in flight as they may
  std::unique_ptr<AdminServer> admin;
  bool started = false;
  bool stopped = false;

  void watch_directories();
  void wait_for_partitions();
  bool room();
  void on_accept(asio::ip::tcp::socket socket);
  Status listen();
  Status start_shards();
};

// Agents that all come back at once wait in the kernel's queue: none of them is turned away, and sessions have their
// turn between handshakes.
bool Server::Impl::room() {
  const bool full = std::ranges::all_of(node.shards, [](const auto& shard) { return shard->handshakes().full(); });
  const Shard::Time now = node.shards.front()->now();
  if (!full) {
    full_since.reset();
  } else if (!full_since) {
    full_since = now;
  }
  return !full || now - *full_since >= kWaitForHandshakes;
}

void Server::Impl::on_accept(asio::ip::tcp::socket socket) {
  Shard& first = *node.shards.front();
  std::error_code error;
  const auto remote = socket.remote_endpoint(error);
  if (error) return;  // it is gone again
  if (!rates.allow(remote.address().to_string(), first.now())) return first.counters().refuse(Refusal::source_rate);
  std::optional<AdmissionCount::Ticket> ticket;
  Shard* shard = nullptr;
  for (std::size_t i = 0; i < node.shards.size() && !ticket; ++i) {
    shard = node.shards[next_shard++ % node.shards.size()].get();
    ticket = shard->handshakes().take();
  }
  if (!ticket) return first.counters().refuse(Refusal::handshakes);
  const bool v6 = remote.address().is_v6();
  const int descriptor = socket.release(error);
  if (error) {
    spdlog::warn("connection not handed over{}", kv("why", error.message()));
    return;
  }
  shard->greet(descriptor, v6, std::move(*ticket));
}

Status Server::Impl::start_shards() {
  const unsigned count = shard_count(node.config, node.superblock.partitions);
  for (unsigned i = 0; i < count; ++i) node.shards.push_back(std::make_unique<Shard>(node, i, count));
  started = true;
  for (const auto& shard : node.shards) shard->start();
  Status all;
  for (const auto& shard : node.shards)
    if (auto ready = shard->wait_ready(); !ready && all) all = std::move(ready);
  return all;
}

void Server::Impl::watch_directories() {
  node.directories.watch([this](const std::vector<PartitionId>& partitions, const Status& state) {
    for (const PartitionId id : partitions) {
      Shard& shard = node.shard_for(id);
      shard.post([host = shard.host(id), state] {
        if (state) {
          host->directory_back();
        } else {
          host->directory_failed(state.error());
        }
      });
    }
  });
}

void Server::Impl::wait_for_partitions() {
  const auto began = std::chrono::steady_clock::now();
  for (const auto& shard : node.shards) {
    for (const auto& host : shard->hosts()) {
      while (true) {
        const auto state = host->state();
        const auto patience = state == PartitionHost::State::opening      ? kWaitForOpening
                              : state == PartitionHost::State::rebuilding ? kWaitForRebuild
                                                                          : std::chrono::milliseconds(0);
        if (std::chrono::steady_clock::now() - began >= patience) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
  }
}

Status Server::Impl::listen() {
  auto result = std::make_shared<std::promise<Status>>();
  auto future = result->get_future();
  Shard& first = *node.shards.front();
  first.post([this, result, &first] {
    auto listening = net::Acceptor::listen(
        first.io(), node.config.server.listen, [this](asio::ip::tcp::socket socket) { on_accept(std::move(socket)); },
        [](const Error& trouble) { spdlog::warn("accepting pauses{}", kv(trouble)); },
        {.room = [this] { return room(); }});
    if (listening) {
      acceptor = std::move(*listening);
      node.listening = acceptor->address();
    }
    result->set_value(listening ? Status() : Status(std::unexpected(listening.error())));
  });
  return future.get();
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() { stop(); }
const std::string& Server::address() const { return impl_->node.listening; }
const std::string& Server::admin_socket() const { return impl_->node.admin_socket; }
Node& Server::node() { return impl_->node; }

Result<std::unique_ptr<Server>> Server::start(const std::string& data, const Config& config, storage::FileSystem& files,
                                              const Clock& clock) {
  std::error_code error;
  const auto canonical = std::filesystem::canonical(data, error);
  const Directory directory(error ? data : canonical.string());
  auto superblock = TIDEMARK_TRY(read_superblock(directory));
  auto lock = files.lock(directory.lock());
  if (!lock && lock.error().code == Code::busy)
    return fail(Code::busy, directory.path(), "another tidemarkd serves this data directory", "stop that one first");
  if (!lock) return std::unexpected(lock.error());
  auto master_keys = TIDEMARK_TRY(load_master_keys(files, directory, superblock, config));
  auto authority = TIDEMARK_TRY(Authority::load(directory.authority()));
  auto tokens = TIDEMARK_TRY(Tokens::load(directory.tokens(), clock));
  auto clients = TIDEMARK_TRY(ExportClients::load(directory.clients()));
  raise_descriptor_limit(config.limits.sessions);

  auto impl = std::make_unique<Impl>(config, directory, std::move(superblock), std::move(authority), std::move(tokens),
                                     std::move(clients), files, clock);
  impl->lock = std::move(*lock);
  impl->node.master_keys = std::move(master_keys);
  impl->node.admin_socket = config.server.admin_socket.empty() ? directory.admin_socket() : config.server.admin_socket;
  std::unique_ptr<Server> server(new Server(std::move(impl)));
  TIDEMARK_TRY(server->impl_->start_shards());
  TIDEMARK_TRY(server->impl_->listen());
  TIDEMARK_TRY(server->impl_->node.nbd->start());
  server->impl_->admin = TIDEMARK_TRY(AdminServer::start(server->impl_->node, server->impl_->node.admin_socket));
  server->impl_->watch_directories();
  server->impl_->wait_for_partitions();
  const Node& node = server->impl_->node;
  spdlog::info("serving{}{}{}{}{}", kv("address", node.listening), kv("admin_socket", node.admin_socket),
               kv("data", node.directory.path()), kv("partitions", node.superblock.partitions),
               kv("shards", node.shards.size()));
  return server;
}

void Server::stop(std::chrono::milliseconds grace) {
  Impl& impl = *impl_;
  if (impl.stopped) return;
  impl.stopped = true;
  impl.node.stopping = true;
  impl.node.directories.stop();
  if (impl.started && impl.acceptor) {
    std::promise<void> closed;
    impl.node.shards.front()->post([&] {
      impl.acceptor.reset();
      closed.set_value();
    });
    closed.get_future().wait();
  }
  if (impl.admin) impl.admin->stop();
  impl.node.holds.stop();
  if (impl.started) impl.node.nbd->stop();
  // What they do reaches into the partitions, which close with their shards.
  impl.node.workers.stop();
  for (const auto& shard : impl.node.shards) shard->begin_stop(grace);
  for (const auto& shard : impl.node.shards) shard->join();
  if (const auto written = impl.node.seen_time.write(); !written)
    spdlog::warn("time not written{}", kv(written.error()));
  if (impl.started) spdlog::info("stopped{}", kv("data", impl.node.directory.path()));
}

}  // namespace tidemark::server
