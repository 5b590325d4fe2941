#include "storage/disk_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/check.h"
#include "base/marks.h"
#include "base/planted.h"
#include "base/units.h"
#include "storage/block_cache.h"
#include "storage/disk_reader.h"
#include "storage/file.h"
#include "wire/block.h"

namespace tidemark::storage {

namespace {

constexpr std::uint64_t kReadMax = 1_MiB;     // of one read of a segment
constexpr std::uint64_t kGapMax = 64_KiB;     // read over rather than apart
constexpr std::uint64_t kStep = 1_MiB;        // looked up and read at a time
constexpr std::uint64_t kMapWindow = 64_MiB;  // looked up at a time by map() where there is data
constexpr std::uint64_t kGranule = limits::kGranuleSize;
constexpr std::uint32_t kDecodedHereMax = 4;  // granules of a block that a thread decodes that others wait for

std::uint64_t end_of(const Extent& extent) {
  return std::uint64_t{extent.offset} + limits::kBlockHeaderSize + extent.stored_size;
}

}  // namespace

struct DiskView::LayerExtent : Extent {
  const ReadLayer* layer = nullptr;
  int known = -1;  // which of the job's hashes: only what is asked for of the block needs to be read

  std::uint64_t begin() const { return known < 0 ? offset : place_of(first_granule); }
  std::uint64_t end() const { return known < 0 ? end_of(*this) : place_of(first_granule + granules); }
  // Of a raw block that is not sealed.
  std::uint64_t place_of(std::uint64_t granule) const {
    return offset + limits::kBlockHeaderSize + (granule - block_first_granule) * kGranule;
  }
};

// Whole granules, at most kStep of them.
struct DiskView::Job {
  std::uint64_t first = 0;  // granule
  std::uint64_t granules = 0;
  std::span<std::byte> to;  // empty: only the cache is to have them
  ReadScratch& scratch;
  std::vector<ByteRange>* zeroes = nullptr;
  Reach reach = Reach::disk;
  std::vector<GranuleHashes::Hashes> known{};

  std::span<std::byte> place(const Extent& extent) const {
    return to.subspan((extent.first_granule - first) * kGranule, std::size_t{extent.granules} * kGranule);
  }
};

// One read of one segment, and what is wanted of it.
struct DiskView::Piece {
  std::span<const LayerExtent> extents;
  std::uint64_t start = 0, end = 0;  // start is aligned

  std::size_t size() const { return round_up(end, limits::kIoAlignment) - start; }
};

// One read of a batch that is under way.
struct ReadScratch::Slot final : IoCompletion {
  void on_io_done(int outcome) override { result = outcome; }

