// The transmission phase of an NBD connection: requests in, workers, answers out.
#include <algorithm>
#include <cstring>
#include <utility>

#include "server/nbd_clients.h"
#include "server/nbd_connection.h"
#include "server/nbd_reads.h"
#include "server/shard.h"

namespace tidemark::server {

namespace {

constexpr std::size_t kSendBacklogMax = 8_MiB;    // queued for a client that does not read: no more requests are begun
constexpr std::uint64_t kHoleMin = 16_KiB;        // shorter ones are sent as data
constexpr std::size_t kStatusExtentsMax = 4096;   // of one answer; the client asks again for what is left
constexpr std::uint64_t kStatusBytesMax = 1_GiB;  // looked at for one answer, unless all of it is alike
constexpr std::uint64_t kAheadMax = 2_MiB;        // of a sequential reader
constexpr std::uint64_t kAheadRequestMax = 128_KiB;  // who asks for more at a time has enough under way
constexpr unsigned kSequentialMin = 2;
constexpr auto kFastDisk = std::chrono::microseconds(150);  // gives a read sooner than a worker could have it ready
constexpr std::size_t kTogetherMax = 8;                     // reads of one job
constexpr std::uint64_t kTogetherBytes = 1_MiB;
constexpr std::uint64_t kGatherBytes = 64_KiB;  // less waits for company while two jobs are under way

// What of a read is worth saying to be zero; the rest is data, and short zeroes are filled in.
std::vector<storage::ByteRange> pieces_of(std::uint64_t offset, std::span<std::byte> bytes,
                                          const std::vector<storage::ByteRange>& zeroes) {
  std::vector<storage::ByteRange> pieces, merged;
  for (const auto& zero : zeroes) {
    if (!merged.empty() && merged.back().offset + merged.back().length == zero.offset) {
      merged.back().length += zero.length;
    } else {
      merged.push_back(zero);
    }
  }
  std::uint64_t at = 0;
  for (const auto& zero : merged) {
    const std::uint64_t from = zero.offset - offset;
    if (zero.length < kHoleMin && zero.length != bytes.size()) {
      std::memset(bytes.data() + from, 0, zero.length);
      continue;
    }
    if (from > at) pieces.push_back({.offset = at, .length = from - at, .zero = false});
    pieces.push_back({.offset = from, .length = zero.length, .zero = true});
    at = from + zero.length;
  }
  if (at < bytes.size()) pieces.push_back({.offset = at, .length = bytes.size() - at, .zero = false});
  return pieces;
}

Result<std::vector<nbd::StatusExtent>> status_of(NbdExport& disk, const nbd::Request& request) {
  std::vector<nbd::StatusExtent> extents;
  const std::uint64_t end = request.offset + request.length;
  const std::size_t most = request.has(nbd::kReqOne) ? 1 : kStatusExtentsMax;
  for (std::uint64_t at = request.offset; at < end;) {
    const auto ranges = TIDEMARK_TRY(disk.map(at, end - at));
    if (ranges.empty()) return fail(Code::internal, "map", "it has no range");
    for (const auto& range : ranges) {
      const std::uint32_t flags = range.zero ? nbd::kHole | nbd::kZero : 0;
      const auto length = static_cast<std::uint32_t>(range.length);
      if (!extents.empty() && extents.back().flags == flags) {
        extents.back().length += length;
      } else if (extents.size() == most) {
        return extents;
      } else {
        extents.push_back({.length = length, .flags = flags});
      }
      at = range.offset + range.length;
    }
    if (at - request.offset >= kStatusBytesMax) break;
  }
  return extents;
}

}  // namespace

// A batch of reads, on its way to a worker.
struct NbdConnection::Reads {
  std::vector<Answer> answers;
  std::uint64_t bytes = 0;
};

bool NbdConnection::transmission() {
  if (discard_ != 0) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(discard_, end_ - begin_));
    begin_ += n;
    discard_ -= n;
    if (discard_ != 0) return false;
  }
  if (payload_) {
    const std::size_t n = std::min(end_ - begin_, payload_->span().size() - payload_filled_);
    if (n != 0) std::memcpy(payload_->span().data() + payload_filled_, buffer_.data() + begin_, n);
    begin_ += n;
    payload_filled_ += n;
    if (payload_filled_ < payload_->span().size()) return false;
    const nbd::Request request = *writing_;
    writing_.reset();
    carry_out(request, std::move(payload_));
    payload_.reset();
    return true;
  }
  if (end_ - begin_ < nbd::kRequestSize) return false;
  const auto request =
      nbd::parse_request(std::span<const std::byte, nbd::kRequestSize>(buffer_.data() + begin_, nbd::kRequestSize));
  if (!request) {
    end(request.error());
    return false;
  }
  if (!begin(*request)) return false;
  begin_ += nbd::kRequestSize;
  return !disconnecting_;
}

