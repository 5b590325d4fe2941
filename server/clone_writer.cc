#include "server/clone_writer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <future>
#include <iterator>
#include <utility>

#include "base/planted.h"
#include "server/admin_routes.h"
#include "server/logging.h"
#include "server/nbd_service.h"
#include "server/shard.h"

namespace tidemark::server {

namespace {

constexpr std::uint64_t kGranule = limits::kGranuleSize;
constexpr std::size_t kPayloadTarget = 1_MiB;
constexpr std::uint32_t kCrash = 2;  // of wire's Consistency
constexpr auto kRefreshEvery = std::chrono::milliseconds(100);
constexpr std::uint64_t kRefreshBytes = 8_MiB;
constexpr std::uint64_t kMapMax = 1_GiB;  // of one answer

}  // namespace

CloneWriter::CloneWriter(NbdService& service, const Place& place)
    : service_(service), place_(place), encoder_(std::make_unique<wire::BlockEncoder>(place.id)) {}
CloneWriter::~CloneWriter() = default;

Result<std::shared_ptr<CloneWriter>> CloneWriter::open(NbdService& service, const Place& place) {
  auto self = std::make_shared<CloneWriter>(service, place);
  auto settled = std::make_shared<std::promise<Status>>();
  auto future = settled->get_future();
  place.shard->post([self, settled] {
    const Place& at = self->place_;
    const auto* state = at.host->find(at.id);
    if (state == nullptr) return settled->set_value(fail(Code::not_found, at.name, "there is no clone of this name"));
    if (const auto serving = at.host->serving(); !serving) return settled->set_value(serving);
    if (state->begun_epoch) {  // of a server that died, or a writer that went
      storage::pb::EpochAbortRecord abort;
      abort.set_number(state->begun_epoch->value());
      abort.set_reason("it was not flushed");
      if (auto aborted = at.partition->abort_epoch(at.id, abort); !aborted) return settled->set_value(aborted);
    }
    at.partition->when_durable([self, settled](const Status& durable) {
      const auto* now = self->place_.host->find(self->place_.id);
      if (!durable || now == nullptr)
        return settled->set_value(durable ? Status(fail(Code::not_found, self->place_.name, "it was dropped"))
                                          : durable);
      self->epoch_ = now->next_epoch;
      self->durable_ = self->committed_ = now->durable_epoch;
      self->digest_ = now->durable_digest;
      for (const auto& disk : now->record.disks())
        if (disk.size() != 0) self->sizes_.emplace_back(DiskId(disk.disk()), disk.size());
      settled->set_value({});
    });
  });
  if (future.wait_for(kIndexTimeout) != std::future_status::ready)
    return fail(Code::timed_out, place.name, "its partition does not answer", "try again");
  TIDEMARK_TRY(future.get());
  return self;
}

Status CloneWriter::open_disk(DiskId disk) {
  EpochNumber epoch;
  std::uint64_t size = 0;
  for (const auto& [known, bytes] : sizes_)
    if (known == disk) size = bytes;
  {
    const std::lock_guard lock(mutex_);
    if (disks_.contains(disk)) return {};
    epoch = durable_;
  }
  auto view = TIDEMARK_TRY(place_.partition->view(place_.id, disk, epoch, kIndexTimeout, service_.cache()));
  const std::lock_guard lock(mutex_);
  disks_[disk] = {.size = size, .view = std::move(view), .overlay = {}};
  return {};
}

// --- reading ---

Status CloneWriter::read(DiskId disk, std::uint64_t offset, std::span<std::byte> to, storage::ReadScratch& scratch,
                         std::vector<storage::ByteRange>* zeroes) {
  std::shared_ptr<const storage::DiskView> view;
  std::vector<Overlay::Run> runs;
  const std::uint64_t end = offset + to.size();
  {
    const std::lock_guard lock(mutex_);
    const Disk& of = disks_.at(disk);
    view = of.view;
    const std::uint64_t first = offset / kGranule;
    runs = of.overlay.find(first, round_up(end, kGranule) / kGranule - first);
  }
  std::uint64_t at = offset;
  const auto below = [&](std::uint64_t until) -> Status {
    if (until <= at) return {};
    TIDEMARK_TRY(view->read(at, to.subspan(at - offset, until - at), scratch, zeroes));
    at = until;
    return {};
  };
  for (const auto& run : runs) {
    const std::uint64_t from = std::max(offset, run.first * kGranule);
    const std::uint64_t until = std::min(end, (run.first + run.granules) * kGranule);
    TIDEMARK_TRY(below(from));
    if (run.data) {
      std::memcpy(to.data() + (from - offset),
                  run.data->span().data() + run.offset * kGranule + (from - run.first * kGranule), until - from);
    } else if (zeroes != nullptr) {
      zeroes->push_back({.offset = from, .length = until - from, .zero = true});
    } else {
      std::memset(to.data() + (from - offset), 0, until - from);
    }
    at = until;
  }
  return below(end);
}

// Together where nothing was written lately.
void CloneWriter::read_many(DiskId disk, std::span<storage::DiskRead> reads, storage::ReadScratch& scratch) {
  std::shared_ptr<const storage::DiskView> view;
  auto below = reads.begin();  // those before it are of the view alone
  {
    const std::lock_guard lock(mutex_);
    const Disk& of = disks_.at(disk);
    view = of.view;
    below = std::partition(reads.begin(), reads.end(), [&](const storage::DiskRead& read) {
      const std::uint64_t first = read.offset / kGranule;
      return of.overlay.find(first, round_up(read.offset + read.to.size(), kGranule) / kGranule - first).empty();
    });
  }
  for (auto one = below; one != reads.end(); ++one)
    one->status = read(disk, one->offset, one->to, scratch, one->zeroes);
  if (below != reads.begin()) view->read_many({reads.begin(), below}, scratch);
}

std::shared_ptr<const storage::DiskView> CloneWriter::view_for(DiskId disk, std::uint64_t offset,
                                                               std::uint64_t length) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return nullptr;
  const Disk& of = disks_.at(disk);
  const std::uint64_t first = offset / kGranule;
  const bool written = !of.overlay.find(first, round_up(offset + length, kGranule) / kGranule - first).empty();
  return written ? nullptr : of.view;
}