  AlignedBuffer buffer;  // as large as was needed so far
  DiskRead* read = nullptr;
  std::optional<DiskView::Job> job;
  std::vector<DiskView::LayerExtent> extents;
  DiskView::Piece piece;
  std::shared_ptr<File> file;
  int result = 0;
};

ReadScratch::ReadScratch() = default;
ReadScratch::~ReadScratch() = default;
void ReadScratch::use(std::unique_ptr<IoQueue> queue) { queue_ = std::move(queue); }

StoredDecoder& ReadScratch::decoder(const std::shared_ptr<const VolumeKeys>& keys) {
  for (auto& [known, decoder] : decoders_)
    if (known == keys) return decoder;
  if (decoders_.size() >= kDecodersMax) decoders_.clear();
  return decoders_.emplace_back(keys, StoredDecoder(keys)).second;
}

DiskView::DiskView(std::shared_ptr<ReadContext> context, ReadTarget target, std::shared_ptr<BlockCache> cache)
    : context_(std::move(context)),
      target_(std::make_unique<const ReadTarget>(std::move(target))),
      cache_(std::move(cache)) {}

DiskView::~DiskView() {
  for (const ReadLayer& layer : target_->layers) context_->uses.end(layer.machine, layer.epoch);
}

std::uint64_t DiskView::disk_size() const { return target_->disk_size; }
EpochNumber DiskView::epoch() const { return target_->epoch; }

Status DiskView::read(std::uint64_t offset, std::span<std::byte> to, ReadScratch& scratch,
                      std::vector<ByteRange>* zeroes) const {
  TIDEMARK_TRY(check_range(offset, to.size()));
  while (!to.empty()) {
    const std::uint64_t step_end = round_down(offset, kStep) + kStep;
    const auto size = static_cast<std::size_t>(std::min<std::uint64_t>(to.size(), step_end - offset));
    const std::uint64_t start = round_down(offset, kGranule);
    const std::uint64_t end = round_up(offset + size, kGranule);
    if (start == offset && end == offset + size) {
      Job job{start / kGranule, size / kGranule, to.first(size), scratch, zeroes};
      TIDEMARK_TRY(read_granules(job));
    } else {
      if (!scratch.edge_) scratch.edge_ = AlignedBuffer(kStep);
      Job job{start / kGranule, (end - start) / kGranule, scratch.edge_.span().first(end - start), scratch, nullptr};
      TIDEMARK_TRY(read_granules(job));
      std::memcpy(to.data(), scratch.edge_.data() + (offset - start), size);
    }
    offset += size;
    to = to.subspan(size);
  }
  return {};
}

void DiskView::read_many(std::span<DiskRead> reads, ReadScratch& scratch) const {
  IoQueue* const queue = scratch.queue_.get();
  const ReaderPins::Scope pinned(context_->pins);
  std::size_t used = 0;
  for (DiskRead& read : reads) {
    const std::uint64_t end = read.offset + read.to.size();
    const bool small = queue != nullptr && used < ReadScratch::kSlots && read.to.size() <= ReadScratch::kSlotReadMax &&
                       read.offset % kGranule == 0 && read.to.size() % kGranule == 0 &&
                       read.offset / kStep == (end - 1) / kStep && check_range(read.offset, read.to.size());
    if (!small) {
      read.status = this->read(read.offset, read.to, scratch, read.zeroes);
      continue;
    }
    if (used == scratch.slots_.size()) scratch.slots_.push_back(std::make_unique<ReadScratch::Slot>());
    ReadScratch::Slot& slot = *scratch.slots_[used];
    slot.job.emplace(Job{read.offset / kGranule, read.to.size() / kGranule, read.to, scratch, read.zeroes});
    auto extents = plan(*slot.job);
    if (!extents) {
      read.status = std::unexpected(extents.error());
      continue;
    }
    slot.extents = *std::move(extents);
    const auto pieces = pieces_of(slot.extents);
    if (pieces.size() != 1 || pieces.front().size() > ReadScratch::kSlotSizeMax) {
      for (std::size_t i = 0; i < pieces.size() && read.status; ++i) read.status = read_piece(*slot.job, pieces[i]);
      continue;
    }
    auto file = open_segment(pieces.front());
    if (!file) {
      read.status = std::unexpected(file.error());
      continue;
    }
    slot.read = &read;
    slot.piece = pieces.front();
    slot.file = *std::move(file);
    if (slot.buffer.size() < slot.piece.size()) slot.buffer = AlignedBuffer(slot.piece.size());
    queue->read(*slot.file, slot.piece.start, slot.buffer.span().first(slot.piece.size()), slot);
    ++used;
  }
  // Once for all: to be woken for each costs more than a small read.
  if (used != 0) queue->wait(used);
  for (std::size_t i = 0; i < used; ++i) {
    ReadScratch::Slot& slot = *scratch.slots_[i];
    const bool whole = slot.result >= 0 && slot.piece.start + static_cast<std::uint64_t>(slot.result) >= slot.piece.end;
    // What went wrong shows, and is told, when it is read alone.
    slot.read->status =
        whole ? take_piece(*slot.job, slot.piece, slot.buffer.span()) : read_piece(*slot.job, slot.piece);
    slot.file.reset();
  }
}

// --- without blocking ---

struct AsyncRead::State final : IoCompletion {
  void on_io_done(int result) override {
    const bool whole = result >= 0 && piece.start + static_cast<std::uint64_t>(result) >= piece.end;
    outcome = whole ? view->take_piece(*job, piece, buffer.span())
                    : Status(fail(Code::busy, view->describe(), "the disk did not give it"));
    file.reset();
    pin.reset();
    view.reset();
    const auto tell = std::move(done);  // it may begin the next one
    done = nullptr;
    tell();
  }

