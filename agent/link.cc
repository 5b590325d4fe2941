// The connection to the server.
//
// The idea: one mutex guards what the link's thread tells and what the callers want; a condition variable wakes whoever
// waits. Session and stream are touched by the link's thread only: callers hand it closures. Wishes of an epoch go
// through one queue, which stops while credit, a throttle, the rate limit or the stream's send buffer hold the blocks
// at its head.
#include "agent/link.h"

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "net/connect.h"
#include "net/tls_stream.h"
#include "wire/agent_session.h"
#include "wire/frame_assembler.h"
#include "wire/messages.h"

namespace tidemark::agent {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;
constexpr auto kConnectTimeout = std::chrono::seconds(15);
constexpr auto kGoodbyePatience = std::chrono::seconds(5);
constexpr std::size_t kReceivePoolBytes = 4 << 20;

}  // namespace

struct Link::Impl final : net::TlsStream::Handler, wire::AgentSession::Events {
  struct Wish {
    std::size_t bytes = 0;  // of blocks; 0: not held back
    std::function<Status()> act;
  };

  Impl(LinkOptions link_options, MemoryKeeper& memory_keeper, const Clock& the_clock, std::stop_token stop_token)
      : options(std::move(link_options)), keeper(memory_keeper), clock(the_clock), stop(std::move(stop_token)) {
    thread = std::thread([this] { io.run(); });
  }

  ~Impl() override {
    asio::post(io, [this] {
      // Everything that holds on to the loop goes, on the loop's own thread.
      connecting.reset();
      stream.reset();
      ticker.cancel();
      pause_timer.cancel();
      work.reset();
    });
    thread.join();
  }

  // ---- callers' side ----

  // Waits for `done` (asked under the mutex).
  template <typename Done>
  Status wait(Done done, bool stoppable = true) {
    std::unique_lock lock(mutex);
    const auto over = [&] { return ended.has_value() || done(); };
    if (stoppable) {
      changed.wait(lock, stop, over);
    } else {
      changed.wait(lock, over);
    }
    // An answer that came before the end still counts.
    if (done()) return {};
    if (ended) return std::unexpected(ended->error);
    return fail(Code::cancelled, "agent", "asked to stop");
  }

  // Runs on the link's thread, and waits for it.
  Status call(std::function<Status()> act) {
    auto promise = std::make_shared<std::promise<Status>>();
    auto future = promise->get_future();
    asio::post(io, [this, promise, act = std::move(act)] {
      promise->set_value(is_ended() ? Status(std::unexpected(end_error())) : act());
    });
    return future.get();
  }

  // Behind the blocks that wait, in order; does not wait for it.
  void enqueue(Wish wish) {
    {
      const std::lock_guard lock(mutex);
      if (ended) return;  // dropped, as finish() drops what waits
      queued_bytes += wish.bytes;
      wishes.push_back(std::move(wish));
    }
    asio::post(io, [this] { pump(); });
  }

  // In order, and waits until it was carried out. `act` owns what it uses: when the caller is stopped it runs later or
  // never.
  Status in_order(std::function<Status()> act) {
    auto promise = std::make_shared<std::promise<Status>>();
    auto future = promise->get_future();
    enqueue({0, [promise = std::move(promise), act = std::move(act)] {
               promise->set_value(act());
               return Status();  // the caller decides what an error means
             }});
    while (future.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) {
      if (stop.stop_requested()) return fail(Code::cancelled, "agent", "asked to stop");
    }
    try {
      return future.get();
    } catch (const std::future_error&) {  // the link ended, and dropped what waited
      return std::unexpected(end_error());
    }
  }

  // What waits in order is forgotten: the epoch it belongs to is given up.
  void drop_wishes() {
    std::deque<Wish> dropped;
    const std::lock_guard lock(mutex);
    dropped.swap(wishes);
    queued_bytes = 0;
    changed.notify_all();
  }

  bool is_ended() const {
    const std::lock_guard lock(mutex);
    return ended.has_value();
  }
  Error end_error() const {
    const std::lock_guard lock(mutex);
    return ended ? ended->error : Error{Code::unavailable, options.address, "not connected", {}};
  }

  // ---- the link's thread ----

