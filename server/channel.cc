#include "server/channel.h"

#include <spdlog/spdlog.h>

#include <array>
#include <random>
#include <vector>

#include "base/check.h"
#include "server/logging.h"
#include "server/shard.h"
#include "wire/messages.h"

namespace tidemark::server {

using std::chrono::seconds;

std::uint32_t retry_after_ms(Code code) {
  thread_local std::minstd_rand random{std::random_device{}()};
  const auto between = [&](std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(random() % (high - low));
  };
  switch (code) {
    case Code::busy: return between(1'000, 5'000);
    case Code::already_exists: return between(5'000, 15'000);
    case Code::unavailable:
    case Code::io:
    case Code::no_space:
    case Code::internal: return between(10'000, 30'000);
    case Code::timed_out: return between(1'000, 3'000);
    case Code::protocol:
    case Code::invalid_argument: return between(5'000, 15'000);
    default: return 0;
  }
}

Channel::Channel(Shard& shard, Arrival arrival)
    : shard_(shard),
      id_(shard.next_channel_id()),
      peer_(std::move(arrival.peer)),
      ticket_(std::move(arrival.ticket)),
      input_(*this),
      since_(arrival.since),
      last_frame_(shard.now()),
      frame_begun_(shard.now()) {
  stream_ = std::make_unique<net::TlsStream>(std::move(arrival.stream), shard.io(), shard.receive_buffer(), *this);
}

Channel::~Channel() { shard_.frames().forget(*this); }

std::span<std::byte> Channel::acquire(std::size_t size) {
  too_large_ = !greeted() && size > limits::kControlPayloadMax;
  return too_large_ ? std::span<std::byte>() : shard_.frames().acquire(size);
}

void Channel::release(std::span<std::byte> buffer) { shard_.frames().release(buffer); }

std::span<std::byte> Channel::read_space() {
  if (closing_ || paused_ || waiting_) return {};
  const std::span<std::byte> space = input_.space();
  if (!space.empty() || !input_.waits_for_pool()) return space;
  if (too_large_) {
    end({Code::protocol, peer_.address, "data before Hello", {}}, retry_after_ms(Code::protocol));
  } else {
    ++shard_.counters().pauses_for_memory;
    shard_.frames().wait(*this);
  }
  return {};
}

void Channel::on_read(std::size_t size) {
  if (closing_) return;
  if (!input_.in_frame()) frame_begun_ = shard_.now();
  shard_.counters().bytes_in += size;
  if (const auto read = input_.filled(size); !read) {
    end(read.error(), retry_after_ms(read.error().code));
    return;
  }
  pump();
}

void Channel::pump() {
  if (pumping_ || closing_ || paused_) return;
  const auto frame = input_.frame();
  if (!frame) return;
  pumping_ = true;
  last_frame_ = shard_.now();
  waiting_ = on_frame(frame->header, frame->payload) == Frame::wait;
  if (!waiting_) {
    ++shard_.counters().frames_in;
    input_.consume();
  }
  pumping_ = false;
}

void Channel::retry() {
  if (closing_ || paused_) return;
  pump();
  frame_begun_ = shard_.now();  // the wait was ours: the deadline of a frame begins anew
  if (!closing_ && !waiting_) stream_->resume_reading();
}

void Channel::on_frame_room() {
  if (closing_) return;
  frame_begun_ = shard_.now();
  if (input_.space().empty() && input_.waits_for_pool()) {
    shard_.frames().wait(*this);
  } else {
    stream_->resume_reading();
  }
}

void Channel::check_deadlines(Time now) {
  if (ended_) return;
  if (closing_) return;  // the stream bounds its own shutdown
  if (!greeted()) {
    if (now - since_ > seconds(limits::kHandshakeDeadlineSeconds) && !paused_ && !waiting_) {
      shard_.counters().refuse(Refusal::deadline);
      end({Code::timed_out,
           peer_.address,
           "no Hello within " + std::to_string(limits::kHandshakeDeadlineSeconds) + " seconds",
           {}},
          retry_after_ms(Code::timed_out));
    }
    return;
  }
  if (paused_ || waiting_) {  // we are the ones who are slow
    last_frame_ = now;
    return;
  }
  if (input_.waits_for_pool()) return;
  if (input_.in_frame() && now - frame_begun_ > seconds(limits::kFrameDeadlineSeconds)) {
    end({Code::timed_out,
         peer_.address,
         "a frame took longer than " + std::to_string(limits::kFrameDeadlineSeconds) + " seconds",
         {}},
        retry_after_ms(Code::timed_out));
  } else if (!input_.in_frame() && now - last_frame_ > seconds(limits::kIdleSessionSeconds)) {
    end({Code::timed_out,
         peer_.address,
         "nothing came for " + std::to_string(limits::kIdleSessionSeconds) + " seconds",
         {}},
        retry_after_ms(Code::timed_out));
  }
}

void Channel::send(wire::FrameType type, const google::protobuf::MessageLite& message) {
  if (closing_ || !stream_) return;
  thread_local std::vector<std::byte> payload;
  if (const auto encoded = wire::encode_control_payload(type, message, payload); !encoded) {
    spdlog::error("message not sent{}{}", kv("peer", peer_.address), kv(encoded.error()));
    return;
  }
  std::array<std::byte, limits::kFrameHeaderSize> head;
  wire::encode({.type = type,
                .payload_size = static_cast<std::uint32_t>(payload.size()),
                .disk = DiskId(0),
                .number = next_sent_++},
               head);
  stream_->write(head, payload);
}

void Channel::end(const Error& error, std::uint32_t retry_after) {
  if (closing_ || ended_) return;
  send(wire::FrameType::error, wire::to_message(error, retry_after));
  cause_ = error;
  if (const auto code = static_cast<std::size_t>(error.code); code < kCodes) ++shard_.counters().session_errors[code];
  closing_ = true;
  if (stream_) stream_->shutdown();
}

void Channel::goodbye(const std::string& reason, std::uint32_t retry_after) {
  if (closing_ || ended_) return;
  pb::Goodbye message;
  message.set_reason(reason);
  message.set_retry_after_ms(retry_after);
  send(wire::FrameType::goodbye, message);
  closing_ = true;
  if (stream_) stream_->shutdown();
}

void Channel::close_quietly() {
  if (closing_ || ended_) return;
  closing_ = true;
  stream_->shutdown();
}

void Channel::drop() {
  if (ended_) return;
  closing_ = true;
  if (stream_) stream_->close();
  finish(std::nullopt);
}

void Channel::on_writable() { on_drained(); }

void Channel::on_closed(const std::optional<Error>& error) {
  closing_ = true;
  finish(cause_ ? cause_ : error);
}

void Channel::finish(const std::optional<Error>& error) {
  if (ended_) return;
  ended_ = true;
  shard_.frames().forget(*this);
  on_ended(error);
  shard_.bury(*this);
}

}  // namespace tidemark::server