  AlignedBuffer buffer;                  // as large as was needed so far
  std::shared_ptr<const DiskView> view;  // while it is under way
  std::optional<ReaderPins::Scope> pin;
  std::optional<DiskView::Job> job;
  std::vector<DiskView::LayerExtent> extents;
  DiskView::Piece piece;
  std::shared_ptr<File> file;
  std::function<void()> done;
  Status outcome;
};

AsyncRead::AsyncRead() : state_(std::make_unique<State>()) {}
AsyncRead::~AsyncRead() { TIDEMARK_CHECK(!under_way()); }
bool AsyncRead::under_way() const { return state_->view != nullptr; }
const Status& AsyncRead::outcome() const { return state_->outcome; }

AsyncRead::Begun AsyncRead::begin(std::shared_ptr<const DiskView> view, const DiskRead& read, ReadScratch& scratch,
                                  IoQueue& queue, std::function<void()> done) {
  State& state = *state_;
  TIDEMARK_CHECK(!under_way());
  const std::uint64_t end = read.offset + read.to.size();
  if (read.to.empty() || read.to.size() > kSizeMax || read.offset % kGranule != 0 || read.to.size() % kGranule != 0 ||
      read.offset / kStep != (end - 1) / kStep || !view->check_range(read.offset, read.to.size()))
    return Begun::no;
  state.pin.emplace(view->context_->pins);
  state.job.emplace(DiskView::Job{.first = read.offset / kGranule,
                                  .granules = read.to.size() / kGranule,
                                  .to = read.to,
                                  .scratch = scratch,
                                  .zeroes = read.zeroes,
                                  .reach = Reach::memory});
  const auto give_up = [&] {
    if (read.zeroes != nullptr) read.zeroes->clear();
    state.pin.reset();
    return Begun::no;
  };
  auto extents = view->plan(*state.job);
  if (!extents) return give_up();
  if (extents->empty()) {
    state.outcome = {};
    state.pin.reset();
    return Begun::done;
  }
  state.extents = *std::move(extents);
  const bool slow = std::ranges::any_of(state.extents, [](const DiskView::LayerExtent& extent) {
    return (extent.sealed || extent.encoding != wire::Encoding::raw) && extent.block_granules > kDecodedHereMax;
  });
  if (slow) return give_up();
  const auto pieces = DiskView::pieces_of(state.extents);
  if (pieces.size() != 1 || pieces.front().size() > kPieceMax) return give_up();
  state.file = view->context_->segments.find(pieces.front().extents.front().segment);
  if (!state.file) return give_up();
  state.piece = pieces.front();
  if (state.buffer.size() < state.piece.size()) state.buffer = AlignedBuffer(state.piece.size());
  state.view = std::move(view);
  state.done = std::move(done);
  queue.read(*state.file, state.piece.start, state.buffer.span().first(state.piece.size()), state);
  return Begun::reading;
}

Status DiskView::prefetch(std::uint64_t offset, std::uint64_t length, ReadScratch& scratch) const {
  TIDEMARK_TRY(check_range(offset, length));
  const std::uint64_t end = round_up(offset + length, kGranule);
  for (std::uint64_t at = round_down(offset, kGranule); at < end && cache_;) {
    const std::uint64_t next = std::min(end, round_down(at, kStep) + kStep);
    Job job{at / kGranule, (next - at) / kGranule, {}, scratch, nullptr};
    TIDEMARK_TRY(read_granules(job));
    at = next;
  }
  return {};
}

Result<std::vector<ByteRange>> DiskView::map(std::uint64_t offset, std::uint64_t length) const {
  TIDEMARK_TRY(check_range(offset, length));
  std::vector<ByteRange> ranges;
  if (length == 0) return ranges;
  std::uint64_t end = offset + length;
  // Past what was never written in one step, then as much as one lookup may hold.
  const auto region = static_cast<std::uint32_t>(offset / limits::kRegionSize);
  std::uint64_t written = end;
  for (const ReadLayer& layer : target_->layers) {
    const auto next = TIDEMARK_TRY(context_->index->regions(layer.volume, region, 1));
    if (!next.empty()) written = std::min(written, std::max(offset, std::uint64_t{next.front()} * limits::kRegionSize));
  }
  end = std::min(end, written + kMapWindow);
  const std::uint64_t first = offset / kGranule;
  const std::uint64_t count = (end + kGranule - 1) / kGranule - first;
  const auto extents = TIDEMARK_TRY(lookup(first, count, Reach::disk));
  std::uint64_t at = offset;
  const auto add = [&](std::uint64_t until, bool zero) {
    until = std::min(until, end);
    if (until <= at) return;
    if (!ranges.empty() && ranges.back().zero == zero) {
      ranges.back().length += until - at;
    } else {
      ranges.push_back({.offset = at, .length = until - at, .zero = zero});
    }
    at = until;
  };
  for (const LayerExtent& extent : extents) {
    if (extent.encoding == wire::Encoding::zero) continue;
    add(extent.first_granule * kGranule, true);
    add((extent.first_granule + extent.granules) * kGranule, false);
  }
  add(end, true);
  return ranges;
}

Status DiskView::check_range(std::uint64_t offset, std::uint64_t length) const {
  if (offset <= target_->disk_size && length <= target_->disk_size - offset) return {};
  return fail(Code::invalid_argument, describe(),
              fmt::format("bytes {} to {} are asked for, and it has {}", offset, offset + length, target_->disk_size));
}

std::string DiskView::describe() const {
  return fmt::format("machine {}, disk {}", target_->machine_name, target_->disk.value());
}

// Of one layer. What is asked for of a region is kept for all of it: who reads at random comes back to it. The caller
// has a pin.
Result<std::vector<Extent>> DiskView::extents_of(const ReadLayer& layer, std::uint64_t first, std::uint64_t count,
                                                 Reach reach) const {
  const Index& index = *context_->index;
  const std::uint64_t region = first / limits::kRegionGranules;
  const bool within_one = (first + count - 1) / limits::kRegionGranules == region;
  if (!cache_ || !within_one) {
    if (reach == Reach::memory) return fail(Code::busy, {}, "the index has to be asked");
    return index.lookup(layer.machine, layer.volume, layer.as_of, first, count);
  }
  const RegionMaps::Key key{context_->number, layer.volume, layer.as_of, static_cast<std::uint32_t>(region)};
  const auto version = index.places().of(layer.volume);
  auto map = version ? cache_->regions().find(key) : nullptr;
  if (!map || map->version != *version) {
    if (reach == Reach::memory) return fail(Code::busy, {}, "the index has to be asked");
    map = std::make_shared<const RegionMaps::Map>(
        version.value_or(0), TIDEMARK_TRY(index.lookup(layer.machine, layer.volume, layer.as_of,
                                                       region * limits::kRegionGranules, limits::kRegionGranules)));
    if (version && index.places().of(layer.volume) == version) cache_->regions().put(key, map);
  }
  std::vector<Extent> extents;
  auto extent = std::partition_point(map->extents.begin(), map->extents.end(),
                                     [&](const Extent& one) { return one.first_granule + one.granules <= first; });
  for (; extent != map->extents.end() && extent->first_granule < first + count; ++extent) {
    const std::uint64_t from = std::max(first, extent->first_granule);
    const std::uint64_t until = std::min(first + count, extent->first_granule + extent->granules);
    Extent& part = extents.emplace_back(*extent);
    part.first_granule = from;
    part.granules = static_cast<std::uint32_t>(until - from);
  }
  return extents;
}

// What shows of all layers together, in order.
Result<std::vector<DiskView::LayerExtent>> DiskView::lookup(std::uint64_t first, std::uint64_t count,
                                                            Reach reach) const {
  std::vector<LayerExtent> shown;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> open{{first, first + count}};  // not covered so far
  for (const ReadLayer& layer : target_->layers) {
    if (open.empty()) break;
    const std::uint64_t from = open.front().first;
    const auto extents = TIDEMARK_TRY(extents_of(layer, from, open.back().second - from, reach));
    std::vector<std::pair<std::uint64_t, std::uint64_t>> still_open;
    auto extent = extents.begin();
    for (auto [at, end] : open) {
      while (extent != extents.end() && extent->first_granule + extent->granules <= at) ++extent;
      // One may reach over several gaps.
      for (auto part = extent; part != extents.end() && part->first_granule < end; ++part) {
        const std::uint64_t start = std::max(at, part->first_granule);
        const std::uint64_t stop = std::min(end, part->first_granule + part->granules);
        if (start > at) still_open.emplace_back(at, start);
        LayerExtent& piece = shown.emplace_back();
        static_cast<Extent&>(piece) = *part;
        piece.layer = &layer;
        if (const auto depth = &layer - target_->layers.data(); depth > 0)
          leave_mark(depth == 1 ? Mark::clone_reads_parent : Mark::clone_of_clone_read);
        piece.first_granule = start;
        piece.granules = static_cast<std::uint32_t>(stop - start);
        at = stop;
      }
      if (at < end) still_open.emplace_back(at, end);
    }
    open = std::move(still_open);
  }
  if (target_->layers.size() > 1) {
    std::sort(shown.begin(), shown.end(),
              [](const Extent& a, const Extent& b) { return a.first_granule < b.first_granule; });
  }
  return shown;
}

Status DiskView::read_granules(Job& job) const {
  // From the look into the index to the last read no segment is used again; between reads any may be.
  const ReaderPins::Scope pinned(context_->pins);
  const auto extents = TIDEMARK_TRY(plan(job));
  for (const Piece& piece : pieces_of(extents)) TIDEMARK_TRY(read_piece(job, piece));
  return {};
}

// What has to be read, in the order in which it stands; zeroes and what the cache has are there already.
Result<std::vector<DiskView::LayerExtent>> DiskView::plan(Job& job) const {
  auto extents = TIDEMARK_TRY(lookup(job.first, job.granules, job.reach));
  std::erase_if(extents, [](const Extent& extent) { return extent.encoding == wire::Encoding::zero; });
  if (!job.to.empty()) {
    std::uint64_t at = job.first;
    const auto zero_until = [&](std::uint64_t granule) {
      if (granule <= at) return;
      if (job.zeroes == nullptr) {
        std::memset(job.to.data() + (at - job.first) * kGranule, 0, (granule - at) * kGranule);
      } else {
        job.zeroes->push_back({.offset = at * kGranule, .length = (granule - at) * kGranule, .zero = true});
      }
    };
    for (const LayerExtent& extent : extents) {
      zero_until(extent.first_granule);
      at = extent.first_granule + extent.granules;
    }
    zero_until(job.first + job.granules);
  }
  if (cache_) {
    std::erase_if(extents, [&](LayerExtent& extent) {
      const BlockCache::Place place{context_->number, extent.segment, extent.offset};
      if (job.to.empty()) return cache_->has(place);
      const auto block = cache_->find(place);
      if (block)
        std::memcpy(job.place(extent).data(),
                    block->data() + (extent.first_granule - extent.block_first_granule) * kGranule,
                    std::size_t{extent.granules} * kGranule);
      if (block == nullptr && extent.encoding == wire::Encoding::raw && !extent.sealed &&
          extent.granules < extent.block_granules) {
        if (const auto hashes = cache_->hashes().find(place)) {
          extent.known = static_cast<int>(job.known.size());
          job.known.push_back(*hashes);
        }
      }
      return block != nullptr;
    });
  }
  std::sort(extents.begin(), extents.end(), [](const LayerExtent& a, const LayerExtent& b) {
    return std::tuple(a.segment, a.offset, a.first_granule) < std::tuple(b.segment, b.offset, b.first_granule);
  });
  return extents;
}

std::vector<DiskView::Piece> DiskView::pieces_of(std::span<const LayerExtent> extents) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < extents.size();) {
    const std::uint64_t start = round_down(extents[i].begin(), limits::kIoAlignment);
    std::uint64_t end = extents[i].end();
    std::size_t last = i + 1;
    for (; last < extents.size() && extents[last].segment == extents[i].segment; ++last) {
      if (extents[last].begin() < start || extents[last].begin() > end + kGapMax) break;
      if (extents[last].end() > start + kReadMax) break;
      end = std::max(end, extents[last].end());
    }
    pieces.push_back({.extents = extents.subspan(i, last - i), .start = start, .end = end});
    i = last;
  }
  return pieces;
}

