#include "bench/load/session.h"

#include <algorithm>
#include <cstring>

#include "wire/messages.h"

namespace tidemark::bench {
namespace {

constexpr auto kConnectTimeout = std::chrono::seconds(30);
constexpr std::size_t kBulkBlocksPerFrame = 15;  // of 64 KiB: just under the largest frame

}  // namespace

LoadSession::LoadSession(asio::io_context& io, net::ReceiveBuffer& buffer, std::string address, Identity identity,
                         const LoadOptions& options, LoadCounters& counters, std::uint64_t seed)
    : io_(io),
      buffer_(buffer),
      address_(std::move(address)),
      identity_(std::move(identity)),
      options_(options),
      counters_(counters),
      random_(seed),
      assembler_(pool_),
      session_(identity_.machine, *this, Clock::system(), wire::AgentMemory{}),
      encoder_(identity_.machine, options.zstd_level),
      timer_(io) {
  plain_.resize(options.profile == Profile::bulk ? limits::kBlockPlainSizeMax : options.block_size);
  random_.fill(plain_);
  const auto zeroes = static_cast<std::size_t>(options.compressible * static_cast<double>(plain_.size()));
  std::memset(plain_.data() + (plain_.size() - zeroes), 0, zeroes);
}

LoadSession::~LoadSession() = default;

void LoadSession::start() {
  connecting_ = std::make_unique<net::Connecting>(io_, address_, kConnectTimeout,
                                                  [this](auto socket) { on_connected(std::move(socket)); });
}

void LoadSession::on_connected(Result<asio::ip::tcp::socket> socket) {
  if (!socket) return fail_with(socket.error());
  auto context = net::TlsContext::agent(identity_.credentials);
  if (!context) return fail_with(context.error());
  stream_ = std::make_unique<net::TlsStream>(std::move(*socket), *context, buffer_, *this);
  stream_->start();
}

void LoadSession::fail_with(const Error& error) {
  ++counters_.errors;
  if (counters_.first_error.empty()) counters_.first_error = identity_.name + ": " + error.message();
  finished_ = true;
  timer_.cancel();
  if (stream_) stream_->close();
}

void LoadSession::on_handshake(const net::Peer&) {
  pb::Hello hello;
  hello.set_agent_version("tidemark-bench");
  hello.set_machine_name(identity_.name);
  hello.set_fingerprint(std::string(wire::kFingerprintSize, 'b'));
  hello.set_boot_id(std::string(wire::kBootIdSize, 'b'));
  session_.start(std::move(hello));
}

void LoadSession::on_read(std::size_t size) {
  Status status = assembler_.filled(size);
  if (status) {
    if (const auto frame = assembler_.frame()) {
      status = session_.on_frame(frame->header, frame->payload);
      assembler_.consume();
    }
  }
  if (!status) fail_with(status.error());
}

void LoadSession::on_closed(const std::optional<Error>& error) {
  if (finished_) return;
  if (finishing_ && !error) {
    finished_ = true;
    return;
  }
  fail_with(error.value_or(Error{Code::unavailable, address_, "the server closed the connection", {}}));
}

void LoadSession::send(wire::FrameType type, DiskId disk, std::span<const std::byte> payload, std::uint64_t number) {
  std::array<std::byte, limits::kFrameHeaderSize> header;
  wire::encode({type, static_cast<std::uint32_t>(payload.size()), disk, number}, header);
  writable_ = stream_->write(header, payload);
}

void LoadSession::on_welcome(const pb::Welcome&) {
  ++counters_.connected;
  if (options_.profile == Profile::idle) {
    // The server ends a session that says nothing; so does a real agent say this much.
    timer_.expires_after(std::chrono::seconds(limits::kKeepaliveSeconds));
    timer_.async_wait([this](const asio::error_code& error) {
      if (error || finished_) return;
      session_.ping();
      --counters_.connected;
      on_welcome({});
    });
    return;
  }
  pb::OpenDisk disk;
  disk.set_identity("bench:" + identity_.name);
  disk.set_size(options_.disk_size);
  disk.set_name("bench");
  if (const Status status = session_.open_disk(disk); !status) fail_with(status.error());
}

void LoadSession::on_disk_opened(const pb::DiskOpened& disk) {
  disk_ = DiskId(disk.disk());
  pb::EpochBegin begin;
  begin.set_number(std::max<std::uint64_t>(1, session_.welcome().next_epoch()));
  begin.set_kind(pb::INITIAL);
  auto* size = begin.add_disks();
  size->set_disk(disk_.value());
  size->set_size(options_.disk_size);
  if (const Status status = session_.begin_epoch(begin); !status) return fail_with(status.error());
  encoder_.start(disk_, EpochNumber(begin.number()));
}

void LoadSession::on_epoch_begun(EpochNumber) {
  begun_ = true;
  if (options_.profile == Profile::small && !initial_done_) {
    // The first epoch is empty: what follows are deltas of a machine that is known.
    if (const Status status = session_.commit_epoch(Clock::system().wall_us(), pb::CRASH); !status)
      return fail_with(status.error());
    return;
  }
  pump();
}

std::span<const std::byte> LoadSession::plain_block(std::size_t size) {
  const std::uint64_t stamp = random_.next();
  std::memcpy(plain_.data(), &stamp, sizeof stamp);  // no two blocks are the same
  return std::span(plain_).first(size);
}

bool LoadSession::send_bulk_frame() {
  if (!frame_summary_) {
    const std::uint64_t last = options_.disk_size / limits::kGranuleSize;
    for (std::size_t i = 0; i < kBulkBlocksPerFrame; ++i) {
      if (next_granule_ + limits::kBlockGranulesMax > last) next_granule_ = 0;
      encoder_.add(next_granule_, plain_block(limits::kBlockPlainSizeMax));
      next_granule_ += limits::kBlockGranulesMax;
    }
    frame_summary_ = encoder_.summary();
    frame_ = encoder_.take();
  }
  if (session_.credit() < frame_.size()) return false;
  const Status status = session_.send_blocks(disk_, frame_, *frame_summary_);
  if (!status) {
    if (status.error().code != Code::busy) fail_with(status.error());
    return false;
  }
  counters_.blocks_sent += frame_summary_->blocks;
  counters_.plain_bytes_sent += frame_summary_->plain_bytes;
  frame_summary_.reset();
  return true;
}

void LoadSession::pump() {
  if (stream_) writable_ = stream_->queued() < net::TlsStream::kSendHighWater;
  if (finished_ || !begun_ || options_.profile == Profile::idle) return;
  if (options_.profile == Profile::bulk) {
    while (!finished_ && !finishing_ && writable_ && send_bulk_frame()) {
    }
    if (finishing_ && session_.open_epoch()) {
      if (const Status status = session_.commit_epoch(Clock::system().wall_us(), pb::FUZZY); !status)
        fail_with(status.error());
    }
    return;
  }
  if (!initial_done_ || !session_.open_epoch()) return;
  // A small epoch goes out whole, in as many frames as its size needs.
  const std::uint64_t granules = options_.block_size / limits::kGranuleSize;
  for (std::uint32_t i = 0; i < options_.blocks_per_epoch; ++i) {
    const std::uint64_t place = random_.below(options_.disk_size / options_.block_size);
    encoder_.add(place * granules, plain_block(options_.block_size));
  }
  const wire::BlocksSummary summary = encoder_.summary();
  const auto payload = encoder_.take();
  Status status = session_.send_blocks(disk_, payload, summary);
  counters_.blocks_sent += summary.blocks;
  counters_.plain_bytes_sent += summary.plain_bytes;
  if (status) status = session_.commit_epoch(Clock::system().wall_us(), pb::CRASH);
  begun_ = false;
  if (!status) fail_with(status.error());
}

void LoadSession::begin_small_epoch(Time due) {
  if (finished_ || finishing_) {
    finished_ = true;
    return;
  }
  due_ = due;
  pb::EpochBegin begin;
  begin.set_number(session_.memory().durable_epoch.value() + 1);
  begin.set_kind(pb::DELTA);
  auto* size = begin.add_disks();
  size->set_disk(disk_.value());
  size->set_size(options_.disk_size);
  if (const Status status = session_.begin_epoch(begin); !status) return fail_with(status.error());
  encoder_.start(disk_, EpochNumber(begin.number()));
}

void LoadSession::on_durable(EpochNumber, const Hash128&) {
  const auto now = std::chrono::steady_clock::now();
  if (options_.profile == Profile::bulk) {
    counters_.plain_bytes_durable += (session_.open_content().blocks - durable_blocks_) * limits::kBlockPlainSizeMax;
    ++counters_.epochs_durable;
    finished_ = true;
    return;
  }
  if (initial_done_) {
    ++counters_.epochs_durable;
    counters_.plain_bytes_durable += std::uint64_t{options_.blocks_per_epoch} * options_.block_size;
    counters_.ack_us.push_back(
        static_cast<std::uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(now - due_).count()));
  }
  Time next = now;
  if (options_.epoch_interval.count() > 0) {
    // Open loop: due times keep their pace whatever the server does; the first is spread over an interval.
    next = initial_done_ ? due_ + options_.epoch_interval
                         : now + options_.epoch_interval * static_cast<int>(random_.below(1000)) / 1000;
  }
  initial_done_ = true;
  if (next <= now) return begin_small_epoch(next);
  timer_.expires_at(next);
  timer_.async_wait([this, next](const asio::error_code& error) {
    if (!error) begin_small_epoch(next);
  });
}

void LoadSession::on_open_epoch_progress(const pb::OpenEpoch& open) {
  if (open.blocks() > durable_blocks_) {
    counters_.plain_bytes_durable += (open.blocks() - durable_blocks_) * limits::kBlockPlainSizeMax;
    durable_blocks_ = open.blocks();
  }
  pump();
}

void LoadSession::on_server_error(const Error& error, std::uint32_t) { fail_with(error); }

void LoadSession::finish() {
  finishing_ = true;
  timer_.cancel();
  if (options_.profile == Profile::bulk)
    pump();
  else if (options_.profile == Profile::idle || !session_.open_epoch())
    finished_ = true;
}

}  // namespace tidemark::bench