Result<std::vector<storage::ByteRange>> CloneWriter::map(DiskId disk, std::uint64_t offset, std::uint64_t length) {
  length = std::min(length, kMapMax);
  // Both as of one moment: what the overlay has no more, a later view shows and not this one.
  std::shared_ptr<const storage::DiskView> view;
  std::vector<Overlay::Run> runs;
  {
    const std::lock_guard lock(mutex_);
    const Disk& mapped = disks_.at(disk);
    view = mapped.view;
    const std::uint64_t first = offset / kGranule;
    runs = mapped.overlay.find(first, round_up(offset + length, kGranule) / kGranule - first);
  }
  const auto below = TIDEMARK_TRY(view->map(offset, length));
  std::vector<storage::ByteRange> ranges;
  const auto add = [&](std::uint64_t from, std::uint64_t until, bool zero) {
    if (until <= from) return;
    if (!ranges.empty() && ranges.back().zero == zero) {
      ranges.back().length += until - from;
    } else {
      ranges.push_back({.offset = from, .length = until - from, .zero = zero});
    }
  };
  auto run = runs.begin();
  for (const auto& range : below) {
    std::uint64_t at = range.offset;
    const std::uint64_t until = range.offset + range.length;
    while (at < until) {
      while (run != runs.end() && (run->first + run->granules) * kGranule <= at) ++run;
      const std::uint64_t from = run == runs.end() ? until : std::clamp(run->first * kGranule, at, until);
      add(at, from, range.zero);
      if (from == until) break;
      const std::uint64_t stop = std::min(until, (run->first + run->granules) * kGranule);
      add(from, stop, run->data == nullptr);
      at = stop;
    }
  }
  return ranges;
}