// False: it has to wait, and is presented again.
bool NbdConnection::begin(const nbd::Request& request) {
  const std::size_t backlog = plain_ ? plain_->queued() : tls_->queued() + out_bytes_;
  if (under_way_ >= kRequestsMax || (backlog > kSendBacklogMax && request.command != nbd::Command::disconnect)) {
    wants_memory_ = true;
    return false;
  }
  if (request.command == nbd::Command::disconnect) {
    disconnecting_ = true;
    if (under_way_ == 0) close_when_sent();
    return true;
  }
  if (const auto wrong = nbd::check_request(request, export_->info(), structured_, allocation_)) {
    ++requests_;
    if (request.payload() > nbd::kRequestMax) {  // too much to read over
      end({Code::protocol, {}, "it writes more than 32 MiB in one request", {}});
      return false;
    }
    discard_ = request.payload();
    refuse(request, wrong->error, wrong->why);
    return true;
  }
  std::shared_ptr<NbdBuffer> data;
  const bool needs_data =
      (request.command == nbd::Command::read || request.command == nbd::Command::write) && request.length != 0;
  if (needs_data) {
    data = NbdBuffer::make(service_.memory(), memory_, request.length);
    if (!data) {
      wants_memory_ = true;
      return false;
    }
  }
  ++requests_;
  if (request.command == nbd::Command::write && request.length != 0) {
    writing_ = request;
    payload_ = std::move(data);
    payload_filled_ = 0;
    return true;
  }
  carry_out(request, std::move(data));
  return true;
}

void NbdConnection::refuse(const nbd::Request& request, nbd::Errno error, std::string_view why) {
  service_.counters().errors.fetch_add(1, std::memory_order_relaxed);
  // A read's answer is structured once that was agreed on, and an error of anything else may be.
  send(structured_ ? nbd::error_chunk(request, error, why) : nbd::simple_reply(request, error));
}

void NbdConnection::carry_out(const nbd::Request& request, std::shared_ptr<NbdBuffer> data) {
  using Kind = NbdChange::Kind;
  service_.counters().requests.fetch_add(1, std::memory_order_relaxed);
  ++under_way_;
  auto tell = [shard = &clients_.shard(), id = id_](Answer result) {
    shard->post([shard, id, result = std::move(result)]() mutable {
      if (auto* self = shard->nbd().find(id)) self->answer(std::move(result));
    });
  };
  const auto done = [tell, request](Status status) { tell({request, std::move(status), nullptr, {}, {}}); };
  if (const auto serving = export_->serving(); !serving) return done(serving);
  const auto change = [&](Kind kind) {
    written_bytes_ += request.length;
    service_.counters().written_bytes.fetch_add(request.length, std::memory_order_relaxed);
    export_->change({kind, request.offset, request.length, std::move(data), request.has(nbd::kFua), done});
  };
  switch (request.command) {
    case nbd::Command::write: return change(Kind::write);
    case nbd::Command::trim: return change(Kind::trim);
    case nbd::Command::write_zeroes: return change(Kind::zero);
    case nbd::Command::flush:
      service_.counters().flushes.fetch_add(1, std::memory_order_relaxed);
      return export_->flush(done);
    case nbd::Command::cache: {
      const std::uint64_t length = std::min<std::uint64_t>(request.length, nbd::kRequestMax);
      if (!service_.work([disk = export_, request, length, done] {
            disk->prefetch(request.offset, length, NbdService::scratch());
            done({});
          }))
        done({});  // it was a hint
      return;
    }
    case nbd::Command::block_status:
      if (!service_.work([disk = export_, request, tell] {
            auto extents = status_of(*disk, request);
            Answer result{request, {}, nullptr, {}, {}};
            if (extents) {
              result.extents = std::move(*extents);
            } else {
              result.status = std::unexpected(extents.error());
            }
            tell(std::move(result));
          }))
        done(fail(Code::busy, {}, "too much is waiting"));
      return;
    default: break;
  }
  read_bytes_ += request.length;
  service_.counters().read_bytes.fetch_add(request.length, std::memory_order_relaxed);
  read_ahead(request);
  if (!data) return done({});
  Answer read{request, {}, std::move(data), {}, {}};
  const bool sparse = structured_ && !request.has(nbd::kDf);
  if (!clients_.reads().begin(*this, export_, read, sparse)) gather(std::move(read));
}

void NbdConnection::read_done(Answer answer, const std::vector<storage::ByteRange>& zeroes) {
  if (!ended_ && !answer.status && answer.status.error().code == Code::busy) {
    answer.status = {};
    gather(std::move(answer));
    return hand_reads();
  }
  service_.counters().shard_reads.fetch_add(1, std::memory_order_relaxed);
  if (answer.status && !zeroes.empty()) answer.pieces = pieces_of(answer.request.offset, answer.data->span(), zeroes);
  this->answer(std::move(answer));
}

