#include "server/shard.h"

#include <pthread.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <asio/buffer.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>

#include "base/check.h"
#include "base/limits.h"
#include "base/no_blocking.h"
#include "server/enrolment.h"
#include "server/greeter.h"
#include "server/logging.h"
#include "server/nbd_clients.h"
#include "server/refused.h"
#include "server/session.h"
#include "storage/uring_queue.h"
#include "wire/frame.h"

namespace tidemark::server {

using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

constexpr std::uint32_t kQueueEntries = 256;
constexpr auto kIdleWait = milliseconds(limits::kIdleCommitMillis);
constexpr auto kLongWait = milliseconds(500);
constexpr int kIdleRounds = 3;
constexpr auto kTurn = std::chrono::microseconds(500);  // of handlers, before what they gathered is written

std::optional<Error> refusal_of(const net::Peer& peer, bool counted, Refusal& why) {
  if (!counted) {
    why = Refusal::sessions;
    return Error{Code::busy, "sessions", "the server has as many sessions as it is allowed",
                 "it is tried again by itself"};
  }
  if (peer.alpn == wire::kAlpnEnroll) return std::nullopt;
  if (peer.alpn != wire::kAlpnMachine) {
    why = Refusal::other;
    return Error{Code::unsupported, peer.address, "the connection names no protocol that this server speaks",
                 "use a matching tidemark-agent"};
  }
  if (!peer.has_certificate || peer.machine.is_nil()) {
    why = Refusal::no_certificate;
    return Error{Code::unauthenticated, peer.address, "no machine certificate was shown",
                 "enrol the machine with a token first"};
  }
  return std::nullopt;
}

}  // namespace

Shard::Shard(Node& node, unsigned index, unsigned count)
    : node_(node),
      index_(index),
      count_(count),
      handshakes_(node.config.limits.handshakes),
      frames_(node.config.limits.memory / count),
      nbd_(std::make_unique<NbdClients>(*this)) {
  for (std::uint32_t id = index; id < node.superblock.partitions; id += count)
    hosts_.push_back(std::make_unique<PartitionHost>(*this, PartitionId(id)));
}

Shard::~Shard() {
  join();
  // What never ran may hold streams and tickets; they go before the pools that they came from.
  channels_.clear();
  greeters_.clear();
  nbd_.reset();
}

void Shard::start() {
  has_thread_ = true;
  thread_ = std::thread([this] { run(count_); });
}

Status Shard::wait_ready() { return ready_.get_future().get(); }

void Shard::post(std::function<void()> job) { asio::post(io_, std::move(job)); }

void Shard::join() {
  if (thread_.joinable()) thread_.join();
}

PartitionHost* Shard::host(PartitionId id) const {
  for (const auto& host : hosts_)
    if (host->id() == id) return host.get();
  return nullptr;
}

Session* Shard::session(std::uint64_t id) const {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second;
}

Channel* Shard::channel(std::uint64_t id) const {
  const auto found = channels_.find(id);
  return found == channels_.end() ? nullptr : found->second.get();
}

double Shard::cpu_seconds() const {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

Shard::Credit Shard::credit() const {
  Credit all;
  for (const auto& [id, session] : sessions_) {
    all.granted += session->credit();
    all.withheld += session->credit_withheld();
  }
  return all;
}

Status Shard::prepare() {
  ::pthread_setname_np(::pthread_self(), ("tm-shard-" + std::to_string(index_)).c_str());
  tls_ = TIDEMARK_TRY(net::TlsContext::server(node_.authority.server_credentials(), node_.tickets));
  queue_ = TIDEMARK_TRY(storage::make_uring_queue(kQueueEntries));
  queue_event_.emplace(io_, ::dup(queue_->event_fd()));
  for (const auto& host : hosts_) host->open(*queue_);
  // Only now: the threads that the store started in the background would be bound to this core as well.
  const long cores = ::sysconf(_SC_NPROCESSORS_ONLN);
  if (node_.config.server.pin && cores > 1) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(index_ % static_cast<unsigned>(cores), &set);
    if (::pthread_setaffinity_np(::pthread_self(), sizeof set, &set) != 0)
      spdlog::info("shard not pinned: the system forbids it{}", kv("shard", index_));
  }
  return {};
}

void Shard::run(unsigned) {
  if (auto prepared = prepare(); !prepared) {
    ready_.set_value(std::move(prepared));
    return;
  }
  wait_queue();
  every_second();
  ready_.set_value({});
  loop();
  for (const auto& host : hosts_) host->close();
  queue_event_.reset();
  queue_.reset();
}

// The eventfd is read before reaping, so that a completion that comes meanwhile makes it readable again. So does
// reaping itself, now and then; asio tries to read before it waits, and saves a turn of the loop for that.
void Shard::wait_queue() {
  queue_event_->async_read_some(asio::buffer(&queue_events_, sizeof queue_events_),
                                [this](const std::error_code& error, std::size_t) {
                                  if (error) return;
                                  while (queue_->reap() > 0) {
                                  }
                                  wait_queue();
                                });
}

void Shard::loop() {
  const NoBlocking here;
  int idle_rounds = 0;
  Time idle_called = now();
  while (!stopped_) {
    const bool long_wait = idle_rounds > kIdleRounds && std::all_of(hosts_.begin(), hosts_.end(), [](const auto& host) {
                             return host->waiting_for_room() == 0;
                           });
    std::size_t ran = io_.run_one_for(!later_.empty() ? milliseconds(0) : long_wait ? kLongWait : kIdleWait);
    if (io_.stopped()) io_.restart();
    const Time turn_ends = now() + kTurn;
    for (int i = 0; ran != 0 && i < kHandlersPerTurn && io_.poll_one() != 0; ++i)
      if (now() >= turn_ends) break;
    end_turn();
    ++counters_.turns;
    const Time time = now();
    if (ran != 0) idle_rounds = 0;
    if (time - idle_called >= kIdleWait) {
      idle_called = time;
      ++idle_rounds;
      for (const auto& host : hosts_) host->on_idle();
      queue_->submit();
    }
  }
}

