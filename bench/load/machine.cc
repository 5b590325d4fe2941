#include "bench/load/machine.h"

#include <algorithm>
#include <array>

#include "wire/messages.h"

namespace tidemark::bench {
namespace {

constexpr auto kConnectTimeout = std::chrono::seconds(30);
constexpr std::uint32_t kRetryFirstMs = 200, kRetryMaxMs = 5000;
constexpr std::uint32_t kRedirectsMax = 4;

// What passes by itself; everything else is the same at the next attempt.
bool passes(Code code) { return code == Code::busy || code == Code::unavailable || code == Code::timed_out; }

}  // namespace

Machine::Machine(MachineHost& host, std::uint32_t number, Identity identity)
    : host_(host),
      number_(number),
      identity_(std::move(identity)),
      address_(host.address),
      random_(mix(host.options.content.seed, number)),
      timer_(host.io),
      pause_timer_(host.io) {}

Machine::~Machine() = default;

// --- Connecting ---

void Machine::connect() {
  if (state_ != State::away) return;
  wished_ = std::chrono::steady_clock::now();
  attempts_ = 0;
  come_back({});
}

void Machine::come_back(std::chrono::milliseconds after) {
  state_ = State::connecting;
  const auto open = [this] {
    gone_ = false;
    connecting_ = std::make_unique<net::Connecting>(host_.io, address_, kConnectTimeout,
                                                    [this](auto socket) { on_connected(std::move(socket)); });
  };
  if (after.count() == 0) return open();
  timer_.expires_after(after);
  timer_.async_wait([open](const asio::error_code& error) {
    if (!error) open();
  });
}

void Machine::on_connected(Result<asio::ip::tcp::socket> socket) {
  if (!socket) return lost(socket.error(), 0);
  if (tls_ == nullptr) {
    auto context = net::TlsContext::agent(identity_.credentials);
    if (!context) return lost(context.error(), 0);
    tls_ = std::move(*context);
  }
  session_.reset();
  assembler_.reset();
  assembler_.emplace(pool_);
  session_.emplace(identity_.machine, *this, Clock::system(), memory_);
  stream_ = std::make_unique<net::TlsStream>(std::move(*socket), tls_, host_.buffer, *this);
  stream_->start();
}

void Machine::on_handshake(const net::Peer& peer) {
  state_ = State::hello;
  if (peer.resumed) ++host_.counters.resumed;
  pb::Hello hello;
  hello.set_agent_version("tidemark-bench");
  hello.set_machine_name(identity_.name);
  hello.set_fingerprint(std::string(wire::kFingerprintSize, 'b'));
  hello.set_boot_id(std::string(wire::kBootIdSize, 'b'));
  session_->start(std::move(hello));
}

void Machine::close_stream(bool farewell) {
  gone_ = true;
  if (session_) memory_ = session_->memory();
  if (state_ >= State::opening && state_ != State::failed) --host_.counters.connected;
  timer_.cancel();
  pause_timer_.cancel();
  paused_ = sending_ = committed_ = false;
  if (stream_) farewell ? stream_->shutdown() : stream_->close();
  connecting_.reset();
}

// Once for each connection that is gone: close_stream() leaves nothing that could call again.
void Machine::lost(const Error& error, std::uint32_t retry_after_ms) {
  if (gone_) return;
  const bool was_in = state_ >= State::opening;
  close_stream();
  state_ = State::away;
  LoadCounters& counters = host_.counters;
  if (finishing_) return;
  const bool again = passes(error.code);
  if (was_in) ++counters.dropped;
  if (was_in || !again) {
    ++counters.errors;
    if (counters.first_error.empty()) counters.first_error = identity_.name + ": " + error.message();
  }
  if (!again) {
    state_ = State::failed;
    return host_.on_settled();
  }
  ++counters.connect_retries;
  if (was_in) wished_ = std::chrono::steady_clock::now();
  const std::uint64_t ceiling =
      std::min<std::uint64_t>(kRetryMaxMs, std::uint64_t{kRetryFirstMs} << std::min(attempts_++, 8u));
  come_back(std::chrono::milliseconds(retry_after_ms + 1 + random_.below(ceiling)));
}

void Machine::disconnect(bool orderly, bool forget) {
  if (state_ == State::failed) return;
  const bool farewell = orderly && ready();
  if (farewell) session_->goodbye("until later");
  close_stream(farewell);
  state_ = State::away;
  if (forget) tls_.reset();
}

void Machine::on_read(std::size_t size) {
  Status status = assembler_->filled(size);
  if (status) {
    if (const auto frame = assembler_->frame()) {
      status = session_->on_frame(frame->header, frame->payload);
      assembler_->consume();
    }
  }
  if (!status) lost(status.error(), 0);
}

void Machine::on_closed(const std::optional<Error>& error) {
  lost(error.value_or(Error{Code::unavailable, address_, "the server closed the connection", {}}), 0);
}

void Machine::on_server_error(const Error& error, std::uint32_t retry_after_ms) { lost(error, retry_after_ms); }

void Machine::on_goodbye(const std::string& reason, std::uint32_t retry_after_ms) {
  lost(Error{Code::unavailable, address_, "the server said goodbye: " + reason, {}}, retry_after_ms);
}

void Machine::on_history_diverged(const Error& why) { lost(why, 0); }

void Machine::send(wire::FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t number) {
  std::array<std::byte, limits::kFrameHeaderSize> header;
  wire::encode({type, static_cast<std::uint32_t>(payload.size()), disk, number}, header);
  stream_->write(header, payload);
}

void Machine::on_welcome(const pb::Welcome& welcome) {
  if (!welcome.redirect().empty()) {
    if (++redirects_ > kRedirectsMax)
      return lost(Error{Code::protocol, address_, "the servers redirect in circles", {}}, 0);
    address_ = welcome.redirect();
    close_stream();
    return come_back(std::chrono::milliseconds(1));
  }
  state_ = State::opening;
  LoadCounters& counters = host_.counters;
  ++counters.connected;
  ++counters.welcomes;
  counters.connect_us.add(static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - wished_).count()));
  attempts_ = redirects_ = 0;
  host_.on_settled();
  const PlanShape& shape = host_.options.plan.shape();
  disks_.clear();
  if (shape.profile == Profile::idle) return after_opened();
  if (session_->resumable_epoch()) {
    // Its blocks are derived from the step: sent anew, under a number of its own.
    if (const Status status = session_->abort_epoch("sent anew after a cut"); !status) return lost(status.error(), 0);
  }
  for (std::uint32_t i = 0; i < shape.disks; ++i) {
    pb::OpenDisk disk;
    disk.set_identity("bench:" + std::to_string(i));
    disk.set_size(shape.disk_size);
    disk.set_name("disk" + std::to_string(i));
    if (const Status status = session_->open_disk(disk); !status) return lost(status.error(), 0);
  }
}