  void finish(LinkEnd end) {
    std::deque<Wish> dropped;
    {
      const std::lock_guard lock(mutex);
      if (ended) return;
      ended = std::move(end);
      dropped.swap(wishes);
      queued_bytes = 0;
    }
    ticker.cancel();
    pause_timer.cancel();
    changed.notify_all();
  }

  void fail_session(const Error& error) {
    if (session) session->send_error(error);
    if (stream) stream->shutdown();
    finish({error, 0, false, false, {}});
  }

  void start() {
    auto made = net::TlsContext::agent(options.credentials);
    if (!made) return finish({made.error(), 0, false, false, {}});
    context = std::move(*made);
    connecting = std::make_unique<net::Connecting>(
        io, options.address, kConnectTimeout, [this](Result<asio::ip::tcp::socket> socket) {
          if (!socket) return finish({socket.error(), 0, false, false, {}});
          stream = std::make_unique<net::TlsStream>(std::move(*socket), context, receive, *this);
          stream->start();
        });
  }

  void on_handshake(const net::Peer&) override {
    session.emplace(options.machine, *this, clock, keeper.get().session);
    last_received = last_sent = std::chrono::steady_clock::now();
    ask_rate_limit();
    session->start(options.hello);
    tick();
  }

  std::span<std::byte> read_space() override { return assembler.space(); }

  void on_read(std::size_t size) override {
    last_received = std::chrono::steady_clock::now();
    if (auto filled = assembler.filled(size); !filled) return fail_session(filled.error());
    while (auto frame = assembler.frame()) {
      const Status handled = is_ended() ? Status() : session->on_frame(frame->header, frame->payload);
      assembler.consume();
      if (!handled) return fail_session(handled.error());
    }
    pump();
  }

  void on_writable() override { pump(); }

  void on_closed(const std::optional<Error>& error) override {
    finish({error.value_or(Error{Code::unavailable, options.address, "the server closed the connection", {}}),
            0,
            false,
            false,
            {}});
  }

  void send(wire::FrameType type, DiskId disk, std::span<const std::byte> payload,
            std::uint64_t frame_number) override {
    std::array<std::byte, limits::kFrameHeaderSize> head;
    wire::encode({type, static_cast<std::uint32_t>(payload.size()), disk, frame_number}, head);
    last_sent = std::chrono::steady_clock::now();
    writable = stream->write(head, payload);
  }

  void save(const Status& saved) {
    if (!saved) fail_session(saved.error());
  }

  void on_welcome(const pb::Welcome& message) override {
    if (!message.redirect().empty()) {
      return finish(
          {Error{Code::unavailable, options.address, "the server sends this machine to " + message.redirect(), {}}, 0,
           true, false, message.redirect()});
    }
    {
      const std::lock_guard lock(mutex);
      welcome = message;
      durable = EpochNumber(message.durable_epoch());
      welcomed = true;
    }
    save(keeper.session_changed(session->memory()));
    changed.notify_all();
  }
  void on_history_diverged(const Error& why) override {
    const std::lock_guard lock(mutex);
    diverged = why;
  }
  void on_disk_opened(const pb::DiskOpened& disk) override {
    const std::lock_guard lock(mutex);
    opened[disk.identity()] = disk;
    changed.notify_all();
  }
  void on_epoch_begun(EpochNumber epoch) override {
    const std::lock_guard lock(mutex);
    begun = epoch;
    changed.notify_all();
  }
  void on_durable(EpochNumber epoch, const Hash128& digest) override {
    // Remembered first: whoever waits for it may go on only when it cannot be forgotten.
    if (auto saved = keeper.durable(session->memory(), epoch, digest); !saved) return fail_session(saved.error());
    const std::lock_guard lock(mutex);
    durable = epoch;
    changed.notify_all();
  }
  void on_open_epoch_progress(const pb::OpenEpoch&) override { save(keeper.progress(session->memory())); }
  void on_credit() override {}  // on_read pumps
  void on_digests(const pb::DigestReply& reply) override {
    const std::lock_guard lock(mutex);
    digests.push_back(reply);
    changed.notify_all();
  }
  void on_throttle(std::uint32_t pause_ms, const std::string& reason) override {
    const std::chrono::milliseconds pause(pause_ms);
    paused_until = std::chrono::steady_clock::now() + pause;  // the newest word counts; on_read pumps
    if (options.on_throttle) options.on_throttle(pause, reason);
  }
  void on_resend(const pb::Resend& message) override {
    const std::lock_guard lock(mutex);
    resend.assign(message.ranges().begin(), message.ranges().end());
    changed.notify_all();
  }
  void on_renewed(const std::string& certificate_pem) override {
    if (options.on_renewed) options.on_renewed(certificate_pem);
  }
  void on_server_error(const Error& error, std::uint32_t retry_after_ms) override {
    finish({error, retry_after_ms, true, false, {}});
    stream->shutdown();
  }
  void on_goodbye(const std::string& reason, std::uint32_t retry_after_ms) override {
    finish({Error{Code::unavailable, options.address, "the server said goodbye: " + reason, {}},
            retry_after_ms,
            true,
            true,
            {}});
    stream->shutdown();
  }

