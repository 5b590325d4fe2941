// A machine's disk as of an epoch, for any number of threads at a time: what a Reader reads through, and NBD. Holds the
// point, so that it is not dropped; the segments it reads are pinned only while it reads. Blocking: not for a shard's
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "storage/reader.h"
#include "storage/sealing.h"

namespace tidemark::storage {

class BlockCache;
class DiskView;
class File;
class IoQueue;
struct Extent;
struct ReadContext;
struct ReadLayer;
struct ReadTarget;

// One of several reads that are done together.
struct DiskRead {
  std::uint64_t offset = 0;
  std::span<std::byte> to;
  std::vector<ByteRange>* zeroes = nullptr;  // as of DiskView::read
  std::size_t tag = 0;                       // the caller's
  Status status{};                           // of what was done
};

// How far a read may go for the index.
enum class Reach : std::uint8_t {
  memory,  // what it said before; else Code::busy
  disk,
};

// Buffers of one reading thread; may be used with any number of views, one after the other.
class ReadScratch {
 public:
  ReadScratch();
  ~ReadScratch();
  // Made on the reading thread, for files of the kernel's; without one, reads are made one after the other.
  void use(std::unique_ptr<IoQueue> queue);

 private:
  friend class AsyncRead;
  friend class DiskView;
  StoredDecoder& decoder(const std::shared_ptr<const VolumeKeys>& keys);

  struct Slot;
  static constexpr std::size_t kDecodersMax = 64, kSlots = 32;
  static constexpr std::size_t kSlotReadMax = 256 << 10;                  // larger reads are made one after the other,
  static constexpr std::size_t kSlotSizeMax = kSlotReadMax + (64 << 10);  // and what lies scattered
  std::unique_ptr<IoQueue> queue_;
  std::vector<std::unique_ptr<Slot>> slots_;
  AlignedBuffer piece_, edge_, plain_;
  std::vector<std::pair<std::shared_ptr<const VolumeKeys>, StoredDecoder>> decoders_;
};

// One small read by a thread that must not block, such as a shard's: of the index it takes what is known from before,
// of the disk what comes through the thread's IoQueue. One at a time, again and again. Belongs to the queue's thread,
// and must outlive what is under way.
class AsyncRead {
 public:
  static constexpr std::size_t kSizeMax = 64 << 10;
  static constexpr std::size_t kPieceMax = 160 << 10;  // read of the disk for it
  enum class Begun : std::uint8_t {
    no,       // it would block, or take long: nothing was done, and DiskView::read on another thread is the way
    done,     // outcome() says how it went
    reading,  // `done` is called once, from the queue's reap()
  };
  AsyncRead();
  ~AsyncRead();
  AsyncRead(const AsyncRead&) = delete;
  AsyncRead& operator=(const AsyncRead&) = delete;

  // As DiskView::read; `read.to`, `read.zeroes`, `scratch` and `queue` must last until it is done.
  Begun begin(std::shared_ptr<const DiskView> view, const DiskRead& read, ReadScratch& scratch, IoQueue& queue,
              std::function<void()> done);
  bool under_way() const;
  // Code::busy: the disk did not give it; what is wrong shows with DiskView::read.
  const Status& outcome() const;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

class DiskView {
 public:
  // `context->uses` has the points of all layers already; the view's end gives them back. `cache` may be null.
  DiskView(std::shared_ptr<ReadContext> context, ReadTarget target, std::shared_ptr<BlockCache> cache);
  ~DiskView();
  DiskView(const DiskView&) = delete;
  DiskView& operator=(const DiskView&) = delete;

  std::uint64_t disk_size() const;
  EpochNumber epoch() const;

  // As Reader::read. With `zeroes`: the ranges that are known to be zero are not written to `to`, but added there, in
  // order.
  Status read(std::uint64_t offset, std::span<std::byte> to, ReadScratch& scratch,
              std::vector<ByteRange>* zeroes = nullptr) const;
  // Several, together: as far as they are small and aligned, all are read from the disk at once.
  void read_many(std::span<DiskRead> reads, ReadScratch& scratch) const;
  // As Reader::map.
  Result<std::vector<ByteRange>> map(std::uint64_t offset, std::uint64_t length) const;
  // Has the blocks of the range decoded in the cache, as far as they can be read.
  Status prefetch(std::uint64_t offset, std::uint64_t length, ReadScratch& scratch) const;

 private:
  struct LayerExtent;
  struct Job;
  struct Piece;
  friend struct ReadScratch::Slot;
  friend class AsyncRead;

  Status check_range(std::uint64_t offset, std::uint64_t length) const;
  std::string describe() const;
  Result<std::vector<LayerExtent>> lookup(std::uint64_t first, std::uint64_t count, Reach reach) const;
  Result<std::vector<Extent>> extents_of(const ReadLayer& layer, std::uint64_t first, std::uint64_t count,
                                         Reach reach) const;
  Status read_granules(Job& job) const;
  Result<std::vector<LayerExtent>> plan(Job& job) const;
  static std::vector<Piece> pieces_of(std::span<const LayerExtent> extents);
  Result<std::shared_ptr<File>> open_segment(const Piece& piece) const;
  Status read_piece(Job& job, const Piece& piece) const;
  Status take_piece(Job& job, const Piece& piece, std::span<const std::byte> bytes) const;
  Status take_known(Job& job, const LayerExtent& extent, std::span<const std::byte> granules) const;
  Status decode(Job& job, const LayerExtent& extent, std::span<const std::byte> block,
                std::span<std::byte> plain) const;
  std::unexpected<Error> damaged(const LayerExtent& extent, Code code, const std::string& what,
                                 bool stored = true) const;

  const std::shared_ptr<ReadContext> context_;
  const std::unique_ptr<const ReadTarget> target_;
  const std::shared_ptr<BlockCache> cache_;
};

}  // namespace tidemark::storage