void Machine::on_disk_opened(const pb::DiskOpened& disk) {
  disks_.emplace_back(disk.disk());
  if (disks_.size() == host_.options.plan.shape().disks) after_opened();
}

void Machine::after_opened() {
  state_ = State::ready;
  first_done_ = memory_.durable_epoch.value() != 0 || session_->memory().durable_epoch.value() != 0;
  const Profile profile = host_.options.plan.shape().profile;
  if (profile != Profile::idle && profile != Profile::bulk && !first_done_) return begin(pb::INITIAL);
  if (step_ > durable_step_) {
    // It was under way when the connection was lost: sent again.
    if (active_) return begin(first_done_ ? pb::DELTA : pb::INITIAL);
    step_ = durable_step_;
  }
  schedule();
}

void Machine::stay_alive() {
  timer_.expires_after(std::chrono::seconds(limits::kKeepaliveSeconds));
  timer_.async_wait([this](const asio::error_code& error) {
    if (error || !ready()) return;
    // As an agent does: nothing changed, and that is worth saying; without an epoch it is a ping.
    if (session_->memory().durable_epoch.value() == 0 || !session_->unchanged(Clock::system().wall_us()))
      session_->ping();
    schedule();
  });
}

// --- Writing ---

void Machine::activate(bool active) {
  if (active_ == active) return;
  active_ = active;
  if (active) {
    origin_step_ = 0;  // due times begin anew
    durable_cut_.reset();
  }
  if (!ready()) return;
  if (!active && sending_) return pump();
  if (!sending_ && !committed_) schedule();
}

