// The scrub: all that the index refers to, by volume and place, and then the segments' own records and tables.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/marks.h"
#include "base/units.h"
#include "storage/checker_impl.h"
#include "storage/cold_segment.h"
#include "storage/epoch_progress.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kBlocksAtOnce = 256;  // at most 16 MiB
constexpr std::uint64_t kReadMax = 1_MiB;   // of one read of a segment
constexpr std::uint64_t kGapMax = 64_KiB;   // read over rather than apart

// What is wrong with the commit that should stand there.
std::optional<std::string> read_commit(File& file, const CommitExpectation& expected, std::span<std::byte> buffer,
                                       CommitInfo& commit) {
  auto read = file.read_at(expected.offset, buffer.first(limits::kIoAlignment));
  if (!read) return read.error().what;
  const auto header = parse_commit_header(buffer.first(*read), expected);
  if (!header) return header.error().message();
  read = file.read_at(expected.offset, buffer.first(header->size));
  if (!read) return read.error().what;
  const auto parsed = parse_commit(buffer.first(*read), expected, commit);
  return parsed ? std::nullopt : std::optional(parsed.error().message());
}

}  // namespace

// --- when ---

bool Checker::scrub_due() {
  const std::lock_guard lock(mutex_);
  const auto asked = std::exchange(scrub_asked_, std::nullopt);
  auto& scrub = *state_.mutable_scrub();
  const WallMicros now = clock_.wall_us();
  // A new store waits as if it had been scrubbed just now; so does one whose clock was set back.
  if (scrub.wait_from_us() == 0 || scrub.wait_from_us() > now) {
    scrub.set_wait_from_us(now);
    dirty_ = true;
  }
  if (asked == std::optional(false)) {
    if (scrub.running()) spdlog::info("event=scrub_stopped path={} bytes={}", directory_, scrub.bytes());
    scrub.set_running(false);
    scrub.set_wait_from_us(now);
    dirty_ = save_soon_ = true;
    return false;
  }
  if (scrub.running()) return false;
  if (asked == std::optional(true) || state_.scrub_needed_lsn() != 0) return true;
  return options_.scrub_interval_us != 0 && now - scrub.wait_from_us() >= options_.scrub_interval_us;
}

void Checker::begin_scrub() {
  context_->damage.begin_pass();
  scrub_owners_.clear();
  scrub_segments_.clear();
  change_state([&](pb::IntegrityRecord& state) {
    auto& scrub = *state.mutable_scrub();
    pb::IntegrityRecord::Scrub next;
    next.set_running(true);
    next.set_started_us(clock_.wall_us());
    next.set_from_lsn(indexer_.indexed_lsn().value());
    next.set_wait_from_us(scrub.wait_from_us());
    next.set_completed_us(scrub.completed_us());
    next.set_completed_started_us(scrub.completed_started_us());
    next.set_completed_bytes(scrub.completed_bytes());
    next.set_completed_blocks(scrub.completed_blocks());
    next.set_completed_damaged(scrub.completed_damaged());
    scrub = std::move(next);
  });
  save_soon_ = true;
  spdlog::info("event=scrub_begins path={}", directory_);
}

void Checker::end_scrub() {
  context_->damage.end_pass();
  change_state([&](pb::IntegrityRecord& state) {
    auto& scrub = *state.mutable_scrub();
    scrub.set_running(false);
    scrub.set_completed_us(clock_.wall_us());
    scrub.set_completed_started_us(scrub.started_us());
    scrub.set_completed_bytes(scrub.bytes());
    scrub.set_completed_blocks(scrub.blocks());
    scrub.set_completed_damaged(scrub.damaged());
    scrub.set_wait_from_us(scrub.started_us());
    if (state.scrub_needed_lsn() <= scrub.from_lsn()) state.clear_scrub_needed_lsn();
    std::erase_if(segments_, [&](const DamagedSegment& known) { return !index().knows_segment(known.segment); });
    ++stats_.scrubs;
  });
  save_soon_ = true;
  const auto& scrub = state_.scrub();
  spdlog::info("event=scrub_done path={} bytes={} blocks={} damaged={} seconds={}", directory_, scrub.bytes(),
               scrub.blocks(), scrub.damaged(), (scrub.completed_us() - scrub.started_us()) / 1'000'000);
}