void CloneWriter::prefetch(DiskId disk, std::uint64_t offset, std::uint64_t length, storage::ReadScratch& scratch) {
  std::shared_ptr<const storage::DiskView> view;
  {
    const std::lock_guard lock(mutex_);
    view = disks_.at(disk).view;
  }
  static_cast<void>(view->prefetch(offset, length, scratch));
}

// --- the queue ---

void CloneWriter::change(DiskId disk, NbdChange change) { enqueue({disk, std::move(change)}); }

void CloneWriter::flush(std::function<void(Status)> done) {
  NbdChange change;
  change.done = std::move(done);
  enqueue({std::nullopt, std::move(change)});
}

void CloneWriter::enqueue(Queued queued) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(queued));
  }
  work();
}

void CloneWriter::work() {
  {
    const std::lock_guard lock(mutex_);
    if (working_ || queue_.empty()) return;
    if (overlay_bytes() > kOverlayMax && !no_room_ && !broken_ && queue_.front().disk) return;  // refresh() goes on
    working_ = true;
  }
  if (service_.work([self = shared_from_this()] { self->run(); })) return;
  std::deque<Queued> refused;
  {
    const std::lock_guard lock(mutex_);
    working_ = false;
    refused.swap(queue_);
  }
  for (auto& one : refused) one.change.done(fail(Code::cancelled, place_.name, "the server stops"));
}

void CloneWriter::run() {
  std::vector<std::function<void(Status)>> durable, done;
  for (std::uint64_t bytes = 0; bytes < kCommitBytes;) {
    std::optional<Queued> next;
    std::optional<Error> refusal;
    {
      const std::lock_guard lock(mutex_);
      if (queue_.empty() || (overlay_bytes() > kOverlayMax && !no_room_ && !broken_ && queue_.front().disk)) break;
      next = std::move(queue_.front());
      queue_.pop_front();
      refusal = broken_ ? broken_ : no_room_;
    }
    if (refusal) {
      next->change.done(std::unexpected(*refusal));
      continue;
    }
    if (next->disk) {
      bytes += next->change.length;
      if (auto applied = apply(*next->disk, next->change); !applied) {
        next->change.done(std::move(applied));
        continue;
      }
      next->change.data.reset();
    }
    (!next->disk || next->change.durable ? durable : done).push_back(std::move(next->change.done));
  }
  hand_payload();
  if (planted(Planted::flush_ignored)) {
    std::move(durable.begin(), durable.end(), std::back_inserter(done));
    durable.clear();
  }
  if (!durable.empty() || uncommitted_ >= kCommitBytes) {
    const EpochNumber epoch = commit();
    const std::lock_guard lock(mutex_);
    if (broken_ || durable_ >= epoch) {
      std::move(durable.begin(), durable.end(), std::back_inserter(done));
    } else {
      auto& waiters = waiters_[epoch];
      std::move(durable.begin(), durable.end(), std::back_inserter(waiters));
    }
  }
  if (!steps_.empty())
    place_.shard->post(
        [self = shared_from_this(), steps = std::exchange(steps_, {})]() mutable { self->take(std::move(steps)); });
  Status status;
  {
    const std::lock_guard lock(mutex_);
    working_ = false;
    if (broken_) status = std::unexpected(*broken_);
  }
  for (const auto& one : done) one(status);
  work();
}