  // When blocks of `bytes` may go; now or earlier means now.
  SteadyTime due(std::size_t bytes, SteadyTime now) {
    SteadyTime when = paused_until;
    if (rate_limit_mib_s > 0 && bytes > 0) when = std::max(when, rate_due);
    return std::max(when, now);
  }

  void pump() {
    while (!is_ended() && session && session->ready()) {
      Wish wish;
      const SteadyTime now = std::chrono::steady_clock::now();
      {
        const std::lock_guard lock(mutex);
        if (wishes.empty()) return;
        const std::size_t bytes = wishes.front().bytes;
        if (bytes > 0) {
          const bool paused = paused_until > now;
          if (session->credit() < bytes) return hold(paused ? Stage::staging : Stage::server, now);  // until on_read
          if (!writable_now()) return hold(Stage::network, now);  // until on_writable
          if (const SteadyTime when = due(bytes, now); when > now) {
            hold(paused ? Stage::staging : Stage::rate_limit, now);
            return sleep_until(when);
          }
          let_go(now);
        }
        wish = std::move(wishes.front());
        wishes.pop_front();
      }
      const Status done = wish.act();
      if (!done) return fail_session(done.error());
      if (wish.bytes == 0) continue;
      if (rate_limit_mib_s > 0) {
        rate_due =
            std::max(rate_due, now) + std::chrono::microseconds(static_cast<std::int64_t>(
                                          static_cast<double>(wish.bytes) * 1e6 / (rate_limit_mib_s * 1048576.0)));
      }
      blocks_bytes += wish.bytes;
      {
        const std::lock_guard lock(mutex);
        queued_bytes -= std::min(queued_bytes, wish.bytes);
      }
      changed.notify_all();
    }
  }

  // What holds the blocks at the queue's head, since when.
  void hold(Stage stage, SteadyTime now) {
    let_go(now);
    held = {stage, now};
  }
  void let_go(SteadyTime now) {
    if (held && options.pace != nullptr) options.pace->add(held->first, now - held->second);
    held.reset();
  }

  // The stream takes more until it said no; on_writable follows that.
  bool writable_now() {
    if (!writable && stream->queued() == 0) writable = true;
    return writable;
  }

  // Another limit than before: what was due under the old one is due now.
  void ask_rate_limit() {
    const double limit = options.rate_limit_mib_s ? options.rate_limit_mib_s() : 0;
    if (limit == std::exchange(rate_limit_mib_s, limit)) return;
    rate_due = {};
    pump();
  }

  void sleep_until(SteadyTime when) {
    pause_timer.expires_at(when);
    pause_timer.async_wait([this](const asio::error_code& error) {
      if (!error) pump();
    });
  }

  void tick() {
    ticker.expires_after(std::chrono::seconds(1));
    ticker.async_wait([this](const asio::error_code& error) {
      if (error || is_ended()) return;
      ask_rate_limit();
      const auto now = std::chrono::steady_clock::now();
      if (held) hold(held->first, now);  // told while it lasts
      const auto keepalive = std::chrono::seconds(limits::kKeepaliveSeconds);
      if (!session->ready()) {
        if (now - last_received > std::chrono::seconds(limits::kHandshakeDeadlineSeconds + 5)) {
          return lose(Code::timed_out, "the server did not answer Hello");
        }
      } else {
        if (now - last_sent >= keepalive) session->ping();
        if (now - last_received > 3 * keepalive)
          return lose(Code::timed_out, "the server has been silent for a minute");
      }
      tick();
    });
  }