Result<std::shared_ptr<File>> DiskView::open_segment(const Piece& piece) const {
  auto file = context_->segments.open(piece.extents.front().segment);
  if (file) return file;
  return damaged(piece.extents.front(), file.error().code, "its segment: " + file.error().message(),
                 file.error().code == Code::not_found);
}

Status DiskView::read_piece(Job& job, const Piece& piece) const {
  AlignedBuffer& buffer = job.scratch.piece_;
  if (buffer.size() < piece.size()) buffer = AlignedBuffer(std::max<std::size_t>(piece.size(), kReadMax + kGapMax));
  const auto file = TIDEMARK_TRY(open_segment(piece));
  const LayerExtent& first = piece.extents.front();
  const auto read = file->read_at(piece.start, buffer.span().first(piece.size()));
  if ((!read || piece.start + *read < piece.end) && piece.extents.size() > 1) {
    // Which of them it is only shows when each is read alone; the others are good.
    for (const LayerExtent& extent : piece.extents)
      TIDEMARK_TRY(read_piece(job, {.extents = std::span(&extent, 1),
                                    .start = round_down(extent.begin(), limits::kIoAlignment),
                                    .end = extent.end()}));
    return {};
  }
  if (!read) return damaged(first, read.error().code, read.error().what);
  if (piece.start + *read < piece.end) return damaged(first, Code::corrupt, "the segment ends before it");
  return take_piece(job, piece, buffer.span());
}