Result<bool> Checker::scrub_some() {
  if (scrub_due()) begin_scrub();
  if (!state_.scrub().running()) return false;
  if (options_.background && std::chrono::steady_clock::now() < scrub_at_) return false;
  const bool more = TIDEMARK_TRY(state_.scrub().segments() ? scrub_segments() : scrub_blocks());
  if (more) return true;
  if (!state_.scrub().segments()) {
    change_state([](pb::IntegrityRecord& state) { state.mutable_scrub()->set_segments(true); });
    return true;
  }
  end_scrub();
  return true;
}

// --- what the index refers to ---

void Checker::load_owners() {
  owners_.clear();
  for (const pb::MachineRecord& record : index().machines()) {
    const auto machine = machine_from_bytes(record.machine());
    if (!machine || record.removed()) continue;
    for (const pb::DiskRecord& disk : record.disks()) {
      owners_[VolumeId(disk.volume())] = {*machine, DiskId(disk.disk())};
    }
  }
}

// False: there is no volume left.
Result<bool> Checker::scrub_blocks() {
  const pb::IntegrityRecord::Scrub at = state_.scrub();
  auto owner = scrub_owners_.lower_bound(VolumeId(at.volume()));
  if (owner == scrub_owners_.end()) {
    // At the start of it, or of the server; and at the end, for volumes that came meanwhile.
    load_owners();
    scrub_owners_ = std::exchange(owners_, {});
    owner = scrub_owners_.lower_bound(VolumeId(at.volume()));
    const std::lock_guard lock(mutex_);
    volumes_ = scrub_owners_.size();
    volumes_done_ = static_cast<std::uint64_t>(std::distance(scrub_owners_.begin(), owner));
    if (owner == scrub_owners_.end()) return false;
  }
  const VolumeId volume = owner->first;
  const auto [machine, disk] = owner->second;
  std::uint64_t bytes = 0;
  std::vector<StoredExtent> stored;
  {
    const ReaderPins::Scope pinned(context_->pins);
    std::optional<Index::StoredPlace> after;
    if (at.inside() && volume.value() == at.volume()) after = {.region = at.region(), .key = Lsn(at.key())};
    stored = TIDEMARK_TRY(index().stored(machine, volume, after, kBlocksAtOnce));
    std::vector<Block> blocks;
    blocks.reserve(stored.size());
    for (const StoredExtent& one : stored) {
      blocks.push_back({.machine = machine,
                        .volume = volume,
                        .disk = disk,
                        .lsn = one.lsn,
                        .extent = Block::whole(std::uint64_t{one.region} * limits::kRegionGranules + one.extent.first,
                                               one.extent.count, one.extent.encoding, one.segment, one.extent.offset,
                                               one.extent.stored_size, one.epoch, one.extent.sealed)});
    }
    TIDEMARK_TRY(check_blocks(blocks, bytes));
  }
  change_state([&](pb::IntegrityRecord& state) {
    auto& scrub = *state.mutable_scrub();
    scrub.set_bytes(scrub.bytes() + bytes);
    scrub.set_blocks(scrub.blocks() + stored.size());
    stats_.scrubbed_bytes += bytes;
    if (stored.empty()) {
      scrub.set_volume(volume.value() + 1);
      scrub.set_inside(false);
      ++volumes_done_;
    } else {
      scrub.set_volume(volume.value());
      scrub.set_inside(true);
      scrub.set_region(stored.back().region);
      scrub.set_key(stored.back().key.value());
    }
  });
  pace_scrub(bytes);
  return true;
}

