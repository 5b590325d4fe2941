// New data: the log, commit by commit behind the index, and cold segments as they come.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "base/planted.h"
#include "base/units.h"
#include "storage/checker_impl.h"
#include "storage/cold_segment.h"
#include "storage/epoch_progress.h"

namespace tidemark::storage {

namespace {

constexpr std::size_t kWindowMin = 64_KiB;
constexpr std::size_t kWindowMax = limits::kCommitSizeMax;
constexpr std::uint64_t kPiece = 4_MiB;      // of the log in one go
constexpr std::uint64_t kColdPiece = 8_MiB;  // of a cold segment
constexpr int kReadFailuresMax = 3;          // then the place is taken for damaged
constexpr std::size_t kDamagedSegmentsMax = 256;

CommitExpectation expectation(PartitionId partition, std::uint32_t salt, SegmentId segment, Incarnation incarnation,
                              std::uint64_t offset) {
  return {.partition = partition,
          .salt = salt,
          .segment = segment,
          .incarnation = incarnation,
          .offset = offset,
          .chain = std::nullopt};
}

std::optional<SegmentId> next_log_segment(const Index& index, SegmentId after) {
  for (const auto& [segment, references] : index.segments()) {
    if (is_cold(segment)) break;
    if (segment > after) return segment;
  }
  return std::nullopt;
}

}  // namespace

// Blocks that the index does not have yet cannot be compared with it; they come with the next turn.
Result<bool> Checker::verify_log() {
  const Lsn indexed = indexer_.indexed_lsn();
  if (mark_of(state_).lsn >= indexed) {
    if (walk_) walk_->window = {}, walk_->size = 0;
    const std::lock_guard lock(mutex_);
    behind_since_.reset();
    stats_.seconds_behind = 0;
    return false;
  }
  const auto now = clock_.monotonic();
  if (!behind_since_) behind_since_ = now;
  {
    const std::lock_guard lock(mutex_);
    stats_.seconds_behind = std::chrono::duration<double>(now - *behind_since_).count();
  }
  std::uint64_t done = 0;
  auto moved = verify_commits(indexed, done);
  if (!moved && moved.error().code == Code::io && ++read_failures_ >= kReadFailuresMax && walk_) {
    read_failures_ = 0;
    const ReaderPins::Scope pinned(context_->pins);
    return pass_break(0, moved.error().what);
  }
  if (moved) read_failures_ = 0;
  hold_rate(done, options_.verify_rate);
  return moved;
}

Result<bool> Checker::verify_commits(Lsn indexed, std::uint64_t& done) {
  // From the look at what the index knows to the last read no segment is used again.
  const ReaderPins::Scope pinned(context_->pins);
  volumes_of_.clear();
  if (!walk_ && !TIDEMARK_TRY(enter_log())) return false;
  walk_->size = 0;
  CommitInfo commit;
  for (bool moved = false;; moved = true) {
    const LogMark mark = mark_of(state_);
    if (mark.lsn >= indexed || done >= kPiece || stopping()) return moved;
    CommitExpectation expected = expectation(partition_, salt_, walk_->segment, walk_->incarnation, mark.offset);
    expected.chain = CommitExpectation::Chain{.next_lsn = mark.lsn.next(), .previous_checksum = mark.checksum};
    std::span<const std::byte> bytes = walk_->at(mark.offset);
    auto header = parse_commit_header(bytes, expected);
    if (!header && !walk_->fresh(mark.offset)) {
      TIDEMARK_TRY(read_window(std::clamp(2 * walk_->last_commit, kWindowMin, kWindowMax)));
      bytes = walk_->at(mark.offset);
      header = parse_commit_header(bytes, expected);
    }
    if (!header) return leave_segment();
    if (header->size > bytes.size()) {
      TIDEMARK_TRY(read_window(header->size));
      bytes = walk_->at(mark.offset);
    }
    auto parsed = parse_commit(bytes.first(std::min<std::size_t>(header->size, bytes.size())), expected, commit);
    if (!parsed && !walk_->fresh(mark.offset)) {  // its end was not written yet when it was read
      TIDEMARK_TRY(read_window(header->size));
      parsed = parse_commit(walk_->at(mark.offset), expected, commit);
    }
    if (!parsed) return leave_segment();
    if (commit.last_lsn > indexed) return moved;
    TIDEMARK_TRY(check_commit(commit, walk_->at(mark.offset)));
    walk_->last_commit = commit.size;
    done += commit.size;
    change_state([&](pb::IntegrityRecord& state) {
      set_mark(state, {.segment = walk_->segment,
                       .offset = mark.offset + commit.size,
                       .lsn = commit.last_lsn,
                       .checksum = commit.checksum});
    });
  }
}

Status Checker::read_window(std::size_t want) {
  want = round_up(want, limits::kIoAlignment);
  if (walk_->window.size() < want) walk_->window = AlignedBuffer(want);
  walk_->size = 0;
  walk_->start = mark_of(state_).offset;
  walk_->size = TIDEMARK_TRY(walk_->file->read_at(walk_->start, walk_->window.span().first(want)));
  return {};
}

// --- from segment to segment ---

Result<std::optional<Checker::OpenSegment>> Checker::open_segment(SegmentId segment) {
  auto file = context_->segments.open(segment);
  if (!file && file.error().code == Code::not_found) return std::nullopt;
  if (!file) return std::unexpected(file.error());
  AlignedBuffer block(limits::kIoAlignment);
  const std::size_t size = TIDEMARK_TRY((*file)->read_at(0, block.span()));
  const auto header = parse_segment_header(block.span().first(size), partition_, salt_, segment);
  if (!header) return std::nullopt;
  return OpenSegment{*header, std::move(*file)};
}

// Where the mark is, or, when that segment was given back, in the next one there is.
Result<bool> Checker::enter_log() {
  const LogMark mark = mark_of(state_);
  bool skipped = false;
  for (const auto& [segment, references] : index().segments()) {
    if (is_cold(segment)) break;
    if (segment < mark.segment) continue;
    auto opened = TIDEMARK_TRY(open_segment(segment));
    if (!opened) {
      if (!index().knows_segment(segment)) continue;  // given back just now
      skipped =
          note_segment(segment, 0, limits::kIoAlignment, "its header is damaged, or the file is missing") || skipped;
      continue;
    }
    if (skipped) want_scrub();
    const bool here = segment == mark.segment && mark.offset != 0;
    const SegmentHeader& header = opened->header;
    const bool follows = header.predecessor == mark.segment.value() && header.predecessor_end == mark.offset;
    if (!here) {
      enter_segment(segment, std::move(*opened), !follows);
      return true;
    }
    walk_ = std::make_unique<Walk>();
    walk_->segment = segment;
    walk_->incarnation = Incarnation(header.incarnation);
    walk_->file = std::move(opened->file);
    return true;
  }
  return false;
}

void Checker::enter_segment(SegmentId segment, OpenSegment opened, bool passed_over) {
  const SegmentHeader& header = opened.header;
  auto walk = std::make_unique<Walk>();
  walk->segment = segment;
  walk->incarnation = Incarnation(header.incarnation);
  walk->file = std::move(opened.file);
  walk_ = std::move(walk);
  change_state([&](pb::IntegrityRecord& state) {
    set_mark(state, {.segment = segment,
                     .offset = limits::kIoAlignment,
                     .lsn = Lsn(header.first_lsn - 1),
                     .checksum = header.predecessor_checksum});
    // What was given back unread had moved before.
    if (passed_over) state.set_cold_needed(manifest_.newest());
  });
}

// No commit stands where the next one should: the log goes on elsewhere, or this is damage.
Result<bool> Checker::leave_segment() {
  const LogMark mark = mark_of(state_);
  const SegmentId here = walk_->segment;
  if (!index().knows_segment(here)) {
    walk_.reset();
    return enter_log();
  }
  const auto next = next_log_segment(index(), here);
  if (!next) return pass_break(0, "no commit stands where the index has one");
  auto opened = TIDEMARK_TRY(open_segment(*next));
  if (!opened) {
    if (!index().knows_segment(*next)) return true;  // given back just now: the one behind it is next
    if (note_segment(*next, 0, limits::kIoAlignment, "its header is damaged, or the file is missing")) want_scrub();
    walk_.reset();
    change_state([&](pb::IntegrityRecord& state) {
      set_mark(state, {.segment = *next, .offset = 0, .lsn = mark.lsn, .checksum = 0});
    });
    return true;
  }
  const SegmentHeader& header = opened->header;
  const bool successor = header.predecessor == here.value();
  if (successor && header.predecessor_end > mark.offset) {
    return pass_break(header.predecessor_end, "a commit is damaged");
  }
  const bool passed_over = !successor || header.predecessor_end != mark.offset;
  enter_segment(*next, std::move(*opened), passed_over);
  return true;
}

// Goes on with the next commit that can be believed; what stood in between is left to a scrub, which goes by the index.
Result<bool> Checker::pass_break(std::uint64_t end, const std::string& what) {
  const LogMark mark = mark_of(state_);
  const Lsn indexed = indexer_.indexed_lsn();
  if (end == 0 && walk_->no_commit_as_of == indexed) return false;  // nothing came since it was looked for
  const std::uint64_t limit = end != 0 ? end : TIDEMARK_TRY(walk_->file->size());
  const bool needed = note_segment(walk_->segment, mark.offset, limit, what);
  if (needed && !walk_->no_commit_as_of) want_scrub();
  AlignedBuffer piece(kWindowMin);
  for (std::uint64_t at = mark.offset + limits::kIoAlignment; at < limit && !stopping(); at += kWindowMin) {
    const auto read = walk_->file->read_at(at, piece.span());
    if (!read) continue;
    for (std::size_t within = 0; within + sizeof(CommitHeader) <= *read; within += limits::kIoAlignment) {
      const auto header =
          parse_commit_header(piece.span().subspan(within, *read - within),
                              expectation(partition_, salt_, walk_->segment, walk_->incarnation, at + within));
      if (!header || header->first_lsn <= mark.lsn.value() || header->first_lsn > indexed.value() + 1) continue;
      note_segment(walk_->segment, mark.offset, at + within, what);
      change_state([&](pb::IntegrityRecord& state) {
        set_mark(state, {.segment = walk_->segment,
                         .offset = at + within,
                         .lsn = Lsn(header->first_lsn - 1),
                         .checksum = header->previous_checksum});
      });
      return true;
    }
  }
  if (end == 0) {
    walk_->no_commit_as_of = indexed;
    return false;  // its successor will tell
  }
  change_state([&](pb::IntegrityRecord& state) { state.mutable_checked()->set_offset(end); });
  return true;
}

void Checker::want_scrub() {
  change_state([&](pb::IntegrityRecord& state) { state.set_scrub_needed_lsn(indexer_.indexed_lsn().value()); });
  save_soon_ = true;
}

// False: nothing refers to it. Such a one is given back at any time, or was, and a crash kept the index from
// forgetting it.
bool Checker::note_segment(SegmentId segment, std::uint64_t first, std::uint64_t end, const std::string& what) {
  if (index().live_references(segment).value_or(1) == 0) return false;
  {
    const std::lock_guard lock(mutex_);
    const auto known = std::ranges::find_if(
        segments_, [&](const DamagedSegment& one) { return one.segment == segment && one.first_byte == first; });
    if (known != segments_.end()) {
      known->end_byte = end;
      return true;
    }
    if (segments_.size() < kDamagedSegmentsMax) {
      segments_.push_back(
          {.segment = segment, .first_byte = first, .end_byte = end, .what = what, .found_us = clock_.wall_us()});
    }
    dirty_ = true;
    version_.fetch_add(1, std::memory_order_release);
  }
  save_soon_ = true;
  spdlog::error("event=segment_damaged path={} segment={:#x} first_byte={} end_byte={} error=\"{}\"", directory_,
                segment.value(), first, end, what);
  return true;
}

// --- the blocks of a commit ---

Status Checker::check_commit(const CommitInfo& commit, std::span<const std::byte> bytes) {
  if (planted(Planted::verified_unread)) return {};
  for (const RecordInfo& record : commit.records) {
    if (record.type == RecordType::blocks) TIDEMARK_TRY(check_record(commit, record, bytes));
  }
  return {};
}

Status Checker::check_record(const CommitInfo& commit, const RecordInfo& record, std::span<const std::byte> bytes) {
  auto volumes = volumes_of_.find(record.machine);
  if (volumes == volumes_of_.end()) {
    volumes = volumes_of_.emplace(record.machine, std::map<DiskId, VolumeId>()).first;
    const auto known = index().machine(record.machine);
    if (known && !known->removed()) {
      for (const pb::DiskRecord& disk : known->disks()) {
        volumes->second[DiskId(disk.disk())] = VolumeId(disk.volume());
      }
    }
  }
  const auto volume = volumes->second.find(record.disk);
  if (volume == volumes->second.end()) return {};  // removed meanwhile
  std::uint64_t blocks = 0, size = 0;
  for (const BlockPlace& place : std::span(commit.blocks).subspan(record.first_block, record.block_count)) {
    if (place.encoding == wire::Encoding::zero) continue;
    const Block block{.machine = record.machine,
                      .volume = volume->second,
                      .disk = record.disk,
                      .lsn = record.lsn,
                      .extent = Block::whole(place.first_granule, place.granules, place.encoding, commit.segment,
                                             place.offset, place.stored_size, record.epoch, place.sealed)};
    const auto stored = bytes.subspan(place.offset - commit.offset, limits::kBlockHeaderSize + place.stored_size);
    if (const auto what = open_block(block.machine, block.volume, block.disk, block.extent, stored, scratch_->decoder,
                                     scratch_->plain.span())) {
      TIDEMARK_TRY(found_bad(block, *what));
    }
    ++blocks;
    size += stored.size();
  }
  TIDEMARK_TRY(check_index(commit, record, volume->second));
  const std::lock_guard lock(mutex_);
  stats_.verified_blocks += blocks;
  stats_.verified_bytes += size;
  return {};
}

// Whatever the index has under this record's LSN in this segment must be a block that the record has. It may have less:
// versions that no point shows are dropped, and what is shown may have moved.
Status Checker::check_index(const CommitInfo& commit, const RecordInfo& record, VolumeId volume) {
  const auto blocks = std::span(commit.blocks).subspan(record.first_block, record.block_count);
  std::optional<std::uint32_t> last;
  for (const BlockPlace& of_region : blocks) {
    const auto region = static_cast<std::uint32_t>(of_region.first_granule / limits::kRegionGranules);
    if (of_region.encoding == wire::Encoding::zero || region == last) continue;
    last = region;
    for (const Delta& delta : TIDEMARK_TRY(index().deltas_at(volume, region, record.lsn))) {
      if (delta.lsn != record.lsn || delta.segment != commit.segment) continue;
      for (const DeltaExtent& extent : delta.extents) {
        if (extent.encoding == wire::Encoding::zero) continue;
        const std::uint64_t first = std::uint64_t{region} * limits::kRegionGranules + extent.first;
        const BlockPlace named{.first_granule = first,
                               .granules = extent.count,
                               .stored_size = extent.stored_size,
                               .offset = extent.offset,
                               .encoding = extent.encoding,
                               .sealed = extent.sealed};
        const auto stored = std::ranges::lower_bound(blocks, extent.offset, {}, &BlockPlace::offset);
        if (delta.epoch == record.epoch && stored != blocks.end() && *stored == named) continue;
        const Block wrong{.machine = record.machine,
                          .volume = volume,
                          .disk = record.disk,
                          .lsn = record.lsn,
                          .extent = Block::whole(first, extent.count, extent.encoding, commit.segment, extent.offset,
                                                 extent.stored_size, delta.epoch, extent.sealed)};
        TIDEMARK_TRY(found_bad(wrong, "the index names a block that the log does not have there"));
      }
    }
  }
  return {};
}

// --- cold segments ---

// They are written in the order of their numbers, and the index knows one before the next is begun.
Result<bool> Checker::verify_cold() {
  const auto next = manifest_.after(cold_segment(state_.cold_checked()));
  if (!next) {
    // Those that were needed are gone, and what was needed of them stands in newer ones that were read.
    if (state_.cold_checked() < state_.cold_needed())
      change_state([](pb::IntegrityRecord& state) { state.set_cold_checked(state.cold_needed()); });
    return false;
  }
  const auto done = [&] {
    change_state([&](pb::IntegrityRecord& state) { state.set_cold_checked(cold_number(*next)); });
    return true;
  };
  if (!index().knows_segment(*next)) return manifest_.after(*next) ? done() : false;
  std::vector<ColdExtent> table;
  {
    const ReaderPins::Scope pinned(context_->pins);
    const auto file = context_->segments.open(*next);
    if (!file && file.error().code != Code::not_found) return std::unexpected(file.error());
    auto read = file ? read_cold_table(**file, *next, partition_, salt_)
                     : Result<std::vector<ColdExtent>>(std::unexpected(file.error()));
    if (!read) {
      if (!index().knows_segment(*next)) return done();  // given back just now
      if (read.error().code == Code::io && ++read_failures_ < kReadFailuresMax) return std::unexpected(read.error());
      read_failures_ = 0;
      if (note_segment(*next, 0, 0, read.error().what)) want_scrub();
      return done();
    }
    table = std::move(*read);
  }
  if (planted(Planted::verified_unread)) return done();
  load_owners();
  std::vector<Block> blocks;
  std::uint64_t listed = 0;
  const auto check = [&]() -> Status {
    std::uint64_t bytes = 0;
    const std::uint64_t count = blocks.size();
    {
      const ReaderPins::Scope pinned(context_->pins);
      if (index().knows_segment(*next)) TIDEMARK_TRY(check_blocks(blocks, bytes));
    }
    blocks.clear();
    listed = 0;
    {
      const std::lock_guard lock(mutex_);
      stats_.verified_blocks += count;
      stats_.verified_bytes += bytes;
    }
    hold_rate(bytes, options_.verify_rate);
    if (stopping()) return fail(Code::cancelled, directory_, "it is being closed");
    return {};
  };
  for (const ColdExtent& cold : table) {
    const auto owner = owners_.find(cold.volume);
    if (cold.extent.encoding == wire::Encoding::zero || owner == owners_.end()) continue;
    blocks.push_back({.machine = owner->second.first,
                      .volume = cold.volume,
                      .disk = owner->second.second,
                      .lsn = cold.lsn,
                      .extent = Block::whole(std::uint64_t{cold.region} * limits::kRegionGranules + cold.extent.first,
                                             cold.extent.count, cold.extent.encoding, *next, cold.extent.offset,
                                             cold.extent.stored_size, cold.epoch, cold.extent.sealed)});
    listed += cold.extent.stored_size;
    if (listed >= kColdPiece) TIDEMARK_TRY(check());
  }
  if (!blocks.empty()) TIDEMARK_TRY(check());
  return done();
}

}  // namespace tidemark::storage
