#include "storage/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/aligned_buffer.h"
#include "base/planted.h"
#include "base/units.h"
#include "storage/cold_segment.h"
#include "storage/disk_reader.h"
#include "storage/sealing.h"
#include "storage/segment_keeper.h"
#include "wire/block.h"

namespace tidemark::storage {

namespace {

constexpr std::uint64_t kReadMax = 1_MiB;     // of one read of a segment
constexpr std::uint64_t kGapMax = 64_KiB;     // read over rather than apart
constexpr std::uint64_t kWindow = 1_MiB;      // decoded ahead of a sequential reader
constexpr std::uint64_t kMapWindow = 64_MiB;  // looked up at a time by map() where there is data
constexpr std::uint64_t kGranule = limits::kGranuleSize;

class DiskReader final : public Reader {
 public:
  DiskReader(std::shared_ptr<ReadContext> context, ReadTarget target)
      : context_(std::move(context)), target_(std::move(target)), decoder_(context_->keys) {}
  ~DiskReader() override {
    for (const ReadLayer& layer : target_.layers) context_->uses.end(layer.machine, layer.epoch);
  }

  std::uint64_t disk_size() const override { return target_.disk_size; }
  EpochNumber epoch() const override { return target_.epoch; }

  Status read(std::uint64_t offset, std::span<std::byte> to) override {
    TIDEMARK_TRY(check_range(offset, to.size()));
    const bool sequential = offset == next_offset_ && offset != 0;
    next_offset_ = offset + to.size();
    while (!to.empty()) {
      if (offset >= window_start_ && offset < window_start_ + window_size_) {
        const std::uint64_t within = offset - window_start_;
        const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(to.size(), window_size_ - within));
        std::memcpy(to.data(), window_.data() + within, n);
        offset += n;
        to = to.subspan(n);
        continue;
      }
      // Whole windows go straight to the caller; a part of one goes through the window when more is likely to follow.
      const std::uint64_t window_end = round_down(offset, kWindow) + kWindow;
      const std::uint64_t want = std::min<std::uint64_t>(to.size(), window_end - offset);
      if (sequential && want < kWindow && offset + want < target_.disk_size && window_end != damaged_window_end_) {
        const std::uint64_t start = round_down(offset, kGranule);
        if (!window_) window_ = AlignedBuffer(kWindow);
        window_size_ = 0;
        const std::uint64_t size = std::min(window_end, round_up(target_.disk_size, kGranule)) - start;
        if (read_granules(start / kGranule, window_.span().first(size))) {
          window_start_ = start;
          window_size_ = size;
          continue;
        }
        // What is asked for may be sound, and the damage behind it: from here to the window's end nothing is read
        // ahead.
        damaged_window_end_ = window_end;
      }
      if (offset % kGranule == 0 && want % kGranule == 0) {
        TIDEMARK_TRY(read_granules(offset / kGranule, to.first(want)));
      } else {
        const std::uint64_t start = round_down(offset, kGranule);
        const std::uint64_t end = round_up(offset + want, kGranule);
        if (!edge_) edge_ = AlignedBuffer(kWindow);
        TIDEMARK_TRY(read_granules(start / kGranule, edge_.span().first(end - start)));
        std::memcpy(to.data(), edge_.data() + (offset - start), want);
      }
      offset += want;
      to = to.subspan(want);
    }
    return {};
  }

  Result<std::vector<ByteRange>> map(std::uint64_t offset, std::uint64_t length) override {
    TIDEMARK_TRY(check_range(offset, length));
    std::vector<ByteRange> ranges;
    if (length == 0) return ranges;
    std::uint64_t end = offset + length;
    // Past what was never written in one step, then as much as one lookup may hold.
    const auto region = static_cast<std::uint32_t>(offset / limits::kRegionSize);
    std::uint64_t written = end;
    for (const ReadLayer& layer : target_.layers) {
      const auto next = TIDEMARK_TRY(context_->index->regions(layer.volume, region, 1));
      if (!next.empty())
        written = std::min(written, std::max(offset, std::uint64_t{next.front()} * limits::kRegionSize));
    }
    end = std::min(end, written + kMapWindow);
    const std::uint64_t first = offset / kGranule;
    const std::uint64_t count = (end + kGranule - 1) / kGranule - first;
    const auto extents = TIDEMARK_TRY(lookup(first, count));
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

 private:
  Status check_range(std::uint64_t offset, std::uint64_t length) const {
    if (offset <= target_.disk_size && length <= target_.disk_size - offset) return {};
    return fail(Code::invalid_argument, describe(),
                fmt::format("bytes {} to {} are asked for, and it has {}", offset, offset + length, target_.disk_size));
  }

  std::string describe() const {
    return fmt::format("machine {}, disk {}", target_.machine_name, target_.disk.value());
  }

  struct LayerExtent : Extent {
    const ReadLayer* layer = nullptr;
  };

  // What shows of all layers together, in order.
  Result<std::vector<LayerExtent>> lookup(std::uint64_t first, std::uint64_t count) const {
    std::vector<LayerExtent> shown;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> open{{first, first + count}};  // not covered so far
    for (const ReadLayer& layer : target_.layers) {
      if (open.empty()) break;
      const std::uint64_t from = open.front().first;
      const auto extents = TIDEMARK_TRY(
          context_->index->lookup(layer.machine, layer.volume, layer.as_of, from, open.back().second - from));
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
          piece.first_granule = start;
          piece.granules = static_cast<std::uint32_t>(stop - start);
          at = stop;
        }
        if (at < end) still_open.emplace_back(at, end);
      }
      open = std::move(still_open);
    }
    if (target_.layers.size() > 1) {
      std::sort(shown.begin(), shown.end(),
                [](const Extent& a, const Extent& b) { return a.first_granule < b.first_granule; });
    }
    return shown;
  }