Status CloneWriter::apply(DiskId disk, const NbdChange& change) {
  if (change.length == 0) return {};  // a write of nothing has no data
  std::uint64_t size = 0;
  {
    const std::lock_guard lock(mutex_);
    size = disks_.at(disk).size;
  }
  const std::uint64_t end = change.offset + change.length;
  const std::uint64_t first = round_up(change.offset, kGranule);
  // A disk's last granule may be short, and is whole all the same.
  const std::uint64_t last = end == size ? round_up(end, kGranule) : round_down(end, kGranule);
  const bool write = change.kind == NbdChange::Kind::write;
  const std::span<const std::byte> bytes = write ? change.data->span() : std::span<const std::byte>();
  static constexpr std::array<std::byte, kGranule> kZeroes{};
  const auto part = [&](std::uint64_t from, std::uint64_t until) {
    return write ? bytes.subspan(from - change.offset, until - from) : std::span(kZeroes).first(until - from);
  };
  if (first >= last) {                                    // within one granule, or over the border of two
    if (change.kind == NbdChange::Kind::trim) return {};  // it was a hint
    const std::uint64_t border = std::min(end, first);
    if (border > change.offset) TIDEMARK_TRY(put_edge(disk, change.offset, part(change.offset, border)));
    if (end > border) TIDEMARK_TRY(put_edge(disk, border, part(border, end)));
    return {};
  }
  if (change.offset < first && change.kind != NbdChange::Kind::trim)
    TIDEMARK_TRY(put_edge(disk, change.offset, part(change.offset, first)));
  if (write) {
    put_data(disk, first / kGranule, bytes.subspan(first - change.offset, std::min(last, end) - first),
             (last - first) / kGranule);
  } else {
    put_zeroes(disk, first / kGranule, (last - first) / kGranule);
  }
  if (end > last && change.kind != NbdChange::Kind::trim) TIDEMARK_TRY(put_edge(disk, last, part(last, end)));
  return {};
}

// A part of one granule: the rest of it stays as it is.
Status CloneWriter::put_edge(DiskId disk, std::uint64_t offset, std::span<const std::byte> bytes) {
  std::array<std::byte, kGranule> granule{};
  const std::uint64_t start = round_down(offset, kGranule);
  std::uint64_t size = 0;
  {
    const std::lock_guard lock(mutex_);
    size = disks_.at(disk).size;
  }
  TIDEMARK_TRY(
      read(disk, start, std::span(granule).first(std::min(kGranule, size - start)), NbdService::scratch(), nullptr));
  std::memcpy(granule.data() + (offset - start), bytes.data(), bytes.size());
  put_data(disk, start / kGranule, granule, 1);
  return {};
}

// Blocks end at multiples of their largest size, so that none crosses a region.
void CloneWriter::put_data(DiskId disk, std::uint64_t first, std::span<const std::byte> bytes, std::uint64_t granules) {
  while (granules != 0) {
    const std::uint64_t n =
        std::min(granules, round_down(first, limits::kBlockGranulesMax) + limits::kBlockGranulesMax - first);
    auto chunk = std::make_shared<OverlayChunk>(overlay_bytes_, n * kGranule);
    const std::size_t size = std::min<std::size_t>(bytes.size(), n * kGranule);
    std::memcpy(chunk->span().data(), bytes.data(), size);
    if (size < n * kGranule) std::memset(chunk->span().data() + size, 0, n * kGranule - size);
    make_ready(disk, limits::kBlockHeaderSize + n * kGranule);
    if (wire::all_zero(chunk->span())) {
      encoder_->add_zeroes(first, n);
    } else {
      encoder_->add(first, chunk->span());
    }
    {
      const std::lock_guard lock(mutex_);
      disks_.at(disk).overlay.put(
          {.first = first, .granules = n, .data = std::move(chunk), .offset = 0, .epoch = epoch_});
    }
    uncommitted_ += n * kGranule;
    bytes = bytes.subspan(size);
    first += n;
    granules -= n;
  }
}

void CloneWriter::put_zeroes(DiskId disk, std::uint64_t first, std::uint64_t granules) {
  make_ready(disk, limits::kBlockHeaderSize);
  encoder_->add_zeroes(first, granules);
  const std::lock_guard lock(mutex_);
  disks_.at(disk).overlay.put({.first = first, .granules = granules, .data = nullptr, .offset = 0, .epoch = epoch_});
  uncommitted_ += kGranule;
}