// The blocks of what was read.
Status DiskView::take_piece(Job& job, const Piece& piece, std::span<const std::byte> bytes) const {
  const auto& extents = piece.extents;
  for (std::size_t i = 0; i < extents.size();) {
    const LayerExtent& extent = extents[i];
    const std::span<const std::byte> block = bytes.subspan(extent.begin() - piece.start, extent.end() - extent.begin());
    if (extent.known >= 0) {
      TIDEMARK_TRY(take_known(job, extent, block));
      ++i;
      continue;
    }
    std::size_t last = i + 1;  // parts of one block stand next to each other: it is decoded once
    while (last < extents.size() && extents[last].offset == extent.offset) ++last;
    if (extent.granules == extent.block_granules && !job.to.empty()) {
      TIDEMARK_TRY(decode(job, extent, block, job.place(extent)));
      i = last;
      continue;
    }
    // More of it is likely to be asked for.
    const std::size_t plain_size = std::size_t{extent.block_granules} * kGranule;
    std::shared_ptr<AlignedBuffer> kept;
    if (cache_) kept = std::make_shared<AlignedBuffer>(plain_size);
    if (!kept && !job.scratch.plain_) job.scratch.plain_ = AlignedBuffer(limits::kBlockPlainSizeMax);
    AlignedBuffer& plain = kept ? *kept : job.scratch.plain_;
    TIDEMARK_TRY(decode(job, extent, block, plain.span().first(plain_size)));
    for (; i < last; ++i) {
      if (job.to.empty()) continue;
      std::memcpy(job.place(extents[i]).data(),
                  plain.data() + (extents[i].first_granule - extents[i].block_first_granule) * kGranule,
                  std::size_t{extents[i].granules} * kGranule);
    }
    if (!kept) continue;
    const BlockCache::Place place{context_->number, extent.segment, extent.offset};
    if (extent.encoding == wire::Encoding::raw && !extent.sealed)
      cache_->hashes().put(place, plain.span().first(plain_size));
    cache_->put(place, std::move(kept));
  }
  return {};
}

