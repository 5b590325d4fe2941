// What was written between two epochs. The index has a key for each record and region; of a region, those that are
// newer than the older epoch and not newer than the newer one tell what was written. A fold keeps each extent's own
// LSN, and everything that shows at a point, so it takes away nothing that counts.
#include "storage/changes.h"

#include <algorithm>
#include <cstring>

#include "base/units.h"
#include "storage/partition_impl.h"
#include "wire/block.h"

namespace tidemark::storage {
namespace {

constexpr std::size_t kRangesMax = 4096;  // about, of one call
constexpr std::uint64_t kCompared = 256_KiB;
constexpr std::uint64_t kGranule = limits::kGranuleSize;

struct Between {
  MachineId machine;
  VolumeId volume;
  Lsn after, upto;
  bool on_base = false;  // of a clone: what it did not write is not zero
};

class IndexChanges final : public Changes {
 public:
  IndexChanges(std::shared_ptr<ReadContext> context, Between between, std::unique_ptr<Reader> from,
               std::unique_ptr<Reader> to)
      : context_(std::move(context)), between_(between), from_(std::move(from)), to_(std::move(to)) {}

  std::uint64_t from_size() const override { return from_ ? from_->disk_size() : 0; }
  std::uint64_t to_size() const override { return to_->disk_size(); }

  Result<std::vector<ByteRange>> next() override {
    std::vector<ByteRange> ranges;
    const std::uint64_t end = std::max(from_size(), to_size());
    while (region_ && ranges.size() < kRangesMax) {
      const auto written = TIDEMARK_TRY(
          context_->index->written(between_.machine, between_.volume, between_.after, between_.upto, *region_));
      if (!written) {
        region_.reset();
        break;
      }
      region_ = written->region + 1;
      TIDEMARK_TRY(add(*written, end, ranges));
    }
    return ranges;
  }

  Result<std::vector<ByteRange>> differing(const std::vector<ByteRange>& ranges) override {
    std::vector<ByteRange> found;
    std::vector<std::byte> before(kCompared), now(kCompared);
    const std::uint64_t common = std::min(from_size(), to_size());
    const auto add = [&](std::uint64_t at, std::uint64_t length, bool zero) {
      if (!found.empty() && found.back().offset + found.back().length == at && found.back().zero == zero)
        found.back().length += length;
      else
        found.push_back({.offset = at, .length = length, .zero = zero});
    };
    for (const ByteRange& range : ranges) {
      const std::uint64_t end = range.offset + range.length;
      std::uint64_t at = range.offset;
      while (at < std::min(end, common)) {
        const auto n = static_cast<std::size_t>(std::min({kCompared, end - at, common - at}));
        TIDEMARK_TRY(from_->read(at, std::span(before).first(n)));
        TIDEMARK_TRY(to_->read(at, std::span(now).first(n)));
        for (std::size_t i = 0; i < n; i += kGranule) {
          const std::size_t length = std::min<std::size_t>(kGranule, n - i);
          if (std::memcmp(before.data() + i, now.data() + i, length) != 0) add(at + i, length, range.zero);
        }
        at += n;
      }
      if (at < end) add(at, end - at, range.zero);
    }
    return found;
  }

 private:
  Status add(const WrittenRegion& written, std::uint64_t end, std::vector<ByteRange>& ranges) {
    constexpr std::uint32_t kCount = limits::kRegionGranules;
    const std::uint64_t first = std::uint64_t{written.region} * kCount;
    // Zeroes over zeroes are told by no machine, and made by trimming what was trimmed before.
    const auto now = TIDEMARK_TRY(data_granules(between_.upto, first));
    const auto before = TIDEMARK_TRY(data_granules(between_.after, first));
    for (std::uint32_t i = 0; i < kCount; ++i) {
      if (!written.granules[i] || (!between_.on_base && !now[i] && !before[i])) continue;
      const std::uint64_t at = (first + i) * kGranule;
      if (at >= end) break;
      const std::uint64_t length = std::min(kGranule, end - at);
      const bool zero = !now[i];
      if (!ranges.empty() && ranges.back().offset + ranges.back().length == at && ranges.back().zero == zero)
        ranges.back().length += length;
      else
        ranges.push_back({.offset = at, .length = length, .zero = zero});
    }
    return {};
  }

  // Which granules of a region show data that is not known to be zero.
  Result<std::vector<bool>> data_granules(Lsn as_of, std::uint64_t first) const {
    std::vector<bool> data(limits::kRegionGranules, false);
    if (as_of == Lsn()) return data;
    for (const Extent& extent : TIDEMARK_TRY(
             context_->index->lookup(between_.machine, between_.volume, as_of, first, limits::kRegionGranules))) {
      if (extent.encoding == wire::Encoding::zero) continue;
      for (std::uint64_t i = 0; i < extent.granules; ++i) data[extent.first_granule + i - first] = true;
    }
    return data;
  }

  const std::shared_ptr<ReadContext> context_;
  const Between between_;
  const std::unique_ptr<Reader> from_, to_;
  std::optional<std::uint32_t> region_ = 0;
};

}  // namespace

Result<std::unique_ptr<Changes>> Partition::changes(const MachineId& machine, DiskId disk, EpochNumber from,
                                                    EpochNumber to, std::chrono::milliseconds timeout) {
  auto record = TIDEMARK_TRY(impl_->find_record(machine, timeout));
  if (from > to)
    return fail(Code::invalid_argument, "machine " + record.name(), "the epoch to compare with is the newer one");
  // Readers first: they hold both points.
  auto newer = TIDEMARK_TRY(read(machine, disk, to, timeout));
  std::unique_ptr<Reader> older;
  if (auto opened = read(machine, disk, from, timeout)) {
    older = *std::move(opened);
  } else if (opened.error().code != Code::not_found) {
    return std::unexpected(std::move(opened).error());
  }
  record = TIDEMARK_TRY(impl_->find_record(machine, timeout));  // as new as what the readers found
  Between between{
      .machine = machine, .volume = VolumeId(), .after = Lsn(), .upto = Lsn(), .on_base = record.has_clone()};
  for (const pb::DiskRecord& known : record.disks())
    if (known.disk() == disk.value()) between.volume = VolumeId(known.volume());
  // Of a clone, epoch 0 is what it stands on: nothing of its own.
  const auto lsn_of = [&](EpochNumber epoch) -> Result<Lsn> {
    if (epoch == EpochNumber() && record.has_clone()) return Lsn();
    return Lsn(TIDEMARK_TRY(impl_->find_epoch(machine, epoch, timeout)).entry.commit_lsn());
  };
  between.after = TIDEMARK_TRY(lsn_of(from));  // also tells when the point is not there, and not only the disk
  between.upto = TIDEMARK_TRY(lsn_of(to));
  return std::unique_ptr<Changes>(new IndexChanges(impl_->context, between, std::move(older), std::move(newer)));
}

}  // namespace tidemark::storage
