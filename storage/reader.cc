#include "storage/reader.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/aligned_buffer.h"
#include "base/units.h"
#include "storage/cold_segment.h"
#include "storage/disk_reader.h"
#include "storage/disk_view.h"
#include "storage/sealing.h"
#include "storage/segment_keeper.h"
#include "wire/block.h"

namespace tidemark::storage {

namespace {

constexpr std::uint64_t kWindow = 1_MiB;  // decoded ahead of a sequential reader
constexpr std::uint64_t kGranule = limits::kGranuleSize;

// A view with buffers of its own, and a window ahead of who reads one piece after the other.
class DiskReader final : public Reader {
 public:
  explicit DiskReader(std::shared_ptr<const DiskView> view) : view_(std::move(view)) {}

  std::uint64_t disk_size() const override { return view_->disk_size(); }
  EpochNumber epoch() const override { return view_->epoch(); }

  Status read(std::uint64_t offset, std::span<std::byte> to) override {
    const bool sequential = offset == next_offset_ && offset != 0;
    next_offset_ = offset + to.size();
    const std::uint64_t disk_size = view_->disk_size();
    if (offset > disk_size || to.size() > disk_size - offset) return view_->read(offset, to, scratch_);  // says so
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
      if (sequential && want < kWindow && offset + want < disk_size && window_end != damaged_window_end_) {
        const std::uint64_t start = round_down(offset, kGranule);
        if (!window_) window_ = AlignedBuffer(kWindow);
        window_size_ = 0;
        const std::uint64_t size = std::min(window_end, disk_size) - start;
        if (view_->read(start, window_.span().first(size), scratch_)) {
          window_start_ = start;
          window_size_ = size;
          continue;
        }
        // What is asked for may be sound, and the damage behind it: from here to the window's end nothing is read
        // ahead.
        damaged_window_end_ = window_end;
      }
      TIDEMARK_TRY(view_->read(offset, to.first(want), scratch_));
      offset += want;
      to = to.subspan(want);
    }
    return {};
  }

  Result<std::vector<ByteRange>> map(std::uint64_t offset, std::uint64_t length) override {
    return view_->map(offset, length);
  }

 private:
  const std::shared_ptr<const DiskView> view_;
  ReadScratch scratch_;
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

std::shared_ptr<File> SegmentFiles::find(SegmentId segment) {
  const std::lock_guard lock(mutex_);
  const auto found = by_segment_.find(segment);
  if (found == by_segment_.end()) return nullptr;
  recent_.splice(recent_.begin(), recent_, found->second);
  return found->second->second;
}

Result<std::shared_ptr<File>> SegmentFiles::open(SegmentId segment) {
  if (auto known = find(segment)) return known;
  auto opened = files_.open(
      is_cold(segment) ? cold_path(directory_ + "/cold", segment) : segment_path(directory_ + "/log", segment),
      OpenMode::read, true);
  // A segment that is not there is damage, unless nothing is: then its disk was taken away, and may come back.
  if (!opened && opened.error().code == Code::not_found && !TIDEMARK_TRY(files_.exists(directory_ + "/partition")))
    return fail(Code::unavailable, directory_, "the partition's directory is empty", "is its disk mounted?");
  std::shared_ptr<File> file = TIDEMARK_TRY(std::move(opened));
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

std::unique_ptr<Reader> make_reader(std::shared_ptr<const DiskView> view) {
  return std::make_unique<DiskReader>(std::move(view));
}

std::unique_ptr<Reader> make_reader(std::shared_ptr<ReadContext> context, ReadTarget target) {
  return make_reader(std::make_shared<const DiskView>(std::move(context), std::move(target), nullptr));
}

}  // namespace tidemark::storage