// Part of a block that was found sound before: its granules, when they are still what they were then.
Status DiskView::take_known(Job& job, const LayerExtent& extent, std::span<const std::byte> granules) const {
  const auto& hashes = job.known[static_cast<std::size_t>(extent.known)];
  for (std::size_t i = 0; i < extent.granules; ++i) {
    if (GranuleHashes::of(granules.subspan(i * kGranule, kGranule)) !=
        hashes[extent.first_granule - extent.block_first_granule + i])
      return damaged(extent, Code::corrupt, "a part of it is not what it was when it was read before");
  }
  std::memcpy(job.place(extent).data(), granules.data(), granules.size());
  return {};
}

Status DiskView::decode(Job& job, const LayerExtent& extent, std::span<const std::byte> block,
                        std::span<std::byte> plain) const {
  wire::BlockHeader header;
  std::memcpy(&header, block.data(), sizeof header);
  const std::span<const std::byte> stored = block.subspan(sizeof header);
  if (planted(Planted::skip_block_checksum)) {
    header.granules = extent.block_granules;
    header.stored_size = extent.stored_size;
    header.encoding = static_cast<std::uint8_t>(extent.encoding);
    header.flags = extent.sealed ? wire::kSealedFlag : std::uint8_t{0};
  } else if (const auto damage = find_damage(extent.layer->machine, target_->disk, extent, header, stored)) {
    return damaged(extent, Code::corrupt, *damage);
  }
  // What a clone shows of its parent was sealed with the parent's key.
  const auto status =
      job.scratch.decoder(context_->keys).decode(extent.layer->machine, extent.layer->volume, header, stored, plain);
  if (!status) return damaged(extent, Code::corrupt, status.error().what);
  return {};
}