// New data does not wait for it: other work goes on until its time has come.
void Checker::pace_scrub(std::uint64_t bytes) {
  if (!options_.background || options_.scrub_rate == 0) return;
  scrub_at_ = std::chrono::steady_clock::now() + std::chrono::microseconds(bytes * 1'000'000 / options_.scrub_rate);
}

// --- reading blocks ---

Status Checker::check_blocks(std::vector<Block>& blocks, std::uint64_t& bytes) {
  std::ranges::sort(blocks, [](const Block& a, const Block& b) {
    return std::pair(a.extent.segment, a.extent.offset) < std::pair(b.extent.segment, b.extent.offset);
  });
  for (std::size_t i = 0; i < blocks.size();) {
    const std::uint64_t start = round_down(blocks[i].extent.offset, limits::kIoAlignment);
    std::uint64_t end = blocks[i].end();
    std::size_t last = i + 1;
    for (; last < blocks.size() && blocks[last].extent.segment == blocks[i].extent.segment; ++last) {
      if (blocks[last].extent.offset > end + kGapMax || blocks[last].end() > start + kReadMax) break;
      end = std::max(end, blocks[last].end());
    }
    TIDEMARK_TRY(check_piece(std::span(blocks).subspan(i, last - i), start, end));
    bytes += end - start;
    i = last;
  }
  return {};
}

Status Checker::check_piece(std::span<const Block> blocks, std::uint64_t start, std::uint64_t end) {
  const auto all_bad = [&](const std::string& what) -> Status {
    for (const Block& block : blocks) TIDEMARK_TRY(found_bad(block, what));
    return {};
  };
  const auto file = context_->segments.open(blocks.front().extent.segment);
  if (!file && file.error().code == Code::not_found) return all_bad("its segment is missing");
  if (!file) return std::unexpected(file.error());  // not the segment's fault
  const std::size_t size = round_up(end, limits::kIoAlignment) - start;
  AlignedBuffer& piece = scratch_->piece;
  if (piece.size() < size) piece = AlignedBuffer(std::max<std::size_t>(size, kReadMax + kGapMax));
  const auto read = (*file)->read_at(start, piece.span().first(size));
  if (!read && blocks.size() > 1) {
    for (const Block& block : blocks) {
      TIDEMARK_TRY(
          check_piece(std::span(&block, 1), round_down(block.extent.offset, limits::kIoAlignment), block.end()));
    }
    return {};
  }
  if (!read) return all_bad("it cannot be read: " + read.error().what);
  for (const Block& block : blocks) {
    if (start + *read < block.end()) {
      TIDEMARK_TRY(found_bad(block, "the segment ends before it"));
      continue;
    }
    const auto stored = piece.span().subspan(block.extent.offset - start, block.end() - block.extent.offset);
    if (const auto what = open_block(block.machine, block.volume, block.disk, block.extent, stored, scratch_->decoder,
                                     scratch_->plain.span())) {
      TIDEMARK_TRY(found_bad(block, *what));
    } else if (context_->damage.size() != 0) {
      context_->damage.forget(block.extent.segment, block.extent.offset);  // it was listed, and can be read after all
    }
  }
  return {};
}

// What nothing refers to any more is no damage: it may have been moved or dropped while it was read.
Status Checker::found_bad(const Block& block, const std::string& what) {
  const Extent& extent = block.extent;
  if (!TIDEMARK_TRY(index().find_stored(block.machine, block.volume, block.region(), extent.segment, extent.offset))) {
    return {};
  }
  leave_mark(Mark::checker_found_damage);
  const bool fresh = context_->damage.report({.machine = block.machine,
                                              .volume = block.volume,
                                              .disk = block.disk,
                                              .epoch = extent.epoch,
                                              .first_granule = extent.block_first_granule,
                                              .granules = extent.block_granules,
                                              .segment = extent.segment,
                                              .offset = extent.offset,
                                              .stored_size = extent.stored_size,
                                              .what = what,
                                              .found_us = clock_.wall_us()});
  if (fresh) save_soon_ = true;
  if (state_.scrub().running()) {
    change_state([](pb::IntegrityRecord& state) { state.mutable_scrub()->set_damaged(state.scrub().damaged() + 1); });
  }
  return {};
}