  // Whole granules, at most kWindow of them.
  Status read_granules(std::uint64_t first, std::span<std::byte> to) {
    // From the look into the index to the last read no segment is used again; between reads any may be.
    const ReaderPins::Scope pinned(context_->pins);
    auto extents = TIDEMARK_TRY(lookup(first, to.size() / kGranule));
    std::memset(to.data(), 0, to.size());
    std::erase_if(extents, [](const Extent& extent) { return extent.encoding == wire::Encoding::zero; });
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
      return std::pair(a.segment, a.offset) < std::pair(b.segment, b.offset);
    });
    for (std::size_t i = 0; i < extents.size();) {
      const std::uint64_t start = round_down(extents[i].offset, limits::kIoAlignment);
      std::uint64_t end = end_of(extents[i]);
      std::size_t last = i + 1;
      for (; last < extents.size() && extents[last].segment == extents[i].segment; ++last) {
        if (extents[last].offset > end + kGapMax || end_of(extents[last]) > start + kReadMax) break;
        end = std::max(end, end_of(extents[last]));
      }
      TIDEMARK_TRY(read_piece(std::span(extents).subspan(i, last - i), start, end, first, to));
      i = last;
    }
    return {};
  }

  static std::uint64_t end_of(const Extent& extent) {
    return std::uint64_t{extent.offset} + limits::kBlockHeaderSize + extent.stored_size;
  }

  // One read of one segment, and the blocks in it.
  Status read_piece(std::span<const LayerExtent> extents, std::uint64_t start, std::uint64_t end, std::uint64_t first,
                    std::span<std::byte> to) {
    const std::size_t size = round_up(end, limits::kIoAlignment) - start;
    if (piece_.size() < size) piece_ = AlignedBuffer(std::max<std::size_t>(size, kReadMax + kGapMax));
    const auto file = context_->segments.open(extents.front().segment);
    if (!file) {
      return damaged(extents.front(), file.error().code, "its segment: " + file.error().message(),
                     file.error().code == Code::not_found);
    }
    const auto read = (*file)->read_at(start, piece_.span().first(size));
    if ((!read || start + *read < end) && extents.size() > 1) {
      // Which of them it is only shows when each is read alone; the others are good.
      for (const LayerExtent& extent : extents) {
        TIDEMARK_TRY(read_piece(std::span(&extent, 1), round_down(extent.offset, limits::kIoAlignment), end_of(extent),
                                first, to));
      }
      return {};
    }
    if (!read) return damaged(extents.front(), read.error().code, read.error().what);
    if (start + *read < end) return damaged(extents.front(), Code::corrupt, "the segment ends before it");
    const LayerExtent* decoded = nullptr;  // parts of one block stand next to each other: it is decoded once
    for (const LayerExtent& extent : extents) {
      const std::span<const std::byte> block =
          piece_.span().subspan(extent.offset - start, end_of(extent) - extent.offset);
      wire::BlockHeader header;
      std::memcpy(&header, block.data(), sizeof header);
      const std::span<const std::byte> stored = block.subspan(sizeof header);
      if (decoded == nullptr || decoded->offset != extent.offset) {
        decoded = nullptr;
        TIDEMARK_TRY(check(extent, header, stored));
        // The size that the index knows is what counts: the header was compared with it.
        const std::size_t plain = std::size_t{extent.block_granules} * kGranule;
        // What a clone shows of its parent was sealed with the parent's key.
        auto status =
            decoder_.decode(extent.layer->machine, extent.layer->volume, header, stored, plain_.span().first(plain));
        if (!status) return damaged(extent, Code::corrupt, status.error().what);
        decoded = &extent;
      }
      std::memcpy(to.data() + (extent.first_granule - first) * kGranule,
                  plain_.data() + (extent.first_granule - extent.block_first_granule) * kGranule,
                  std::size_t{extent.granules} * kGranule);
    }
    return {};
  }

  Status check(const LayerExtent& extent, wire::BlockHeader& header, std::span<const std::byte> stored) {
    if (planted(Planted::skip_block_checksum)) {
      header.granules = extent.block_granules;
      header.stored_size = extent.stored_size;
      header.encoding = static_cast<std::uint8_t>(extent.encoding);
      header.flags = extent.sealed ? wire::kSealedFlag : std::uint8_t{0};
      return {};
    }
    const auto damage = find_damage(extent.layer->machine, target_.disk, extent, header, stored);
    return damage ? Status(damaged(extent, Code::corrupt, *damage)) : Status();
  }

  // `stored`: what stands on the disk is to blame.
  std::unexpected<Error> damaged(const LayerExtent& extent, Code code, const std::string& what,
                                 bool stored = true) const {
    if (code == Code::not_found) code = Code::corrupt;  // a segment that is needed is not there
    context_->damaged_reads.fetch_add(1, std::memory_order_relaxed);
    if (stored) {
      context_->damage.report({.machine = extent.layer->machine,
                               .volume = extent.layer->volume,
                               .disk = target_.disk,
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

  const std::shared_ptr<ReadContext> context_;
  const ReadTarget target_;
  StoredDecoder decoder_;
  AlignedBuffer piece_;
  AlignedBuffer plain_{limits::kBlockPlainSizeMax};
  AlignedBuffer edge_;
  AlignedBuffer window_;
  std::uint64_t window_start_ = 0;
  std::uint64_t window_size_ = 0;
  std::uint64_t damaged_window_end_ = 0;
  std::uint64_t next_offset_ = std::numeric_limits<std::uint64_t>::max();
};

}  // namespace

std::optional<std::string> find_damage(const MachineId& machine, DiskId disk, const Extent& extent,
                                       const wire::BlockHeader& header, std::span<const std::byte> stored) {
  if (header.first_granule != extent.block_first_granule || header.granules != extent.block_granules ||
      header.disk != disk.value() || header.epoch != extent.epoch.value() ||
      header.encoding != static_cast<std::uint8_t>(extent.encoding) || header.stored_size != extent.stored_size ||
      header.sealed() != extent.sealed) {
    return "another block, or none, stands where it should be";
  }
  if (wire::block_hash(machine, header, stored) != header.hash()) return "its checksum does not match";
  return std::nullopt;
}

std::optional<std::string> open_block(const MachineId& machine, VolumeId volume, DiskId disk, const Extent& extent,
                                      std::span<const std::byte> block, StoredDecoder& decoder,
                                      std::span<std::byte> plain) {
  wire::BlockHeader header;
  std::memcpy(&header, block.data(), sizeof header);
  const std::span<const std::byte> stored = block.subspan(sizeof header);
  if (auto damage = find_damage(machine, disk, extent, header, stored)) return damage;
  const auto decoded = decoder.decode(machine, volume, header, stored,
                                      plain.first(std::size_t{extent.block_granules} * limits::kGranuleSize));
  return decoded ? std::nullopt : std::optional(decoded.error().what);
}

Result<std::shared_ptr<File>> SegmentFiles::open(SegmentId segment) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = by_segment_.find(segment);
    if (found != by_segment_.end()) {
      recent_.splice(recent_.begin(), recent_, found->second);
      return found->second->second;
    }
  }
  std::shared_ptr<File> file = TIDEMARK_TRY(files_.open(
      is_cold(segment) ? cold_path(directory_ + "/cold", segment) : segment_path(directory_ + "/log", segment),
      OpenMode::read, true));
  const std::lock_guard lock(mutex_);
  const auto found = by_segment_.find(segment);
  if (found != by_segment_.end()) return found->second->second;
  recent_.emplace_front(segment, file);
  by_segment_[segment] = recent_.begin();
  if (recent_.size() > kOpenMax) {
    by_segment_.erase(recent_.back().first);
    recent_.pop_back();
  }
  return file;
}

void SegmentFiles::forget(SegmentId segment) {
  const std::lock_guard lock(mutex_);
  const auto found = by_segment_.find(segment);
  if (found == by_segment_.end()) return;
  recent_.erase(found->second);
  by_segment_.erase(found);
}

std::unique_ptr<Reader> make_reader(std::shared_ptr<ReadContext> context, ReadTarget target) {
  return std::make_unique<DiskReader>(std::move(context), std::move(target));
}

}  // namespace tidemark::storage
