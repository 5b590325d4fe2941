#include "agent/epoch_sender.h"

#include <algorithm>
#include <cstring>

#include "base/crypto.h"
#include "base/limits.h"

namespace tidemark::agent {
namespace {

constexpr std::size_t kChunk = limits::kDigestChunkSize;
constexpr std::uint64_t kFlushPlainBytes = 64_MiB;  // a long run of zeroes is sent on after this much

const Sha256& zero_chunk_digest() {
  static const Sha256 digest = sha256(std::vector<std::byte>(kChunk));
  return digest;
}

bool same(std::span<const std::byte> expected, const Sha256& digest) {
  return std::memcmp(expected.data(), digest.data(), digest.size()) == 0;
}

}  // namespace

EpochSender::EpochSender(Link& link, const MachineId& machine, Pace& pace, CompressionLevel& compression,
                         std::function<Result<EpochNumber>()> begin)
    : link_(link),
      pace_(pace),
      compression_(compression),
      begin_(std::move(begin)),
      encoder_(machine, compression.level()),
      payload_target_(link.payload_target()) {
  for (std::size_t i = 0; i < kPieces; ++i) free_.push_back(std::make_unique<AlignedBuffer>(kPieceSize));
  thread_ = std::thread([this] { work(); });
}

EpochSender::~EpochSender() {
  {
    const std::lock_guard lock(mutex_);
    quit_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Result<std::unique_ptr<AlignedBuffer>> EpochSender::buffer() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !free_.empty() || !failure_; });
  if (!failure_) return std::unexpected(failure_.error());
  auto buffer = std::move(free_.back());
  free_.pop_back();
  return buffer;
}

Status EpochSender::push(Piece piece) {
  std::unique_lock lock(mutex_);
  // Holes have no buffer: they are bounded by the same number.
  changed_.wait(lock, [&] { return queue_.size() < kPieces || !failure_; });
  if (!failure_) return failure_;
  queue_.push_back(std::move(piece));
  changed_.notify_all();
  return {};
}

Status EpochSender::finish() {
  std::unique_lock lock(mutex_);
  finishing_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return finished_ || !failure_; });
  return failure_;
}

void EpochSender::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return quit_ || !queue_.empty() || (finishing_ && !finished_); });
    if (quit_) return;
    if (!queue_.empty()) {
      Piece piece = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      Status handled = handle_timed(piece);
      lock.lock();
      if (piece.buffer) free_.push_back(std::move(piece.buffer));
      if (!handled) failure_ = std::move(handled);
    } else {
      lock.unlock();
      Status done = flush();
      lock.lock();
      finished_ = true;
      if (!done) failure_ = std::move(done);
    }
    changed_.notify_all();
    if (!failure_) return;
  }
}

Status EpochSender::handle_timed(Piece& piece) {
  const auto from = std::chrono::steady_clock::now();
  blocked_ = std::chrono::nanoseconds(0);
  Status handled = handle(piece);
  const auto busy = std::chrono::steady_clock::now() - from - blocked_;
  pace_.add(Stage::cpu, busy);
  const int before = compression_.level();
  compression_.account(piece.buffer ? piece.size : 0, busy, blocked_);
  if (compression_.level() != before) encoder_.set_level(compression_.level());
  return handled;
}

Status EpochSender::handle_parts(const Piece& piece) {
  std::size_t in_buffer = 0;
  for (const Piece::Part& part : piece.parts) {
    for (std::uint64_t at = part.offset; at < part.offset + part.size;) {
      const std::uint64_t next = std::min(part.offset + part.size, round_down(at, kChunk) + kChunk);
      const auto plain = piece.buffer->span().subspan(in_buffer, next - at);
      const std::uint64_t granule = at / limits::kGranuleSize;
      TIDEMARK_TRY(wire::all_zero(plain) ? add_zeroes(piece.disk, granule, plain.size() / limits::kGranuleSize)
                                         : add(piece.disk, granule, plain));
      in_buffer += plain.size();
      at = next;
    }
  }
  return {};
}

Status EpochSender::handle(Piece& piece) {
  if (!piece.parts.empty()) return handle_parts(piece);
  const std::uint64_t end = piece.offset + piece.size;
  if (!piece.compare && !piece.buffer) {
    return add_zeroes(piece.disk, piece.offset / limits::kGranuleSize, piece.size / limits::kGranuleSize);
  }
  std::size_t index = 0;
  for (std::uint64_t at = piece.offset; at < end; ++index) {
    // Blocks end at multiples of their largest size, so that none crosses a region.
    const std::uint64_t next = std::min(end, round_down(at, kChunk) + kChunk);
    const std::size_t size = next - at;
    const auto plain = piece.buffer ? piece.buffer->span().subspan(at - piece.offset, size) : std::span<std::byte>{};
    const bool zero = !piece.buffer || wire::all_zero(plain);
    bool differs = true;
    if (piece.compare && (index + 1) * sizeof(Sha256) <= piece.digests.size()) {
      const auto expected = std::span(piece.digests).subspan(index * sizeof(Sha256), sizeof(Sha256));
      differs = zero && size == kChunk ? !same(expected, zero_chunk_digest())
                : zero                 ? !same(expected, sha256(std::vector<std::byte>(size)))
                                       : !same(expected, sha256(plain));
    }
    if (differs) {
      const std::uint64_t granule = at / limits::kGranuleSize;
      TIDEMARK_TRY(zero ? add_zeroes(piece.disk, granule, size / limits::kGranuleSize)
                        : add(piece.disk, granule, plain));
    }
    at = next;
  }
  return {};
}

Status EpochSender::make_ready(DiskId disk) {
  if (!began_) {
    epoch_ = TIDEMARK_TRY(begin_());
    began_ = true;
  }
  if (disk_ == disk) return {};
  TIDEMARK_TRY(flush());
  encoder_.start(disk, epoch_);
  disk_ = disk;
  return {};
}

Status EpochSender::add(DiskId disk, std::uint64_t granule, std::span<const std::byte> plain) {
  TIDEMARK_TRY(make_ready(disk));
  if (encoder_.payload().size() + limits::kBlockHeaderSize + plain.size() > payload_target_) TIDEMARK_TRY(flush());
  encoder_.add(granule, plain);
  changed_bytes_ += plain.size();
  return encoder_.summary().plain_bytes >= kFlushPlainBytes ? flush() : Status();
}

Status EpochSender::add_zeroes(DiskId disk, std::uint64_t granule, std::uint64_t granules) {
  TIDEMARK_TRY(make_ready(disk));
  if (encoder_.payload().size() + limits::kBlockHeaderSize > payload_target_) TIDEMARK_TRY(flush());
  encoder_.add_zeroes(granule, granules);
  changed_bytes_ += granules * limits::kGranuleSize;
  zero_bytes_ += granules * limits::kGranuleSize;
  return encoder_.summary().plain_bytes >= kFlushPlainBytes ? flush() : Status();
}

Status EpochSender::flush() {
  if (encoder_.payload().empty() || !disk_) return {};
  const wire::BlocksSummary summary = encoder_.summary();
  const auto from = std::chrono::steady_clock::now();
  Status sent = link_.send_blocks(*disk_, encoder_.take(), summary);
  blocked_ += std::chrono::steady_clock::now() - from;
  return sent;
}

}  // namespace tidemark::agent
