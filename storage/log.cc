// One commit's life: open (gathering) -> closed (waits for its turn and for a segment) -> flying (being written) ->
// durable, reported, its buffer free again.
//
// Invariants
// - Commits are launched in LSN order, each at the place behind the one before it; they complete in any order and are
//   reported in LSN order. flying_ and closed_ together are every commit not yet reported, in order.
// - A segment's header is durable before the first commit into it is queued. It may be written while the last commits
// of
//   the segment before are still in flight: what it states as durable is what was durable, not where it begins.
// - A buffer is touched only while no write of it is in flight: after a failure everything in flight comes back first.
#include "storage/log.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/marks.h"
#include "base/planted.h"
#include "storage/segment_keeper.h"

namespace tidemark::storage {
namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;

// What the loop itself adds to a write's latency before the next commit can follow (measured).
constexpr microseconds kTurnaround{1400};
constexpr microseconds kRateWindow{20'000};

// Commits of this size on average take about as long in a segment that was only allocated; see SegmentKeeper.
constexpr std::uint64_t kLargeCommit = 64_KiB;
constexpr std::uint64_t kSizesAveraged = 16;

// The end of the chain: the next commit's predecessor.
struct ChainEnd {
  SegmentId segment;
  std::uint64_t end = 0;
  std::uint64_t checksum = 0;
};

}  // namespace

struct Log::Impl {
  struct Commit final : IoCompletion {
    explicit Commit(Impl& owner) : log(owner) {}
    void on_io_done(int result) override { log.on_commit_written(*this, result); }

    Impl& log;
    AlignedBuffer buffer;  // made at first use: an idle partition holds none
    CommitInfo info;       // block places count from `placed_at`
    std::uint64_t placed_at = 0;
    std::vector<RecordEntry> table;
    Xxh3Stream headers;
    Hash128 headers_hash;
    std::uint32_t payload_size = 0;
    Lsn stated;  // durable LSN in its header
    steady_clock::time_point opened, launched;
    std::shared_ptr<Segment> segment;  // keeps the file open while it is written
    bool done = false;
    bool good = false;
    bool rewritten = false;
    bool reported = false;  // planted bug only
  };

  struct HeaderWrite final : IoCompletion {
    explicit HeaderWrite(Impl& owner) : log(owner), buffer(limits::kIoAlignment) {}
    void on_io_done(int result) override { log.on_header_written(result); }
    Impl& log;
    AlignedBuffer buffer;
    Lsn stated;
  };

  Impl(LogOptions log_options, IoQueue& io_queue, SegmentKeeper& keeper, const Clock& time, const LogTail& tail,
       Listener& to)
      : options(log_options),
        queue(io_queue),
        segments(keeper),
        clock(time),
        listener(to),
        capacity(std::min<std::uint64_t>(limits::kCommitSizeMax, keeper.segment_size() - limits::kIoAlignment)),
        depth(std::clamp(log_options.commits_in_flight_max, 1U, limits::kCommitsInFlightMax)),
        next_lsn(tail.last_lsn.next()),
        durable(tail.last_lsn),
        stated_on_disk(tail.stated_lsn),
        chain{tail.last_segment, tail.last_segment_end, tail.last_checksum},
        durable_chain(chain) {
    TIDEMARK_CHECK(keeper.segment_size() >= 16 * limits::kIoAlignment);
    TIDEMARK_CHECK(log_options.incarnation.value() > 0);
    counters.in_flight_target = depth;
    for (std::uint32_t i = 0; i < limits::kCommitBuffers; ++i) {
      commits.push_back(std::make_unique<Commit>(*this));
      free.push_back(commits.back().get());
    }
  }

  ~Impl() {
    closing = true;
    while (writes_in_flight > 0) queue.wait();
  }

  // --- gathering ---

  bool fits(const Commit& commit, std::size_t payload) const {
    return commit.table.size() < limits::kRecordsPerCommitMax &&
           commit_size(commit.payload_size + payload, commit.table.size() + 1) <= capacity;
  }

