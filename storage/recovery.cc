#include "storage/recovery.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "base/aligned_buffer.h"
#include "base/marks.h"
#include "base/planted.h"
#include "storage/file_window.h"
#include "storage/segment_keeper.h"

namespace tidemark::storage {
namespace {

constexpr std::size_t kDamagedListedMax = 1024;
constexpr std::size_t kWindow = 2 * limits::kCommitSizeMax;  // read at once; any commit fits

class Recovery {
 public:
  Recovery(FileSystem& files, const std::string& directory, const RecoveryOptions& options,
           const std::function<Status(CommitInfo&&)>& sink)
      : files_(files), directory_(directory), options_(options), sink_(sink), durable_(options.mark.lsn) {}

  Result<RecoveryResult> run() {
    TIDEMARK_TRY(find_segments());
    TIDEMARK_TRY(find_chain());
    result_.walked_from = position_.next_lsn;
    TIDEMARK_TRY(walk());
    TIDEMARK_TRY(look_beyond());
    TIDEMARK_TRY(decide());
    TIDEMARK_TRY(hand_on(true));
    TIDEMARK_TRY(make_durable());
    return finish();
  }

 private:
  void note_stated(Lsn lsn) {
    stated_ = std::max(stated_, lsn);
    durable_ = std::max(durable_, lsn);
  }

  Status read_through(SegmentId id) {
    file_ = TIDEMARK_TRY(files_.open(path_of(id), OpenMode::read, true));
    return window_.open(*file_);
  }

  std::string path_of(SegmentId id) const { return segment_path(directory_, id); }

  std::unexpected<Error> corrupt(SegmentId id, std::string what) const {
    return fail(Code::corrupt, path_of(id), std::move(what),
                "the partition stays closed and nothing was changed: restore the file from a copy, or rebuild from the "
                "sources");
  }

  Status find_segments() {
    AlignedBuffer block(limits::kIoAlignment);
    const std::vector<std::string> names = TIDEMARK_TRY(files_.list(directory_));
    for (const std::string& name : names) {
      const auto id = parse_segment_name(name);
      if ((!id && !is_reserve_name(name)) || id == SegmentId(0)) continue;
      if (id && *id < options_.mark.segment) {  // the index knows what lives there
        result_.segment_max = std::max(result_.segment_max, *id);
        found_[*id];
        continue;
      }
      const std::string path = directory_ + "/" + name;
      const auto file = TIDEMARK_TRY(files_.open(path, OpenMode::read, true));
      const std::size_t n = TIDEMARK_TRY(file->read_at(0, block.span()));
      auto header = parse_segment_header(block.span().first(n), options_.partition, options_.salt, std::nullopt);
      if (!header && header.error().code != Code::not_found) {
        header.error().object = path;
        return std::unexpected(std::move(header).error());
      }
      if (header) {
        // In reserve, and on deck, these are of the file's former life: their numbers are not to be used again.
        result_.incarnation_max = std::max(result_.incarnation_max, Incarnation(header->incarnation));
        result_.segment_max = std::max(result_.segment_max, SegmentId(header->segment));
      }
      if (!id) continue;
      result_.segment_max = std::max(result_.segment_max, *id);
      auto& found = found_[*id];
      if (header && header->segment == id->value()) found = *header;
    }
    return {};
  }

  const SegmentHeader* released(SegmentId id) const {
    for (const SegmentHeader& header : options_.released)
      if (header.segment == id.value()) return &header;
    return nullptr;
  }

  const SegmentHeader* header_of(SegmentId id) const {
    if (const SegmentHeader* const header = released(id)) return header;  // its file may still be there, or reused
    const auto found = found_.find(id);
    return found != found_.end() && found->second ? &*found->second : nullptr;
  }

