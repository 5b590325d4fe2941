#include "wire/frame_assembler.h"

#include <utility>

#include "base/check.h"

namespace tidemark::wire {

HeapPayloadPool::~HeapPayloadPool() { TIDEMARK_CHECK(bytes_used_ == 0); }

std::span<std::byte> HeapPayloadPool::acquire(std::size_t size) {
  if (size > bytes_max_ - bytes_used_) return {};
  bytes_used_ += size;
  return {new std::byte[size], size};
}

void HeapPayloadPool::release(std::span<std::byte> buffer) {
  TIDEMARK_CHECK(buffer.size() <= bytes_used_);
  bytes_used_ -= buffer.size();
  delete[] buffer.data();
}

FrameAssembler::~FrameAssembler() {
  if (!pooled_.empty()) pool_.release(pooled_);
}

std::span<std::byte> FrameAssembler::space() {
  switch (state_) {
    case State::header: return std::span(header_bytes_).subspan(have_);
    case State::payload: {
      if (payload_size() <= kInlinePayload) return std::span(inline_).subspan(have_, payload_size() - have_);
      if (pooled_.empty()) {
        pooled_ = pool_.acquire(payload_size());
        if (pooled_.empty()) return {};
        TIDEMARK_CHECK(pooled_.size() >= payload_size());
      }
      return pooled_.subspan(have_, payload_size() - have_);
    }
    case State::complete:
    case State::failed: return {};
  }
  return {};
}

Status FrameAssembler::filled(std::size_t size) {
  TIDEMARK_CHECK(state_ == State::header || state_ == State::payload);
  const std::size_t whole = state_ == State::header ? header_bytes_.size() : payload_size();
  TIDEMARK_CHECK(size <= whole - have_);
  have_ += size;
  if (have_ < whole) return {};
  have_ = 0;
  if (state_ == State::payload) {
    state_ = State::complete;
    return {};
  }
  auto header = decode_frame_header(header_bytes_);
  if (!header) {
    state_ = State::failed;
    return std::unexpected(std::move(header).error());
  }
  header_ = *header;
  state_ = payload_size() == 0 ? State::complete : State::payload;
  return {};
}

std::optional<FrameAssembler::Frame> FrameAssembler::frame() const {
  if (state_ != State::complete) return std::nullopt;
  const std::span<const std::byte> bytes = pooled_.empty() ? std::span<const std::byte>(inline_) : pooled_;
  return Frame{header_, bytes.first(payload_size())};
}

void FrameAssembler::consume() {
  TIDEMARK_CHECK(state_ == State::complete);
  if (!pooled_.empty()) pool_.release(std::exchange(pooled_, {}));
  state_ = State::header;
}

bool FrameAssembler::waits_for_pool() const {
  return state_ == State::payload && payload_size() > kInlinePayload && pooled_.empty();
}

bool FrameAssembler::in_frame() const { return state_ == State::payload || (state_ == State::header && have_ > 0); }

}  // namespace tidemark::wire