// For a worker.
void NbdConnection::gather(Answer read) {
  if (!reads_) reads_ = std::make_shared<Reads>();
  reads_->bytes += read.request.length;
  service_.counters().worker_reads.fetch_add(1, std::memory_order_relaxed);
  reads_->answers.push_back(std::move(read));
  if (reads_->answers.size() >= kTogetherMax || reads_->bytes >= kTogetherBytes) hand_reads();
}

// One job for what came in one turn, and for the small reads that came while two others were under way: handing over
// costs more than a small read does.
void NbdConnection::hand_reads() {
  if (!reads_) return;
  if (jobs_ > 1 && reads_->answers.size() < kTogetherMax && reads_->bytes < kGatherBytes) return;
  const auto reads = std::exchange(reads_, nullptr);
  ++jobs_;
  const auto post = [shard = &clients_.shard(), id = id_](std::vector<Answer> answers) {
    shard->post([shard, id, answers = std::move(answers)]() mutable {
      for (Answer& one : answers)
        if (auto* self = shard->nbd().find(id)) self->answer(std::move(one));
      if (auto* self = shard->nbd().find(id)) self->job_done();
    });
  };
  if (service_.work([disk = export_, reads, structured = structured_, post] {
        const std::size_t count = reads->answers.size();
        std::vector<storage::DiskRead> work;
        std::vector<std::vector<storage::ByteRange>> zeroes(count);
        for (std::size_t i = 0; i < count; ++i) {
          const Answer& one = reads->answers[i];
          const bool sparse = structured && !one.request.has(nbd::kDf);
          work.push_back({.offset = one.request.offset,
                          .to = one.data->span(),
                          .zeroes = sparse ? &zeroes[i] : nullptr,
                          .tag = i});
        }
        disk->read_many(work, NbdService::scratch());
        for (auto& read : work) {
          Answer& one = reads->answers[read.tag];
          one.status = std::move(read.status);
          if (one.status && !zeroes[read.tag].empty())
            one.pieces = pieces_of(one.request.offset, one.data->span(), zeroes[read.tag]);
        }
        post(std::move(reads->answers));
      }))
    return;
  for (Answer& one : reads->answers) one.status = fail(Code::busy, {}, "too much is waiting");
  post(std::move(reads->answers));
}

// For who reads a little at a time, one piece after the other, and waits for each.
void NbdConnection::read_ahead(const nbd::Request& request) {
  const std::uint64_t end = request.offset + request.length;
  sequential_ = request.offset == next_read_ ? sequential_ + 1 : 0;
  next_read_ = end;
  if (sequential_ == 0) ahead_ = end;
  if (sequential_ == 1) disk_took_.reset();  // what the first reads of a row tell
  if (sequential_ < kSequentialMin || request.length > kAheadRequestMax || under_way_ > 4) return;
  if (disk_took_ && *disk_took_ < kFastDisk) return;
  ahead_ = std::max(ahead_, end);
  const std::uint64_t size = export_->info().size;
  if (ahead_ >= size || ahead_ - end > kAheadMax / 2) return;
  const std::uint64_t from = ahead_, length = std::min(kAheadMax / 2, size - ahead_);
  if (service_.work([disk = export_, from, length] { disk->prefetch(from, length, NbdService::scratch()); }))
    ahead_ = from + length;
}

void NbdConnection::job_done() {
  --jobs_;
  if (!ended_) hand_reads();
}

void NbdConnection::answer(Answer answer) {
  --under_way_;
  if (ended_) return;
  const nbd::Request& request = answer.request;
  if (!answer.status) {
    refuse(request, nbd::errno_of(answer.status.error().code), answer.status.error().message());
  } else if (request.command == nbd::Command::block_status) {
    send(nbd::status_chunk(request, answer.extents));
  } else if (request.command != nbd::Command::read) {
    send(nbd::simple_reply(request, nbd::Errno::none));
  } else if (!answer.data) {
    send(structured_ ? nbd::done_chunk(request) : nbd::simple_reply(request, nbd::Errno::none));
  } else {
    const auto bytes = answer.data->span();
    if (answer.pieces.empty()) {
      send(structured_ ? nbd::data_chunk(request, request.offset, bytes.size(), true)
                       : nbd::simple_reply(request, nbd::Errno::none),
           answer.data, bytes);
    }
    for (std::size_t i = 0; i < answer.pieces.size(); ++i) {
      const auto& piece = answer.pieces[i];
      const bool last = i + 1 == answer.pieces.size();
      const std::uint64_t at = request.offset + piece.offset;
      if (piece.zero) {
        send(nbd::hole_chunk(request, at, static_cast<std::uint32_t>(piece.length), last));
      } else {
        send(nbd::data_chunk(request, at, piece.length, last), answer.data, bytes.subspan(piece.offset, piece.length));
      }
    }
  }
  answer.data.reset();
  if (disconnecting_ && under_way_ == 0) return close_when_sent();
  retry();
}

}  // namespace tidemark::server
