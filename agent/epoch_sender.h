// From pieces of disks to blocks on their way: compares, encodes and sends, on a thread of its own.
//
//   engine: reads a piece -> [kPieces buffers] -> this thread: digests, zstd -> [Link: 4 MiB] -> network
//
// Memory: kPieces buffers of kPieceSize, and one payload. push() blocks while all buffers are on their way.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "agent/link.h"
#include "agent/pace.h"
#include "base/aligned_buffer.h"
#include "base/ids.h"
#include "base/status.h"
#include "wire/block.h"

namespace tidemark::agent {

// A stretch of one disk within one region of 1 MiB, or, when it is a hole, of any length.
struct Piece {
  DiskId disk;
  std::uint64_t offset = 0;               // bytes, a multiple of a granule
  std::uint64_t size = 0;                 // bytes, whole granules
  std::unique_ptr<AlignedBuffer> buffer;  // its bytes; none: it reads as zeroes
  bool compare = false;                   // send only the chunks whose digest is not the one below
  std::vector<std::byte> digests;         // 32 bytes for each chunk, from `offset` on; fewer: the rest is sent
  // In place of one stretch: several, one behind the other in the buffer, ascending. Sent as they are.
  struct Part {
    std::uint64_t offset = 0;
    std::uint64_t size = 0;
  };
  std::vector<Part> parts;
};

class EpochSender {
 public:
  static constexpr std::size_t kPieceSize = 1_MiB;
  static constexpr std::size_t kPieces = 8;

  // `begin` is called once, on the sender's thread, before the first block: it begins the epoch.
  // `pace` and `compression` outlive the sender; they hear of the time that its thread takes.
  EpochSender(Link& link, const MachineId& machine, Pace& pace, CompressionLevel& compression,
              std::function<Result<EpochNumber>()> begin);
  ~EpochSender();

  // A free buffer; waits for one. Fails with what went wrong on the sender's thread.
  Result<std::unique_ptr<AlignedBuffer>> buffer();
  Status push(Piece piece);
  // Waits until everything was handed to the link.
  Status finish();

  // After finish().
  bool began() const { return began_; }
  std::uint64_t changed_bytes() const { return changed_bytes_; }  // plain bytes of what was sent, zeroes included
  std::uint64_t zero_bytes() const { return zero_bytes_; }

 private:
  void work();
  Status handle_timed(Piece& piece);
  Status handle(Piece& piece);
  Status handle_parts(const Piece& piece);
  Status add(DiskId disk, std::uint64_t granule, std::span<const std::byte> plain);
  Status add_zeroes(DiskId disk, std::uint64_t granule, std::uint64_t granules);
  Status make_ready(DiskId disk);
  Status flush();

  Link& link_;
  Pace& pace_;
  CompressionLevel& compression_;
  std::chrono::nanoseconds blocked_{0};  // of the piece at hand, by the link
  std::function<Result<EpochNumber>()> begin_;
  wire::BlockEncoder encoder_;
  std::size_t payload_target_;
  bool began_ = false;
  EpochNumber epoch_;
  std::optional<DiskId> disk_;  // of the payload at hand
  std::uint64_t changed_bytes_ = 0;
  std::uint64_t zero_bytes_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> queue_;
  std::vector<std::unique_ptr<AlignedBuffer>> free_;
  bool quit_ = false;
  bool finishing_ = false;
  bool finished_ = false;
  Status failure_;
  std::thread thread_;
};

}  // namespace tidemark::agent
