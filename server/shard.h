// A shard: a thread that runs some partitions and the sessions of their machines. One asio io_context and one IoQueue.
//
// A turn of its loop:
//   1. run_one_for(): waits for the first handler (a socket, the queue's eventfd, a message, a timer)
//   2. poll_one(), up to kHandlersPerTurn and half a millisecond: whatever else is ready, so that a commit gathers what
//   came together
//   3. what was put off: later() callbacks, buffers for those who wait for one
//   4. each partition's end_turn(), which closes its open commit; then one submit() for all of them
//   5. the graveyard
// When nothing comes for limits::kIdleCommitMillis the partitions' on_idle() is called; after three idle rounds in a
// row the loop sleeps longer.
//
// Nothing here blocks. Other threads reach a shard by post() and call(); everything else belongs to its thread.
#pragma once

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/status.h"
#include "net/tls_stream.h"
#include "server/channel.h"
#include "server/counters.h"
#include "server/frame_pool.h"
#include "server/node.h"
#include "server/partition_host.h"

namespace tidemark::server {

class Greeter;
class NbdClients;
class Session;

class Shard {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Shard(Node& node, unsigned index, unsigned count);
  ~Shard();

  // --- any thread ---
  void start();
  Status wait_ready();  // partitions are open, or each has said why not
  void post(std::function<void()> job);
  // Runs `job` on the shard and gives its value. Code::unavailable when the shard does not answer in time.
  template <typename Job>
  auto call(Job job) -> Result<std::invoke_result_t<Job>>;
  // A connected socket: the handshake begins. The ticket counts it among the handshakes in flight.
  void greet(int descriptor, bool v6, AdmissionCount::Ticket ticket);
  AdmissionCount& handshakes() { return handshakes_; }
  // A machine or an enrolling agent, greeted here or on another shard.
  void adopt(Arrival arrival);
  // Says goodbye to everybody, waits for them up to `grace`, closes the partitions, ends the thread.
  void begin_stop(std::chrono::milliseconds grace);
  void join();
  unsigned index() const { return index_; }
  const std::vector<std::unique_ptr<PartitionHost>>& hosts() const { return hosts_; }
  PartitionHost* host(PartitionId id) const;

  // --- the shard's thread ---
  Node& node() const { return node_; }
  asio::io_context& io() { return io_; }
  net::ReceiveBuffer& receive_buffer() { return receive_buffer_; }
  FramePool& frames() { return frames_; }
  ShardCounters& counters() { return counters_; }
  Time now() const { return node_.clock.monotonic(); }
  std::uint64_t next_channel_id() { return ++last_channel_id_; }
  Session* session(std::uint64_t id) const;
  Channel* channel(std::uint64_t id) const;
  void later(std::function<void()> job) { later_.push_back(std::move(job)); }  // in this turn or the next, not now
  void want_tick(Session& session);                                            // Session::tick() within the next 100 ms
  void bury(Channel& channel);
  void bury(Greeter& greeter);
  NbdClients& nbd() { return *nbd_; }
  storage::IoQueue& queue() { return *queue_; }  // submitted at the end of the turn
  std::size_t channels() const { return channels_.size(); }
  double cpu_seconds() const;
  std::size_t ring_operations() const { return queue_ ? queue_->in_flight() : 0; }
  struct Credit {
    std::uint64_t granted = 0, withheld = 0;  // bytes, of all sessions
  };
  Credit credit() const;

 private:
  static constexpr int kHandlersPerTurn = 64;

  void run(unsigned count);
  Status prepare();
  void loop();
  void end_turn();
  void wait_queue();
  void tick_sessions();
  void every_second();
  void stop_when_empty();
  void stop_now();
  void add(std::unique_ptr<Channel> channel, Session* session);

  Node& node_;
  const unsigned index_;
  const unsigned count_;
  AdmissionCount handshakes_;
  asio::io_context io_{1};
  net::ReceiveBuffer receive_buffer_;
  FramePool frames_;
  ShardCounters counters_;
  std::shared_ptr<net::TlsContext> tls_;
  std::unique_ptr<storage::IoQueue> queue_;
  std::optional<asio::posix::stream_descriptor> queue_event_;
  std::uint64_t queue_events_ = 0;  // read from it; what it counts does not matter
  std::vector<std::unique_ptr<PartitionHost>> hosts_;
  asio::steady_timer tick_timer_{io_};
  asio::steady_timer second_timer_{io_};
  asio::steady_timer stop_timer_{io_};

  std::uint64_t last_channel_id_ = 0;
  std::unordered_map<std::uint64_t, std::unique_ptr<Channel>> channels_;
  std::unordered_map<std::uint64_t, Session*> sessions_;
  std::unordered_map<Greeter*, std::unique_ptr<Greeter>> greeters_;
  std::unique_ptr<NbdClients> nbd_;
  std::unordered_set<std::uint64_t> ticking_;
  std::vector<std::function<void()>> later_;
  std::vector<std::unique_ptr<Channel>> buried_;
  std::vector<std::unique_ptr<Greeter>> buried_greeters_;
  Time stop_by_;
  bool tick_armed_ = false;
  bool stopping_ = false;
  bool stopped_ = false;

  std::thread thread_;
  std::promise<Status> ready_;
  std::atomic<bool> has_thread_{false};
};

template <typename Job>
auto Shard::call(Job job) -> Result<std::invoke_result_t<Job>> {
  using Value = std::invoke_result_t<Job>;
  auto promise = std::make_shared<std::promise<Value>>();
  auto future = promise->get_future();
  post([promise, job = std::move(job)]() mutable { promise->set_value(job()); });
  if (future.wait_for(std::chrono::seconds(10)) != std::future_status::ready)
    return fail(Code::unavailable, "shard " + std::to_string(index_), "does not answer",
                "the server is overloaded or stops; try again");
  return future.get();
}

}  // namespace tidemark::server
