// Puts frames together from whatever pieces the connection delivers. No I/O: the owner asks where the next bytes go,
// puts them there, and takes whole frames out. It asks for exactly the bytes of the frame at hand, so nothing is
// copied twice and nothing of a later frame is ever held.
//
// Memory: a header and payloads up to kInlinePayload stand in the object; every larger payload lies in a buffer of a
// pool that the owner supplies. When the pool has none, space() is empty: reading pauses, the peer feels it as
// back-pressure, and the owner calls space() again when the pool has room. An idle session holds no buffer.
//
// Belongs to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/limits.h"
#include "base/status.h"
#include "wire/frame.h"

namespace tidemark::wire {

// Where payloads lie while they arrive. Bounded by whoever implements it.
class PayloadPool {
 public:
  // At least `size` bytes (at most limits::kFramePayloadMax), or an empty span when there is no room now.
  virtual std::span<std::byte> acquire(std::size_t size) = 0;
  // Exactly a span that acquire() gave.
  virtual void release(std::span<std::byte> buffer) = 0;

 protected:
  ~PayloadPool() = default;
};

// From the heap, up to a total. For the agent, the bench and tests.
class HeapPayloadPool final : public PayloadPool {
 public:
  explicit HeapPayloadPool(std::size_t bytes_max) : bytes_max_(bytes_max) {}
  ~HeapPayloadPool();  // everything must have been released
  HeapPayloadPool(const HeapPayloadPool&) = delete;
  HeapPayloadPool& operator=(const HeapPayloadPool&) = delete;
  std::span<std::byte> acquire(std::size_t size) override;
  void release(std::span<std::byte> buffer) override;
  std::size_t bytes_used() const { return bytes_used_; }

 private:
  std::size_t bytes_max_;
  std::size_t bytes_used_ = 0;
};

class FrameAssembler {
 public:
  static constexpr std::size_t kInlinePayload = 512;

  explicit FrameAssembler(PayloadPool& pool) : pool_(pool) {}
  ~FrameAssembler();  // gives a held buffer back
  FrameAssembler(const FrameAssembler&) = delete;
  FrameAssembler& operator=(const FrameAssembler&) = delete;

  // Where the next bytes go. Empty: a whole frame waits for consume(), or the pool is exhausted, or the peer sent
  // something that is no frame.
  std::span<std::byte> space();
  // `size` bytes were put at the front of what space() gave last. An error: a malformed header; nothing more is taken.
  Status filled(std::size_t size);

  struct Frame {
    FrameHeader header;
    std::span<const std::byte> payload;  // valid until consume()
  };
  // The whole frame, once it is there.
  std::optional<Frame> frame() const;
  // Done with the frame; its buffer goes back to the pool.
  void consume();

  bool waits_for_pool() const;  // space() was empty for want of a buffer
  bool in_frame() const;  // some of a frame has come, but not all: a deadline runs (limits::kFrameDeadlineSeconds)

 private:
  enum class State : std::uint8_t { header, payload, complete, failed };
  std::size_t payload_size() const { return header_.payload_size; }

  PayloadPool& pool_;
  State state_ = State::header;
  std::size_t have_ = 0;  // bytes of the header or of the payload at hand
  FrameHeader header_;
  std::span<std::byte> pooled_;  // as acquired; empty while the payload stands inline
  std::array<std::byte, limits::kFrameHeaderSize> header_bytes_;
  std::array<std::byte, kInlinePayload> inline_;
};

}  // namespace tidemark::wire