  void lose(Code code, const char* what) {
    finish({Error{code, options.address, what, {}}, 0, false, false, {}});
    if (stream) stream->close();
  }

  LinkOptions options;
  MemoryKeeper& keeper;
  const Clock& clock;
  std::stop_token stop;

  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  asio::steady_timer ticker{io};
  asio::steady_timer pause_timer{io};
  std::shared_ptr<net::TlsContext> context;
  net::ReceiveBuffer receive{256 << 10};
  wire::HeapPayloadPool pool{kReceivePoolBytes};
  wire::FrameAssembler assembler{pool};
  std::unique_ptr<net::Connecting> connecting;
  std::unique_ptr<net::TlsStream> stream;
  std::optional<wire::AgentSession> session;
  bool writable = true;
  SteadyTime last_received, last_sent;
  SteadyTime paused_until{}, rate_due{};
  std::optional<std::pair<Stage, SteadyTime>> held;
  double rate_limit_mib_s = 0;  // as it was asked last
  std::atomic<std::uint64_t> blocks_bytes{0};

  mutable std::mutex mutex;  // what follows
  std::condition_variable_any changed;
  std::deque<Wish> wishes;
  std::size_t queued_bytes = 0;
  std::optional<LinkEnd> ended;
  bool welcomed = false;
  pb::Welcome welcome;
  std::optional<Error> diverged;
  std::map<std::string, pb::DiskOpened> opened;
  EpochNumber begun, durable;
  std::deque<pb::DigestReply> digests;
  std::vector<pb::Resend::Range> resend;

  std::thread thread;  // last: it uses everything above
};

Link::Link(LinkOptions options, MemoryKeeper& keeper, const Clock& clock, std::stop_token stop)
    : impl_(std::make_unique<Impl>(std::move(options), keeper, clock, std::move(stop))) {}
Link::~Link() = default;

Status Link::connect() {
  asio::post(impl_->io, [impl = impl_.get()] { impl->start(); });
  return impl_->wait([this] { return impl_->welcomed; });
}

const pb::Welcome& Link::welcome() const { return impl_->welcome; }

std::optional<Error> Link::diverged() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->diverged;
}

bool Link::alive() const { return !impl_->is_ended(); }

LinkEnd Link::end() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->ended.value_or(LinkEnd{});
}

SessionView Link::view() {
  SessionView view;
  (void)impl_->call([&] {  // after the end the view stays empty: the next call says so
    view.disks = impl_->session->disks();
    {
      const std::lock_guard lock(impl_->mutex);
      view.durable = impl_->durable;
    }
    view.next_epoch = impl_->session->next_epoch();
    view.resumable = impl_->session->resumable_epoch();
    view.diverged = impl_->session->diverged();
    view.adopted_unknown = impl_->session->adopted_unknown();
    return Status();
  });
  return view;
}

Result<DiskId> Link::open_disk(const std::string& identity, std::uint64_t size, const std::string& name) {
  pb::OpenDisk request;
  request.set_identity(identity);
  request.set_size(size);
  request.set_name(name);
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->opened.erase(identity);
  }
  TIDEMARK_TRY(impl_->in_order([impl = impl_.get(), request] { return impl->session->open_disk(request); }));
  TIDEMARK_TRY(impl_->wait([&] { return impl_->opened.contains(identity); }));
  const std::lock_guard lock(impl_->mutex);
  return DiskId(impl_->opened[identity].disk());
}

Status Link::begin_epoch(const pb::EpochBegin& begin) {
  TIDEMARK_TRY(impl_->in_order([impl = impl_.get(), begin] { return impl->session->begin_epoch(begin); }));
  return impl_->wait([&] { return impl_->begun.value() == begin.number(); });
}