  Commit* open_commit() {
    if (free.empty()) return nullptr;
    Commit* const commit = free.back();
    free.pop_back();
    if (!commit->buffer) {
      commit->buffer = AlignedBuffer(capacity);
      counters.buffer_bytes += capacity;
    }
    commit->info = CommitInfo{};
    commit->info.first_lsn = next_lsn;
    commit->placed_at = 0;
    commit->table.clear();
    commit->headers.reset();
    commit->payload_size = 0;
    commit->opened = clock.monotonic();
    commit->done = commit->good = commit->rewritten = commit->reported = false;
    return commit;
  }

  void close() {
    Commit& commit = *std::exchange(open, nullptr);
    commit.info.last_lsn = Lsn(commit.info.first_lsn.value() + commit.table.size() - 1);
    commit.info.arrival_us = clock.wall_us();
    commit.headers.update(std::as_bytes(std::span(commit.table)));
    commit.headers_hash = commit.headers.digest();
    closed.push_back(&commit);
    close_wanted = false;
  }

  bool gathered() const { return open != nullptr && !open->table.empty(); }

  // `write` puts the payload where it is to stand.
  Result<Lsn> append(RecordInfo record, std::size_t size, const std::function<void(std::span<std::byte>)>& write) {
    if (error) return std::unexpected(*error);
    if (commit_size(size, 1) > capacity)
      return fail(Code::invalid_argument, "record", "is longer than a commit can be");
    if (open != nullptr && !fits(*open, size)) {
      close();
      pump();
    }
    if (open == nullptr) open = open_commit();
    if (open == nullptr) return fail(Code::busy, "log", "has no room until a write completes");

    Commit& commit = *open;
    record.lsn = next_lsn;
    RecordEntry entry{};
    std::memcpy(entry.machine, record.machine.bytes().data(), MachineId::kSize);
    entry.payload_size = static_cast<std::uint32_t>(size);
    entry.disk = record.disk.value();
    entry.type = static_cast<std::uint8_t>(record.type);
    entry.flags = record.sealed ? kSealedRecord : std::uint8_t{0};
    const std::size_t at = sizeof(CommitHeader) + commit.payload_size;
    const std::span<std::byte> payload = commit.buffer.span().subspan(at, size);
    write(payload);
    TIDEMARK_TRY(add_record(std::move(record), payload, at, commit.info, commit.headers));
    commit.table.push_back(entry);
    commit.payload_size += entry.payload_size;
    next_lsn = next_lsn.next();
    ++counters.records;
    counters.payload_bytes += size;
    const Lsn lsn(next_lsn.value() - 1);
    if (commit_size(commit.payload_size, commit.table.size()) >= limits::kCommitSizeTarget) {
      close_wanted = true;
      pump();
    }
    return lsn;
  }

  // A payload that does not fit what is left of one commit goes to the next: leave that much out of each.
  std::size_t room_of_a_commit() const {
    return capacity - std::min<std::size_t>(capacity / 4, limits::kFramePayloadMax) - 2 * limits::kIoAlignment;
  }

  std::size_t room() const {
    if (error) return 0;
    std::size_t bytes = free.size() * room_of_a_commit();
    if (open != nullptr && open->table.size() < limits::kRecordsPerCommitMax / 2) {
      const std::size_t used = commit_size(open->payload_size, open->table.size()) + 2 * limits::kIoAlignment;
      if (used < capacity && free.empty()) bytes += capacity - used;
    }
    return bytes;
  }

  void count_shape(std::uint64_t size, std::size_t records) {
    const auto bucket = [](std::uint64_t value, std::uint64_t least, std::size_t buckets) {
      const std::uint64_t times = (value + least - 1) / least;  // rounded up
      return std::min<std::size_t>(times <= 1 ? 0 : static_cast<std::size_t>(std::bit_width(times - 1)), buckets - 1);
    };
    ++counters.sizes[bucket(size, Counters::kSizeLeast, counters.sizes.size())];
    ++counters.gathered[bucket(records, 1, counters.gathered.size())];
  }

  // Tells the keeper when commits have become large, or small again.
  void note_size(const Commit& commit, std::uint64_t size) {
    if (commit.table.empty()) return;
    average_size = average_size - average_size / kSizesAveraged + size / kSizesAveraged;
    const bool now_large = average_size >= (large ? kLargeCommit / 2 : kLargeCommit);
    if (now_large != large) segments.expect_large_commits(large = now_large);
  }

  // --- launching ---

