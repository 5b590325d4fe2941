// One established connection that speaks frames: stream, framing, numbering, deadlines, and an end that tells the peer
// why. What the frames mean is the subclass's: Session (a machine) and Enrolment.
//
//   on_frame() -> done: the next frame;  wait: the frame stays, reading pauses, until retry() presents it again
//
// Everything on the shard's thread. A channel is never destroyed inside a call of its stream: it goes to the shard's
// graveyard, which is emptied at the end of the turn.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/status.h"
#include "net/tls_stream.h"
#include "server/admission.h"
#include "server/counters.h"
#include "server/frame_pool.h"
#include "wire/frame.h"
#include "wire/frame_assembler.h"

namespace google::protobuf {
class MessageLite;
}

namespace tidemark::server {

class Shard;

// What a finished handshake hands on: it may cross threads.
struct Arrival {
  std::unique_ptr<net::TlsStream::Detached> stream;
  net::Peer peer;
  AdmissionCount::Ticket ticket;  // of the sessions
  bool counted = false;           // it has one; else it is told to come later
  std::chrono::steady_clock::time_point since;
};

class Channel : public net::TlsStream::Handler, private FramePool::Waiter, private wire::PayloadPool {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Channel(Shard& shard, Arrival arrival);
  virtual ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void retry();  // presents the frame that waits again
  void check_deadlines(Time now);
  void send(wire::FrameType type, const google::protobuf::MessageLite& message);
  // Tells the peer, then closes. Once; later calls do nothing.
  void end(const Error& error, std::uint32_t retry_after_ms);
  void goodbye(const std::string& reason, std::uint32_t retry_after_ms);
  void close_quietly();  // the peer said its last word: what is queued is sent, then it is closed
  void drop();           // at once, without a word; on_ended follows

  const net::Peer& peer() const { return peer_; }
  std::uint64_t id() const { return id_; }
  bool ended() const { return ended_; }
  Shard& shard() const { return shard_; }
  std::size_t queued_bytes() const { return stream_ ? stream_->queued() : 0; }

 protected:
  enum class Frame : std::uint8_t { done, wait };
  virtual Frame on_frame(const wire::FrameHeader& header, std::span<const std::byte> payload) = 0;
  // The connection is over, for whatever reason; called once. `error` empty: the peer closed in order, or goodbye.
  virtual void on_ended(const std::optional<Error>& error) = 0;
  virtual bool greeted() const = 0;  // Hello was answered: the idle deadline counts, not that of the handshake
  virtual void on_drained() {}       // the send queue is empty again

  void pause(bool paused) { paused_ = paused; }  // no frame is read or presented meanwhile
  bool paused() const { return paused_; }
  Time last_frame() const { return last_frame_; }

 private:
  void on_handshake(const net::Peer&) final {}
  std::span<std::byte> read_space() final;
  void on_read(std::size_t size) final;
  void on_writable() final;
  void on_closed(const std::optional<Error>& error) final;
  void on_frame_room() final;
  // The shard's pool, but for those not greeted yet: they get no more than a control frame needs.
  std::span<std::byte> acquire(std::size_t size) final;
  void release(std::span<std::byte> buffer) final;
  void pump();
  void finish(const std::optional<Error>& error);

  Shard& shard_;
  const std::uint64_t id_;
  net::Peer peer_;
  AdmissionCount::Ticket ticket_;
  wire::FrameAssembler input_;
  std::unique_ptr<net::TlsStream> stream_;
  const Time since_;
  Time last_frame_;
  Time frame_begun_;
  std::uint64_t next_sent_ = 0;
  std::optional<Error> cause_;  // why we end it
  bool paused_ = false;
  bool waiting_ = false;  // a complete frame is to be presented again
  bool pumping_ = false;
  bool too_large_ = false;  // a frame larger than one not greeted may send
  bool closing_ = false;
  bool ended_ = false;
};

// How long a peer should stay away after an error, with jitter; 0: no use without a human.
std::uint32_t retry_after_ms(Code code);

}  // namespace tidemark::server