bool Machine::quiet() const { return state_ == State::away || given_up() || (ready() && !sending_ && !committed_); }

void Machine::finish() {
  finishing_ = true;
  activate(false);
  if (state_ == State::connecting || state_ == State::hello || state_ == State::opening) disconnect(false, false);
}

void Machine::schedule() {
  const LoadOptions& options = host_.options;
  if (!ready() || sending_ || committed_) return;
  if (!active_ || options.plan.shape().profile == Profile::idle) return stay_alive();
  const Time now = std::chrono::steady_clock::now();
  const std::uint32_t next = step_ + 1;
  if (options.epoch_interval.count() == 0) return schedule_at(now);
  if (origin_step_ == 0) {
    // Due times keep their pace whatever the server does; the first is spread over an interval.
    origin_step_ = next;
    origin_ =
        now + std::chrono::microseconds(random_.below(static_cast<std::uint64_t>(options.epoch_interval.count())));
  }
  const std::uint64_t epochs = options.plan.due_epochs(number_, next) - options.plan.due_epochs(number_, origin_step_);
  schedule_at(origin_ + options.epoch_interval * static_cast<std::int64_t>(epochs));
}

void Machine::schedule_at(Time when) {
  const auto go = [this, when] {
    due_ = when;
    ++step_;
    begin(first_done_ ? pb::DELTA : pb::INITIAL);
  };
  const Time now = std::chrono::steady_clock::now();
  if (when <= now && host_.options.epoch_interval.count() != 0) return go();
  if (when - now > std::chrono::seconds(limits::kKeepaliveSeconds)) return stay_alive();  // comes by here again
  // A closed loop goes by the timer as well: a Durable may have come from within a call of the session.
  timer_.expires_at(when);
  timer_.async_wait([this, go](const asio::error_code& error) {
    if (!error && ready() && active_)
      go();
    else if (!error)
      schedule();
  });
}

void Machine::begin(pb::EpochKind kind) {
  pb::EpochBegin begin;
  begin.set_number(session_->next_epoch().value());
  begin.set_kind(kind);
  for (const DiskId disk : disks_) {
    auto* size = begin.add_disks();
    size->set_disk(disk.value());
    size->set_size(host_.options.plan.shape().disk_size);
  }
  if (const Status status = session_->begin_epoch(begin); !status) return lost(status.error(), 0);
  cursor_ = host_.options.plan.begin(number_, step_);
  next_write_.reset();
  writes_in_step_ = blocks_in_step_ = plain_in_step_ = told_blocks_ = told_plain_ = 0;
  sending_ = true;
  if (PlannedWrite write; host_.options.plan.next(cursor_, write)) next_write_ = write;
  pump();
}

void Machine::pump() {
  while (sending_ && !paused_ && stream_ && stream_->queued() < net::TlsStream::kSendHighWater) {
    const bool cut = !active_ && host_.options.plan.shape().profile == Profile::bulk;
    if (!next_write_ || cut) {
      commit();
      return;
    }
    if (!send_frame()) return;
  }
}