  // Launches what can be: in order, while there is a free place among those in flight, and a segment.
  void pump() {
    if (error || failure || closing) return;
    while (flying.size() < depth) {
      if (closed.empty()) {
        if (!close_wanted || !gathered()) return;
        close();
      }
      Commit& commit = *closed.front();
      if (!segment_ready(commit)) return;
      closed.pop_front();
      launch(commit);
    }
  }

  // True: the commit goes into the current segment now. False: it waits for a segment or for its header.
  bool segment_ready(const Commit& commit) {
    if (header_flying) return false;
    const std::uint64_t size = commit_size(commit.payload_size, commit.table.size());
    if (segment && end + size <= segment->size()) return true;
    std::shared_ptr<Segment> next = segments.take();
    if (!next) return false;
    TIDEMARK_CHECK(limits::kIoAlignment + size <= next->size());
    segment = std::move(next);
    end = limits::kIoAlignment;

    SegmentHeader header{};
    header.magic = kSegmentMagic;
    header.version = kLogVersion;
    header.partition = options.partition.value();
    header.segment = segment->id().value();
    header.incarnation = options.incarnation.value();
    header.size = segment->size();
    header.first_lsn = commit.info.first_lsn.value();
    header.predecessor = chain.segment.value();
    header.predecessor_end = chain.end;
    header.predecessor_checksum = chain.checksum;
    header.durable_lsn = durable.value();
    seal(header, options.salt);
    std::memset(header_write.buffer.data(), 0, header_write.buffer.size());
    std::memcpy(header_write.buffer.data(), &header, sizeof header);
    header_write.stated = durable;
    header_flying = true;
    ++writes_in_flight;
    counters.written_bytes += header_write.buffer.size();
    queue.write_durable(segment->file(), 0, header_write.buffer.span(), header_write);
    return false;
  }

  void launch(Commit& commit) {
    CommitInfo& info = commit.info;
    const std::uint64_t size = commit_size(commit.payload_size, commit.table.size());
    info.segment = segment->id();
    info.offset = end;
    info.size = static_cast<std::uint32_t>(size);
    for (BlockPlace& block : info.blocks) block.offset += static_cast<std::uint32_t>(end - commit.placed_at);
    commit.placed_at = end;
    commit.stated = durable;
    commit.segment = segment;

    CommitHeader header{};
    header.magic = kCommitMagic;
    header.version = kLogVersion;
    header.partition = options.partition.value();
    header.record_count = static_cast<std::uint32_t>(commit.table.size());
    header.segment = info.segment.value();
    header.incarnation = options.incarnation.value();
    header.offset = end;
    header.first_lsn = info.first_lsn.value();
    header.durable_lsn = durable.value();
    header.previous_checksum = chain.checksum;
    header.headers_hash_low = commit.headers_hash.low;
    header.headers_hash_high = commit.headers_hash.high;
    header.arrival_us = info.arrival_us;
    header.size = info.size;
    header.payload_size = commit.payload_size;
    seal(header, options.salt);
    info.checksum = commit_checksum(header);

    std::byte* const data = commit.buffer.data();
    std::memcpy(data, &header, sizeof header);
    const std::uint64_t table = table_offset(commit.payload_size);
    const std::uint64_t table_size = commit.table.size() * sizeof(RecordEntry);
    std::memset(data + sizeof header + commit.payload_size, 0, table - sizeof header - commit.payload_size);
    if (table_size > 0) std::memcpy(data + table, commit.table.data(), table_size);
    std::memset(data + table + table_size, 0, size - table - table_size);

    chain = {info.segment, end + size, info.checksum};
    end += size;
    note_size(commit, size);
    commit.done = commit.good = false;
    commit.launched = clock.monotonic();
    if (flying.empty()) {
      window_start = commit.launched;
      window_bytes = 0;
    }
    flying.push_back(&commit);
    ++writes_in_flight;
    ++counters.commits;
    counters.written_bytes += size;
    counters.commit_bytes += size;
    count_shape(size, commit.table.size());
    if (commit.rewritten) ++counters.rewritten;
    queue.write_durable(segment->file(), info.offset, commit.buffer.span().first(size), commit);
    if (planted(Planted::ack_before_durable) && !commit.reported) {
      commit.reported = true;
      listener.on_durable(CommitInfo(info));
    }
  }