// --- the segments themselves ---

// What a rebuild of the index would go by. The segment in which the log is written is left out.
Result<bool> Checker::scrub_segments() {
  const auto next = [&] {
    const SegmentId current = index().mark().segment;
    auto found = std::ranges::upper_bound(scrub_segments_, SegmentId(state_.scrub().segment()));
    while (found != scrub_segments_.end() && !is_cold(*found) && *found >= current) ++found;
    return found;
  };
  auto at = next();
  if (at == scrub_segments_.end()) {  // at the start of it, or of the server; and at the end, for those that came since
    scrub_segments_.clear();
    for (const auto& [known, references] : index().segments()) scrub_segments_.push_back(known);
    at = next();
    if (at == scrub_segments_.end()) return false;
  }
  const SegmentId segment = *at;
  std::uint64_t bytes = 0;
  bool sound = false;
  {
    const ReaderPins::Scope pinned(context_->pins);
    sound = TIDEMARK_TRY(is_cold(segment) ? scrub_cold_segment(segment, bytes) : scrub_log_segment(segment, bytes));
  }
  change_state([&](pb::IntegrityRecord& state) {
    if (sound) std::erase_if(segments_, [&](const DamagedSegment& known) { return known.segment == segment; });
    auto& scrub = *state.mutable_scrub();
    scrub.set_segment(segment.value());
    scrub.set_bytes(scrub.bytes() + bytes);
    if (!sound) scrub.set_damaged(scrub.damaged() + 1);
    stats_.scrubbed_bytes += bytes;
  });
  pace_scrub(bytes);
  return true;
}

Result<bool> Checker::scrub_cold_segment(SegmentId segment, std::uint64_t& bytes) {
  const auto file = context_->segments.open(segment);
  if (!file && file.error().code != Code::not_found) return std::unexpected(file.error());
  const auto table = file ? read_cold_table(**file, segment, partition_, salt_)
                          : Result<std::vector<ColdExtent>>(std::unexpected(file.error()));
  if (table) bytes = table->size() * sizeof(ColdEntry) + 2 * limits::kIoAlignment;
  if (table || !index().knows_segment(segment)) return true;
  return !note_segment(segment, 0, 0, table.error().what);
}

// Its commits, up to where its successor says that it ends. Their blocks were looked at already.
Result<bool> Checker::scrub_log_segment(SegmentId segment, std::uint64_t& bytes) {
  const auto opened = TIDEMARK_TRY(open_segment(segment));
  if (!opened) {
    if (!index().knows_segment(segment)) return true;  // given back just now
    return !note_segment(segment, 0, limits::kIoAlignment, "its header is damaged, or the file is missing");
  }
  const auto next = std::ranges::upper_bound(scrub_segments_, segment);
  if (next == scrub_segments_.end() || is_cold(*next)) return true;
  const auto successor = TIDEMARK_TRY(open_segment(*next));
  // When the one behind it was given back, where it ends is not known here.
  if (!successor || successor->header.predecessor != segment.value()) return true;
  AlignedBuffer buffer(limits::kCommitSizeMax);
  CommitInfo commit;
  for (std::uint64_t at = limits::kIoAlignment; at < successor->header.predecessor_end && !stopping();
       at += commit.size) {
    bytes = at;
    const CommitExpectation expected{.partition = partition_,
                                     .salt = salt_,
                                     .segment = segment,
                                     .incarnation = Incarnation(opened->header.incarnation),
                                     .offset = at,
                                     .chain = std::nullopt};
    const auto wrong = read_commit(*opened->file, expected, buffer.span(), commit);
    if (!wrong) continue;
    if (!index().knows_segment(segment)) return true;
    return !note_segment(segment, at, successor->header.predecessor_end, *wrong);
  }
  return true;
}

}  // namespace tidemark::storage