// `stored`: what stands on the disk is to blame.
std::unexpected<Error> DiskView::damaged(const LayerExtent& extent, Code code, const std::string& what,
                                         bool stored) const {
  if (code == Code::not_found) code = Code::corrupt;  // a segment that is needed is not there
  context_->damaged_reads.fetch_add(1, std::memory_order_relaxed);
  if (stored) {
    context_->damage.report({.machine = extent.layer->machine,
                             .volume = extent.layer->volume,
                             .disk = target_->disk,
                             .epoch = extent.epoch,
                             .first_granule = extent.block_first_granule,
                             .granules = extent.block_granules,
                             .segment = extent.segment,
                             .offset = extent.offset,
                             .stored_size = extent.stored_size,
                             .what = what});
  }
  return fail(code, describe(),
              fmt::format("bytes {} to {} of epoch {} cannot be read (segment {}, offset {}): {}",
                          extent.block_first_granule * kGranule,
                          (extent.block_first_granule + extent.block_granules) * kGranule, extent.epoch.value(),
                          extent.segment.value(), extent.offset, what),
              code == Code::corrupt
                  ? "other ranges and points can be read; `tidemark damage` tells which points are affected, and the "
                    "machine is asked to send again what its newest state needs"
                  : "");
}

}  // namespace tidemark::storage