// One frame of blocks of one disk, as large as credit allows. False: there is no room for it now.
bool Machine::send_frame() {
  const std::uint64_t room = std::min<std::uint64_t>(session_->credit(), limits::kFramePayloadMax);
  const std::uint32_t disk = next_write_->disk;
  // Made for this frame alone: ten thousand machines would hold as many compressors.
  wire::BlockEncoder encoder(identity_.machine, host_.options.zstd_level);
  encoder.start(disks_[disk], *session_->open_epoch());
  std::array<std::byte, limits::kBlockPlainSizeMax> plain;
  while (next_write_ && next_write_->disk == disk) {
    const std::size_t size = next_write_->granules * limits::kGranuleSize;
    if (encoder.payload().size() + limits::kBlockHeaderSize + size > room) break;
    host_.options.content.fill(number_, disk, next_write_->first_granule * (limits::kGranuleSize / kSectorSize), step_,
                               std::span(plain).first(size));
    encoder.add(next_write_->first_granule, std::span(plain).first(size));
    ++writes_in_step_;
    PlannedWrite write;
    next_write_ = host_.options.plan.next(cursor_, write) ? std::optional(write) : std::nullopt;
  }
  const wire::BlocksSummary summary = encoder.summary();
  if (summary.blocks == 0) return false;
  const auto payload = encoder.take();
  if (const Status status = session_->send_blocks(disks_[disk], payload, summary); !status) {
    lost(status.error(), 0);
    return false;
  }
  blocks_in_step_ += summary.blocks;
  plain_in_step_ += summary.plain_bytes;
  ++host_.counters.frames_sent;
  host_.counters.payload_bytes_sent += payload.size();
  return true;
}

bool Machine::commit() {
  sending_ = false;
  committed_ = true;
  const std::uint64_t epoch = session_->open_epoch()->value();
  if (marks_.empty() || epoch - marks_.back().epoch != step_ - marks_.back().step) marks_.push_back({epoch, step_});
  cut_short_at_ = next_write_ ? writes_in_step_ : UINT64_MAX;
  if (const Status status = session_->commit_epoch(Clock::system().wall_us(), pb::CRASH); !status) {
    lost(status.error(), 0);
    return false;
  }
  return true;
}

void Machine::on_open_epoch_progress(const pb::OpenEpoch& open) {
  if (blocks_in_step_ == 0 || open.blocks() <= told_blocks_) return;
  // Blocks of one step are much alike; what this leaves out is counted when the epoch is durable.
  const std::uint64_t blocks = std::min(open.blocks(), blocks_in_step_);
  const std::uint64_t plain = std::max(told_plain_, plain_in_step_ / blocks_in_step_ * blocks);
  host_.counters.blocks_durable += blocks - told_blocks_;
  host_.counters.plain_bytes_durable += plain - told_plain_;
  told_blocks_ = blocks;
  told_plain_ = plain;
  pump();
}

void Machine::on_durable(EpochNumber, const Hash128&) {
  LoadCounters& counters = host_.counters;
  const Time now = std::chrono::steady_clock::now();
  committed_ = false;
  first_done_ = true;
  memory_ = session_->memory();
  if (step_ > durable_step_) {
    durable_step_ = step_;
    counters.plain_bytes_durable += plain_in_step_ - told_plain_;
    counters.blocks_durable += blocks_in_step_ - told_blocks_;
    ++counters.epochs_durable;
    counters.ack_us.add(
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now - due_).count()));
    durable_cut_ = due_;
  }
  if (ready()) schedule();
}

void Machine::on_throttle(std::uint32_t pause_ms, const std::string&) {
  ++host_.counters.throttles;
  paused_ = pause_ms != 0;
  pause_timer_.cancel();
  if (!paused_) return pump();
  pause_timer_.expires_after(std::chrono::milliseconds(pause_ms));
  pause_timer_.async_wait([this](const asio::error_code& error) {
    if (error) return;
    paused_ = false;
    pump();
  });
}

std::optional<std::chrono::microseconds> Machine::staleness(Time now) const {
  if (!active_ || !durable_cut_) return std::nullopt;
  Time newest = *durable_cut_;
  const auto interval = host_.options.epoch_interval;
  if (interval.count() != 0 && !sending_ && !committed_ && origin_step_ != 0 && ready()) {
    // Nothing is due: what a replay does not write in a pause is durable all the same.
    const auto passed = (now - origin_) / interval;
    newest = std::max(newest, origin_ + passed * interval);
  }
  return std::chrono::duration_cast<std::chrono::microseconds>(now - newest);
}

}  // namespace tidemark::bench