Status Link::send_blocks(DiskId disk, std::vector<std::byte> payload, const wire::BlocksSummary& summary) {
  TIDEMARK_TRY(impl_->wait([&] { return impl_->queued_bytes + payload.size() <= kQueueBytesMax; }));
  const std::size_t bytes = payload.size();
  auto held = std::make_shared<std::vector<std::byte>>(std::move(payload));
  impl_->enqueue(
      {bytes, [impl = impl_.get(), disk, held, summary] { return impl->session->send_blocks(disk, *held, summary); }});
  return {};
}

Result<EpochFacts> Link::commit_epoch(EpochNumber number, WallMicros cut_us, Consistency consistency,
                                      std::vector<KnownDisk> disks) {
  auto facts = std::make_shared<EpochFacts>(EpochFacts{number, {}, consistency, cut_us, std::move(disks)});
  Impl* impl = impl_.get();
  const auto commit = [impl, facts]() -> Status {
    if (auto sent = impl->session->commit_epoch(facts->cut_us, static_cast<pb::Consistency>(facts->consistency)); !sent)
      return sent;
    facts->digest = impl->session->memory().unacknowledged.back().digest;
    if (auto saved = impl->keeper.set_pending(*facts); !saved) return saved;
    return impl->keeper.session_changed(impl->session->memory());
  };
  TIDEMARK_TRY(impl->in_order(commit));
  return *facts;
}

Status Link::wait_durable(EpochNumber epoch) {
  return impl_->wait([&] { return impl_->durable >= epoch; });
}

Status Link::abort_epoch(const std::string& reason) {
  Impl* impl = impl_.get();
  return impl->call([impl, reason]() -> Status {
    impl->drop_wishes();
    if (auto sent = impl->session->abort_epoch(reason); !sent) return sent;
    return impl->keeper.session_changed(impl->session->memory());
  });
}

Status Link::unchanged(WallMicros as_of_us) {
  return impl_->in_order([impl = impl_.get(), as_of_us] { return impl->session->unchanged(as_of_us); });
}

Status Link::request_digests(const pb::DigestRequest& request) {
  return impl_->call([&] { return impl_->session->request_digests(request); });
}

Result<pb::DigestReply> Link::next_digests() {
  TIDEMARK_TRY(impl_->wait([&] { return !impl_->digests.empty(); }));
  const std::lock_guard lock(impl_->mutex);
  pb::DigestReply reply = std::move(impl_->digests.front());
  impl_->digests.pop_front();
  return reply;
}

std::vector<pb::Resend::Range> Link::wanted() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->resend;
}

void Link::sent_again(const std::vector<pb::Resend::Range>& ranges) {
  const auto same = [](const pb::Resend::Range& a, const pb::Resend::Range& b) {
    return a.disk() == b.disk() && a.first_granule() == b.first_granule() && a.granules() == b.granules();
  };
  const std::lock_guard lock(impl_->mutex);
  std::erase_if(impl_->resend, [&](const pb::Resend::Range& wanted) {
    return std::any_of(ranges.begin(), ranges.end(), [&](const pb::Resend::Range& sent) { return same(wanted, sent); });
  });
}

Status Link::renew(const std::string& csr_pem) {
  return impl_->call([&] { return impl_->session->renew(csr_pem); });
}

void Link::progress(const pb::Progress& progress) {
  asio::post(impl_->io, [impl = impl_.get(), progress] {
    if (!impl->is_ended() && impl->session && impl->session->ready()) impl->session->progress(progress);
  });
}

void Link::goodbye(const std::string& reason) {
  (void)impl_->call([&] {  // an ended link needs no goodbye
    if (impl_->session && impl_->session->ready()) {
      impl_->session->goodbye(reason);
      impl_->stream->shutdown();
    } else {
      impl_->finish({Error{Code::cancelled, "agent", "asked to stop", {}}, 0, false, false, {}});
    }
    return Status();
  });
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait_for(lock, kGoodbyePatience, [&] { return impl_->ended.has_value(); });
}

std::size_t Link::payload_target() const {
  return std::min<std::size_t>({kPayloadTarget, impl_->welcome.payload_max(), impl_->welcome.credit()});
}

std::uint64_t Link::bytes_sent() const { return impl_->blocks_bytes; }

}  // namespace tidemark::agent