void CloneWriter::make_ready(DiskId disk, std::size_t bytes) {
  if (!begun_) {
    begun_ = true;
    dirty_since_ = std::chrono::steady_clock::now().time_since_epoch().count();
    content_ = {};
    hand({.kind = Step::Kind::begin, .epoch = epoch_, .disk = {}, .payload = {}, .digest = {}});
  }
  if (encoding_ == disk && encoder_->payload().size() + bytes <= kPayloadTarget) return;
  hand_payload();
  encoder_->start(disk, epoch_);
  encoding_ = disk;
}

void CloneWriter::hand_payload() {
  if (!encoding_ || encoder_->payload().empty()) return;
  content_.add(encoder_->summary());
  const DiskId disk = *encoding_;
  hand({.kind = Step::Kind::blocks, .epoch = epoch_, .disk = disk, .payload = encoder_->take(), .digest = {}});
}

void CloneWriter::hand(Step step) { steps_.push_back(std::move(step)); }

EpochNumber CloneWriter::commit() {
  if (!begun_) {
    const std::lock_guard lock(mutex_);
    return committed_;
  }
  hand_payload();
  const WallMicros now_us = place_.shard->node().clock.wall_us();
  digest_ = wire::epoch_digest(digest_, epoch_, now_us, kCrash, content_);
  hand({.kind = Step::Kind::commit, .epoch = epoch_, .disk = {}, .payload = {}, .digest = digest_, .time_us = now_us});
  const EpochNumber epoch = epoch_;
  epoch_ = epoch_.next();
  begun_ = false;
  encoding_.reset();
  uncommitted_ = 0;
  dirty_since_ = 0;
  const std::lock_guard lock(mutex_);
  committed_ = epoch;
  return epoch;
}

bool CloneWriter::broken() {
  const std::lock_guard lock(mutex_);
  return broken_.has_value();
}

// --- the view moves on ---

void CloneWriter::tick() {
  const std::int64_t since = dirty_since_;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  if (since != 0 && now - std::chrono::steady_clock::duration(since) > kCommitAfter) flush([](const Status&) {});
  place_.shard->post([self = shared_from_this()] { self->advance(); });
  want_refresh();
}

void CloneWriter::want_refresh() {
  {
    const std::lock_guard lock(mutex_);
    if (refreshing_ || broken_ || durable_ <= shown_) return;
    if (overlay_bytes() < kRefreshBytes && std::chrono::steady_clock::now() - refreshed_ < kRefreshEvery) return;
    refreshing_ = true;
  }
  if (service_.work([self = shared_from_this()] { self->refresh(); })) return;
  const std::lock_guard lock(mutex_);
  refreshing_ = false;
}

void CloneWriter::refresh() {
  EpochNumber epoch;
  std::vector<DiskId> disks;
  {
    const std::lock_guard lock(mutex_);
    epoch = durable_;
    for (const auto& [disk, of] : disks_) disks.push_back(disk);
  }
  Status all;
  for (const DiskId disk : disks) {
    auto view = place_.partition->view(place_.id, disk, epoch, kIndexTimeout, service_.cache());
    if (!view) {  // it is not the newest any more, or the index is late: again with a newer one
      all = std::unexpected(view.error());
      break;
    }
    const std::lock_guard lock(mutex_);
    Disk& of = disks_.at(disk);
    of.view = std::move(*view);
    of.overlay.drop_until(epoch);
  }
  {
    const std::lock_guard lock(mutex_);
    refreshing_ = false;
    refreshed_ = std::chrono::steady_clock::now();
    if (all) shown_ = std::max(shown_, epoch);
  }
  work();
  if (all) want_refresh();
}

}  // namespace tidemark::server