void Shard::end_turn() {
  std::vector<std::function<void()>> jobs;
  jobs.swap(later_);
  for (const auto& job : jobs) job();
  frames_.serve();
  for (const auto& host : hosts_) host->end_turn();
  queue_->submit();
  counters_.ring_operations_max = std::max<std::uint64_t>(counters_.ring_operations_max, queue_->in_flight());
  buried_.clear();
  buried_greeters_.clear();
  nbd_->end_turn();
}

void Shard::greet(int descriptor, bool v6, AdmissionCount::Ticket ticket) {
  auto holder = std::make_shared<AdmissionCount::Ticket>(std::move(ticket));
  post([this, descriptor, v6, holder] {
    asio::ip::tcp::socket socket(io_);
    std::error_code error;
    socket.assign(v6 ? asio::ip::tcp::v6() : asio::ip::tcp::v4(), descriptor, error);
    if (error || stopping_) {
      if (error) ::close(descriptor);
      return;
    }
    ++counters_.connections;
    auto greeter = std::make_unique<Greeter>(*this, std::move(socket), tls_, std::move(*holder));
    Greeter* const raw = greeter.get();
    greeters_[raw] = std::move(greeter);
    raw->start();
  });
}

void Shard::add(std::unique_ptr<Channel> channel, Session* session) {
  if (session != nullptr) sessions_[session->id()] = session;
  channels_[channel->id()] = std::move(channel);
}

void Shard::adopt(Arrival arrival) {
  if (stopping_) return;  // the stream closes with the arrival
  Refusal why = Refusal::other;
  if (const auto refusal = refusal_of(arrival.peer, arrival.counted, why)) {
    counters_.refuse(why);
    spdlog::info("connection refused{}{}", kv("peer", arrival.peer.address), kv(*refusal));
    auto refused = std::make_unique<Refused>(*this, std::move(arrival));
    Channel* const raw = refused.get();
    add(std::move(refused), nullptr);
    raw->end(*refusal, retry_after_ms(refusal->code));
    return;
  }
  if (arrival.peer.alpn == wire::kAlpnEnroll) {
    add(std::make_unique<Enrolment>(*this, std::move(arrival)), nullptr);
    return;
  }
  PartitionHost* const owner = host(node_.partition_for(arrival.peer.machine));
  TIDEMARK_CHECK(owner != nullptr);
  auto session = std::make_unique<Session>(*this, *owner, std::move(arrival));
  Session* const raw = session.get();
  add(std::move(session), raw);
}

void Shard::bury(Channel& channel) {
  const auto found = channels_.find(channel.id());
  if (found == channels_.end()) return;
  buried_.push_back(std::move(found->second));
  channels_.erase(found);
  sessions_.erase(channel.id());
  ticking_.erase(channel.id());
}

void Shard::bury(Greeter& greeter) {
  const auto found = greeters_.find(&greeter);
  if (found == greeters_.end()) return;
  buried_greeters_.push_back(std::move(found->second));
  greeters_.erase(found);
}

void Shard::want_tick(Session& session) {
  ticking_.insert(session.id());
  if (tick_armed_) return;
  tick_armed_ = true;
  tick_timer_.expires_after(milliseconds(100));
  tick_timer_.async_wait([this](const std::error_code& error) {
    if (!error) tick_sessions();
  });
}

void Shard::tick_sessions() {
  tick_armed_ = false;
  const auto ids = std::exchange(ticking_, {});
  for (const auto id : ids)
    if (Session* const one = session(id)) one->tick(now());
}

void Shard::every_second() {
  std::vector<std::uint64_t> ids;
  ids.reserve(channels_.size());
  for (const auto& [id, channel] : channels_) ids.push_back(id);
  for (const auto id : ids)
    if (Channel* const one = channel(id)) one->check_deadlines(now());
  nbd_->tick();
  const WallMicros wall = node_.clock.wall_us();
  for (const auto& host : hosts_) host->tick_second(wall);
  for (const auto& [what, times] : take_blocked())
    spdlog::warn("a shard waited for a disk: all its machines waited with it{}{}", kv("to", what), kv("times", times));
  second_timer_.expires_after(seconds(1));
  second_timer_.async_wait([this](const std::error_code& error) {
    if (!error) every_second();
  });
}

void Shard::begin_stop(milliseconds grace) {
  if (!has_thread_) return;
  post([this, grace] {
    stopping_ = true;
    for (const auto& [raw, greeter] : greeters_) raw->drop();
    greeters_.clear();
    std::vector<std::uint64_t> ids;
    for (const auto& [id, channel] : channels_) ids.push_back(id);
    for (const auto id : ids)
      if (Channel* const one = channel(id)) one->goodbye("the server stops", retry_after_ms(Code::busy));
    stop_by_ = now() + grace;
    stop_when_empty();
  });
}

void Shard::stop_when_empty() {
  if (channels_.empty() || now() >= stop_by_) return stop_now();
  stop_timer_.expires_after(milliseconds(10));
  stop_timer_.async_wait([this](const std::error_code&) { stop_when_empty(); });
}

void Shard::stop_now() {
  std::vector<std::uint64_t> ids;
  for (const auto& [id, channel] : channels_) ids.push_back(id);
  for (const auto id : ids)
    if (Channel* const one = channel(id)) one->drop();
  stopped_ = true;
}

}  // namespace tidemark::server