  // --- completion ---

  void on_commit_written(Commit& commit, int result) {
    --writes_in_flight;
    commit.done = true;
    commit.good = result == static_cast<int>(commit.info.size);
    commit.segment.reset();
    if (closing) return;
    if (commit.good)
      measure(commit);
    else
      note_failure(commit.info.segment, commit.info.offset, commit.info.size, result);
    report();
    go_on();
  }

  void on_header_written(int result) {
    --writes_in_flight;
    header_flying = false;
    if (closing) return;
    if (result == static_cast<int>(header_write.buffer.size())) {
      ++counters.segments;
      stated_on_disk = std::max(stated_on_disk, header_write.stated);
      for (const SegmentId id : std::exchange(abandoned, {})) segments.discard(id);
    } else {
      note_failure(segment->id(), 0, header_write.buffer.size(), result);
    }
    go_on();
  }

  void go_on() {
    if (!failure)
      pump();
    else if (writes_in_flight == 0)
      rewrite_or_stop();
  }

  void note_failure(SegmentId id, std::uint64_t offset, std::size_t size, int result) {
    if (failure) return;
    const std::string doing = "write " + std::to_string(size) + " bytes at " + std::to_string(offset) + " durably";
    const std::string object = "segment " + std::to_string(id.value());
    if (result < 0)
      failure = fail_errno(-result, object, doing).error();
    else
      failure =
          fail(Code::io, object, "cannot " + doing + ": only " + std::to_string(result) + " were written").error();
  }

  // Reports what is durable, in log order. The listener may append.
  void report() {
    while (!flying.empty() && flying.front()->done && flying.front()->good) {
      Commit& commit = *flying.front();
      flying.pop_front();
      durable = commit.info.last_lsn;
      stated_on_disk = std::max(stated_on_disk, commit.stated);
      durable_chain = {commit.info.segment, commit.info.offset + commit.info.size, commit.info.checksum};
      if (commit.rewritten) --rewritten_left;
      if (rewritten_left == 0) failed_before = false;
      CommitInfo info = std::move(commit.info);
      const bool reported = commit.reported;
      free.push_back(&commit);
      if (!reported) listener.on_durable(std::move(info));
    }
  }

  // Nothing is in flight. Everything not reported goes to a fresh segment behind the last durable commit, once.
  void rewrite_or_stop() {
    const Error why = *std::exchange(failure, std::nullopt);
    leave_mark(failed_before ? Mark::log_stopped : Mark::log_rewritten);
    if (failed_before) {
      error = why;
      error->what += "; it was the second failure in a row, the log has stopped";
      error->remedy = "check the disk, then restart: everything acknowledged is safe";
      listener.on_stopped(*error);
      return;
    }
    failed_before = true;
    const auto abandon = [&](SegmentId id) {
      if (id != durable_chain.segment && std::ranges::find(abandoned, id) == abandoned.end()) abandoned.push_back(id);
    };
    for (auto at = flying.rbegin(); at != flying.rend(); ++at) {
      abandon((*at)->info.segment);
      if (!(*at)->rewritten) ++rewritten_left;
      (*at)->rewritten = true;
      closed.push_front(*at);
    }
    flying.clear();
    if (segment) abandon(segment->id());
    segment.reset();
    chain = durable_chain;
    counters.failures += 1;
    pump();
  }

  // Bytes in flight must be at least rate x (latency + turnaround), or the disk waits for us.
  void measure(const Commit& commit) {
    const auto now = clock.monotonic();
    const auto took = std::chrono::duration_cast<microseconds>(now - commit.launched);
    counters.write_us_total += static_cast<std::uint64_t>(took.count());
    counters.write_us_max = std::max(counters.write_us_max, static_cast<std::uint64_t>(took.count()));
    latency_us += (static_cast<double>(took.count()) - latency_us) / 8;
    window_bytes += commit.info.size;
    const auto window = std::chrono::duration_cast<microseconds>(now - window_start);
    if (window < kRateWindow) return;
    const double bytes_per_us = static_cast<double>(window_bytes) / static_cast<double>(window.count());
    const double wanted = bytes_per_us * (latency_us + static_cast<double>(kTurnaround.count()));
    const auto count = static_cast<std::uint32_t>(wanted / static_cast<double>(limits::kCommitSizeTarget)) + 1;
    const std::uint32_t least = std::clamp(options.commits_in_flight_max, 1U, limits::kCommitsInFlightMax);
    depth = counters.in_flight_target = std::clamp(count, least, limits::kCommitsInFlightMax);
    window_start = now;
    window_bytes = 0;
  }