  // chain_: from the mark's segment (or the oldest there is) to the newest.
  Status find_chain() {
    const LogMark& mark = options_.mark;
    const SegmentHeader* newest = nullptr;
    for (const auto& [id, header] : found_)
      if (header &&
          (newest == nullptr || (planted(Planted::stale_incarnation) ? header->first_lsn > newest->first_lsn
                                                                     : header->incarnation >= newest->incarnation)))
        newest = &*header;
    position_ = {mark.segment, mark.offset, mark.lsn.next(), mark.checksum};
    if (newest == nullptr) {
      if (mark.segment.value() == 0) return {};
      return corrupt(
          mark.segment,
          found_.contains(mark.segment)
              ? "has no valid header, but the index has applied it up to LSN " + std::to_string(mark.lsn.value())
              : "is missing, and the index has applied the log up to LSN " + std::to_string(mark.lsn.value()));
    }
    newest_incarnation_ = Incarnation(newest->incarnation);
    for (const SegmentHeader* at = newest;;) {
      const SegmentId id(at->segment), before(at->predecessor);
      chain_.push_front(id);
      note_stated(Lsn(at->durable_lsn));
      if (id == mark.segment) return {};
      const bool begins_at_mark = before == mark.segment && at->predecessor_end == mark.offset &&
                                  at->predecessor_checksum == mark.checksum && at->first_lsn == mark.lsn.value() + 1;
      const SegmentHeader* const next = header_of(before);
      if (mark.segment.value() != 0 && begins_at_mark) {
        position_ = {id, limits::kIoAlignment, Lsn(at->first_lsn), at->predecessor_checksum};
        return {};
      }
      if (mark.segment.value() != 0 && before < mark.segment)
        return corrupt(mark.segment, "is where the index has come to (LSN " + std::to_string(mark.lsn.value()) +
                                         "), but the log does not lead there: index and log are not of the same age");
      const bool oldest = options_.begin.value() != 0 ? id == options_.begin : found_.begin()->first == id && !next;
      if (before.value() == 0 || (mark.segment.value() == 0 && oldest)) {
        // The first there is. Nothing was applied, so nothing can have been recycled; or the index is being rebuilt.
        position_ = {id, limits::kIoAlignment, Lsn(at->first_lsn), at->predecessor_checksum};
        return {};
      }
      if (next == nullptr)
        return corrupt(before, found_.contains(before)
                                   ? "has no valid header, but segment " + std::to_string(id.value()) + " follows it"
                                   : "is missing: segment " + std::to_string(id.value()) + " follows it");
      if (next->incarnation > at->incarnation) return corrupt(id, "follows a segment of a later incarnation");
      at = next;
    }
  }

  struct Position {
    SegmentId segment;
    std::uint64_t offset = 0;
    Lsn next_lsn;
    std::uint64_t checksum = 0;
  };
  struct Pending {
    CommitInfo info;
    bool sound = true;
    std::vector<DamagedBlock> damaged;
  };

  CommitExpectation expectation(SegmentId id, Incarnation incarnation, std::uint64_t offset) const {
    return {options_.partition, options_.salt, id, incarnation, offset, std::nullopt};
  }

  // Follows the chain until it breaks. Commits are handed on as soon as a later header states them durable.
  Status walk() {
    for (std::size_t i = 0; i < chain_.size(); ++i) {
      const SegmentId id = chain_[i];
      const SegmentHeader& header = *header_of(id);
      const SegmentHeader* const after = i + 1 < chain_.size() ? header_of(chain_[i + 1]) : nullptr;
      if (i > 0) {
        // The walk came to where this one says that its predecessor ends.
        if (position_.next_lsn.value() != header.first_lsn || position_.checksum != header.predecessor_checksum)
          return {};  // a break: `position_` says where
        position_.segment = id;
        position_.offset = limits::kIoAlignment;
      } else if (position_.next_lsn.value() < header.first_lsn) {
        return corrupt(id,
                       "begins with LSN " + std::to_string(header.first_lsn) + ", beyond where the index has come to");
      }
      if (released(id) != nullptr && after != nullptr) {
        leave_mark(Mark::released_passed_over);
        position_ = {id, after->predecessor_end, Lsn(after->first_lsn), after->predecessor_checksum};
        continue;
      }
      TIDEMARK_TRY(read_through(id));
      const std::uint64_t end = after != nullptr ? after->predecessor_end : window_.size();
      while (position_.offset < end) {
        auto expected = expectation(id, Incarnation(header.incarnation), position_.offset);
        expected.chain = {position_.next_lsn, position_.checksum};
        auto bytes = TIDEMARK_TRY(window_.at(position_.offset, sizeof(CommitHeader)));
        const auto commit_header = parse_commit_header(bytes, expected);
        if (!commit_header) {
          // A place is written once in a segment's life: what is whole there, but follows another commit, is no torn
          // write.
          expected.chain.reset();
          if (parse_commit_header(bytes, expected))
            return corrupt(id, "holds a commit at offset " + std::to_string(position_.offset) +
                                   " that does not go on from where " +
                                   (pending_.empty() && !handed_ ? "the index has come to" : "the log has come to"));
          return break_at(commit_header.error());
        }
        bytes = TIDEMARK_TRY(window_.at(position_.offset, commit_header->size));
        Pending pending;
        const auto parsed = parse_commit(bytes, expected, pending.info);
        // A header that is whole tells what was durable before it, even if what it heads is not whole.
        note_stated(Lsn(commit_header->durable_lsn));
        if (!parsed) return break_at(parsed.error());
        if (position_.offset + commit_header->size > end)
          return break_at({Code::corrupt, "commit", "passes its segment's end", ""});
        for (const ParsedCommit::Damage& damage : parsed->damaged) {
          const RecordInfo& record = pending.info.records[damage.record];
          pending.damaged.push_back({id, record.machine, record.disk, record.epoch, pending.info.blocks[damage.block]});
        }
        pending.sound = parsed->damaged.empty();
        position_ = {id, position_.offset + commit_header->size, pending.info.last_lsn.next(), pending.info.checksum};
        pending_.push_back(std::move(pending));
        TIDEMARK_TRY(hand_on(false));
      }
      if (position_.offset > end && after != nullptr)
        return corrupt(id, "ends before where the index has come to: index and log are not of the same age");
      if (position_.offset != end) return break_at({Code::corrupt, "segment", "ends where no commit does", ""});
    }
    return {};
  }