  // --- the loop ---

  void end_turn() {
    if (error) return;
    if (gathered() && clock.monotonic() - open->opened >= options.linger) close_wanted = true;
    pump();
  }

  void on_idle() {
    if (error) return;
    if (gathered()) {
      close_wanted = true;
    } else if (flying.empty() && closed.empty() && !header_flying && durable > stated_on_disk) {
      if (open == nullptr) open = open_commit();
      if (open != nullptr) close();
    }
    pump();
  }

  const LogOptions options;
  IoQueue& queue;
  SegmentKeeper& segments;
  const Clock& clock;
  Listener& listener;
  const std::size_t capacity;  // of one commit, bytes

  std::vector<std::unique_ptr<Commit>> commits;  // all there are
  std::vector<Commit*> free;
  Commit* open = nullptr;
  std::deque<Commit*> closed;
  std::deque<Commit*> flying;
  bool close_wanted = false;  // the open commit is to be closed as soon as it can be launched
  std::uint32_t depth;        // commits that may be in flight

  Lsn next_lsn;
  Lsn durable;
  Lsn stated_on_disk;      // the highest durable LSN that a durable header states
  ChainEnd chain;          // behind the last launched commit
  ChainEnd durable_chain;  // behind the last reported one

  std::shared_ptr<Segment> segment;
  std::uint64_t end = 0;  // in it
  HeaderWrite header_write{*this};
  bool header_flying = false;
  std::uint64_t average_size = 0;  // of the last commits
  bool large = false;              // they are, as the keeper was told

  std::size_t writes_in_flight = 0;
  std::optional<Error> failure;  // a write failed; waiting for the others to come back
  bool failed_before = false;    // and nothing good came since
  std::size_t rewritten_left = 0;
  std::vector<SegmentId> abandoned;  // hold nothing durable; removed when their successor stands
  std::optional<Error> error;        // stopped
  bool closing = false;

  double latency_us = 0;
  steady_clock::time_point window_start;
  std::uint64_t window_bytes = 0;
  Counters counters;
};

Log::Log(LogOptions options, IoQueue& queue, SegmentKeeper& segments, const Clock& clock, LogTail tail,
         Listener& listener)
    : impl_(std::make_unique<Impl>(options, queue, segments, clock, tail, listener)) {}
Log::~Log() = default;

Result<Lsn> Log::append(RecordType type, const MachineId& machine, DiskId disk, std::span<const std::byte> payload) {
  RecordInfo record;
  record.type = type;
  record.machine = machine;
  record.disk = disk;
  return impl_->append(std::move(record), payload.size(), [&](std::span<std::byte> to) {
    // std::ranges::copy goes byte by byte here (gcc 12).
    if (!payload.empty()) std::memcpy(to.data(), payload.data(), payload.size());
  });
}
Result<Lsn> Log::append_sealed(const MachineId& machine, DiskId disk, std::size_t size,
                               const std::function<void(std::span<std::byte>)>& write) {
  RecordInfo record;
  record.type = RecordType::blocks;
  record.machine = machine;
  record.disk = disk;
  record.sealed = true;
  return impl_->append(std::move(record), size, write);
}
std::size_t Log::room() const { return impl_->room(); }
std::size_t Log::room_max() const { return (limits::kCommitBuffers - 1) * impl_->room_of_a_commit(); }
void Log::end_turn() { impl_->end_turn(); }
void Log::on_idle() { impl_->on_idle(); }
Lsn Log::last_lsn() const { return Lsn(impl_->next_lsn.value() - 1); }
Lsn Log::durable_lsn() const { return impl_->durable; }
bool Log::stopped() const { return impl_->error.has_value(); }
bool Log::quiet() const { return impl_->writes_in_flight == 0; }
const Log::Counters& Log::counters() const {
  impl_->counters.in_flight = static_cast<std::uint32_t>(impl_->flying.size());
  return impl_->counters;
}

}  // namespace tidemark::storage