  Status break_at(const Error& why) {
    if (why.code == Code::unsupported) {
      Error error = why;
      error.object = path_of(position_.segment);
      return std::unexpected(std::move(error));
    }
    break_why_ = why.what;
    return {};
  }

  // What do headers beyond the break state? In the rest of that segment and in every later file.
  Status look_beyond() {
    if (position_.segment.value() != 0 && header_of(position_.segment) != nullptr) {
      const SegmentHeader& header = *header_of(position_.segment);
      TIDEMARK_TRY(scan(position_.segment, Incarnation(header.incarnation), position_.offset));
    }
    for (const auto& [id, header] : found_) {
      if (id <= position_.segment) continue;
      if (header) {
        // An older incarnation's leftovers were judged when the newer one was opened.
        if (Incarnation(header->incarnation) != newest_incarnation_) continue;
        note_stated(Lsn(header->durable_lsn));
        TIDEMARK_TRY(scan(id, newest_incarnation_, limits::kIoAlignment));
      } else {
        TIDEMARK_TRY(expect_unused(id));
      }
    }
    return {};
  }

  Status scan(SegmentId id, Incarnation incarnation, std::uint64_t from) {
    TIDEMARK_TRY(read_through(id));
    std::uint64_t last_end = from;
    for (std::uint64_t at = from; at < window_.size(); at += limits::kIoAlignment) {
      const auto bytes = TIDEMARK_TRY(window_.at(at, limits::kIoAlignment));
      const auto header = parse_commit_header(bytes, expectation(id, incarnation, at));
      if (!header) continue;
      note_stated(Lsn(header->durable_lsn));
      last_end = std::max(last_end, at + header->size);
    }
    result_.torn_bytes += last_end - from;
    return {};
  }

  // A file that is named for the log and has no header: on deck, never begun. A header is durable before its
  // first commit, so a commit in there means that the header was lost.
  Status expect_unused(SegmentId id) {
    TIDEMARK_TRY(read_through(id));
    for (std::uint64_t at = limits::kIoAlignment; at < window_.size(); at += limits::kIoAlignment) {
      const auto bytes = TIDEMARK_TRY(window_.at(at, limits::kIoAlignment));
      if (bytes.size() < sizeof(CommitHeader)) break;
      CommitHeader header;
      std::memcpy(&header, bytes.data(), sizeof header);
      if (header.magic != kCommitMagic ||
          !parse_commit_header(bytes, expectation(id, Incarnation(header.incarnation), at)))
        continue;
      return corrupt(id, "has no valid header, but a commit of its own at offset " + std::to_string(at) + " (LSN " +
                             std::to_string(header.first_lsn) + ")");
    }
    return {};
  }

  Status decide() {
    if (position_.next_lsn > durable_ || planted(Planted::rot_taken_for_torn)) return {};
    return corrupt(position_.segment, "is damaged at offset " + std::to_string(position_.offset) +
                                          ": the commit there " + (break_why_.empty() ? "is missing" : break_why_) +
                                          "; LSNs " + std::to_string(position_.next_lsn.value()) + " to " +
                                          std::to_string(durable_.value()) + " were durable and are lost");
  }

  // The commits whose fate is known; with `last` all of them: what is not sound above D is the torn tail's begin.
  Status hand_on(bool last) {
    while (!pending_.empty()) {
      Pending& pending = pending_.front();
      // A commit without records changes nothing by being torn, and ends where it begins.
      const bool proven = pending.info.first_lsn <= durable_;
      if (!proven && !last) return {};
      if (!proven && !pending.sound) {
        for (const Pending& dropped : pending_) result_.torn_bytes += dropped.info.size;
        pending_.clear();
        return {};
      }
      for (DamagedBlock& block : pending.damaged) {
        if (result_.damaged.size() >= kDamagedListedMax) break;
        result_.damaged.push_back(std::move(block));
      }
      CommitInfo& info = pending.info;
      if (info.last_lsn > durable_ && (unproven_.empty() || unproven_.back() != info.segment))
        unproven_.push_back(info.segment);
      ++result_.commits;
      result_.replayed_bytes += info.size;
      handed_ = {info.segment, info.offset + info.size, info.last_lsn.next(), info.checksum};
      TIDEMARK_TRY(sink_(std::move(info)));
      pending_.pop_front();
    }
    return {};
  }

  // Read is not durable: what the former process left in flight may still stand in a volatile cache.
  Status make_durable() {
    for (const SegmentId id : unproven_) {
      const auto file = TIDEMARK_TRY(files_.open(path_of(id), OpenMode::read, true));
      TIDEMARK_TRY(file->sync());
    }
    return {};
  }

  Result<RecoveryResult> finish() {
    // Where the log goes on: behind the last commit handed on, or where it was all along.
    const LogMark& mark = options_.mark;
    if (handed_) {
      result_.tail = {Lsn(handed_->next_lsn.value() - 1), handed_->checksum, handed_->segment, handed_->offset,
                      stated_};
    } else if (mark.segment.value() != 0) {
      result_.tail = {mark.lsn, mark.checksum, mark.segment, mark.offset, stated_};
    } else if (!chain_.empty()) {
      const SegmentHeader& first = *header_of(chain_.front());
      result_.tail = {Lsn(first.first_lsn - 1), first.predecessor_checksum, SegmentId(first.predecessor),
                      first.predecessor_end, stated_};
    }
    result_.durable_lsn = durable_;
    // Older than the mark: all of them, whatever their headers say; the index knows what lives there. From the mark on:
    // the chain, as far as it holds. Its last segment may have nothing to hand on: it stays all the same until a newer
    // header is durable, because it says where its predecessor ends. Without it, what a failed write left behind that
    // end would be taken up at the next start.
    const SegmentId last = std::max(position_.segment, handed_ ? handed_->segment : mark.segment);
    for (const auto& [id, header] : found_) {
      const bool old = !chain_.empty() && id.value() <= header_of(chain_.front())->predecessor;
      const bool chained = id <= last && std::ranges::find(chain_, id) != chain_.end();
      if (old || chained) result_.segments.push_back(id);
    }
    if (result_.torn_bytes > 0) {
      leave_mark(Mark::torn_tail);
      spdlog::info("storage: dropped a torn tail partition={} after_lsn={} bytes={}", options_.partition.value(),
                   result_.tail.last_lsn.value(), result_.torn_bytes);
    }
    return std::move(result_);
  }

  FileSystem& files_;
  const std::string& directory_;
  const RecoveryOptions& options_;
  const std::function<Status(CommitInfo&&)>& sink_;

  std::map<SegmentId, std::optional<SegmentHeader>> found_;  // files named by an id, and the valid header, if any
  std::deque<SegmentId> chain_;
  Incarnation newest_incarnation_;
  Position position_;  // where the walk has come to
  std::string break_why_;
  Lsn durable_;                  // D, as far as known
  Lsn stated_;                   // of that, what the log itself says: without the index nothing else is known
  std::deque<Pending> pending_;  // walked, not yet handed on: what may have been in flight
  std::optional<Position> handed_;
  std::vector<SegmentId> unproven_;  // hold commits above D that were handed on
  std::unique_ptr<File> file_;       // what window_ reads
  FileWindow window_{kWindow};
  RecoveryResult result_;
};

}  // namespace

Result<RecoveryResult> recover_log(FileSystem& files, const std::string& directory, const RecoveryOptions& options,
                                   const std::function<Status(CommitInfo&&)>& sink) {
  return Recovery(files, directory, options, sink).run();
}

}  // namespace tidemark::storage
