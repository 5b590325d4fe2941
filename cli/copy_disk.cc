#include "cli/copy_disk.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "base/aligned_buffer.h"
#include "base/units.h"

namespace tidemark::cli {
namespace {

constexpr auto kLookEvery = std::chrono::milliseconds(100);
constexpr std::array<std::byte, 64 << 10> kZeroes{};

// The parts of `ranges` (in order) that lie within [from, to).
std::vector<Extent> within(const std::vector<Extent>& ranges, std::uint64_t from, std::uint64_t to, bool with_zeroes) {
  std::vector<Extent> parts;
  auto range = std::ranges::upper_bound(ranges, from, {}, [](const Extent& one) { return one.offset + one.length; });
  for (; range != ranges.end() && range->offset < to; ++range) {
    if (range->zero && !with_zeroes) continue;
    const std::uint64_t start = std::max(range->offset, from);
    parts.push_back({start, std::min(range->offset + range->length, to) - start, range->zero});
  }
  return parts;
}

class Copy {
 public:
  Copy(AdminClient& client, const CopyJob& job, RawImage& image, CopyJournal& journal)
      : client_(client), job_(job), image_(image), journal_(journal) {
    pieces_ = (job.disk.size + kCopyPiece - 1) / kCopyPiece;
    const unsigned threads = std::clamp(job.threads, 1u, kCopyThreadsMax);
    running_ = threads;
    for (unsigned i = 0; i < threads; ++i) clients_.push_back(std::make_unique<AdminClient>(client.socket_path()));
    for (auto& one : clients_) threads_.emplace_back([this, &one = *one] { work(one); });
  }
  ~Copy() { join(); }

  Result<Sha256> run(PointHold* hold, Progress& progress) {
    std::unique_lock lock(mutex_);
    while (running_ > 0) {
      ended_.wait_for(lock, kLookEvery, [this] { return running_ == 0; });
      progress.set(done_);
      if (error_) continue;
      if (client_.stopped()) end(Error{Code::cancelled, {}, "interrupted", {}});
      if (hold == nullptr) continue;
      lock.unlock();
      auto renewed = hold->renew();
      lock.lock();
      if (!renewed && !error_) end(std::move(renewed).error());
    }
    lock.unlock();
    join();
    if (error_) return std::unexpected(*error_);
    return hash_.finish();
  }

 private:
  // With the lock.
  void end(Error error) {
    error_ = std::move(error);
    for (auto& one : clients_) one->stop();
    turn_.notify_all();
  }
  void join() {
    for (auto& thread : threads_)
      if (thread.joinable()) thread.join();
  }

  void work(AdminClient& client) {
    AlignedBuffer buffer(kCopyPiece);
    for (;;) {
      const std::uint64_t piece = next_piece_++;
      if (piece >= pieces_) break;
      const std::uint64_t from = piece * kCopyPiece;
      const auto size = static_cast<std::size_t>(std::min(kCopyPiece, job_.disk.size - from));
      auto done = make(client, piece, from, buffer.span().first(size));
      std::unique_lock lock(mutex_);
      if (!done) {
        if (!error_) end(std::move(done).error());
        break;
      }
      // The digest of the whole goes from front to back: whoever is early waits, with its piece.
      turn_.wait(lock, [&] { return next_hashed_ == piece || error_; });
      if (error_) break;
      lock.unlock();
      if (*done)
        hash_.update(buffer.span().first(size));
      else
        for (std::size_t at = 0; at < size; at += kZeroes.size())
          hash_.update(std::span(kZeroes).first(std::min(size - at, kZeroes.size())));
      lock.lock();
      ++next_hashed_;
      done_ += size;
      turn_.notify_all();
    }
    const std::lock_guard lock(mutex_);
    --running_;
    ended_.notify_all();
  }

  // Sees to it that the image holds the piece. True: so does `to`; else it is all zeroes.
  Result<bool> make(AdminClient& client, std::uint64_t piece, std::uint64_t from, std::span<std::byte> to) {
    if (const auto digest = journal_.digest(piece)) {
      TIDEMARK_TRY(image_.read(from, to));
      if (xxh3_128(to) == *digest) return true;
    }
    const std::uint64_t end = from + to.size();
    const auto data = within(job_.extents, from, end, false);
    if (data.empty()) {
      if (!image_.fresh()) TIDEMARK_TRY(image_.write_zeroes(from, to.size()));
      return false;
    }
    if (job_.changed) {
      TIDEMARK_TRY(image_.read(from, to));
      for (const Extent& part : within(*job_.changed, from, end, true)) {
        const auto bytes = to.subspan(part.offset - from, part.length);
        if (part.zero) {
          std::memset(bytes.data(), 0, bytes.size());
          TIDEMARK_TRY(image_.write_zeroes(part.offset, part.length));
        } else {
          TIDEMARK_TRY(fetch(client, part, bytes));
          TIDEMARK_TRY(image_.write(part.offset, bytes));
        }
      }
    } else {
      std::uint64_t at = from;
      for (const Extent& part : data) {
        std::memset(to.data() + (at - from), 0, part.offset - at);
        TIDEMARK_TRY(fetch(client, part, to.subspan(part.offset - from, part.length)));
        at = part.offset + part.length;
      }
      std::memset(to.data() + (at - from), 0, end - at);
      TIDEMARK_TRY(image_.write_sparse(from, to));
    }
    TIDEMARK_TRY(journal_.note(piece, xxh3_128(to)));
    return true;
  }

  Status fetch(AdminClient& client, const Extent& part, std::span<std::byte> to) {
    AdminClient::StreamRequest request;
    request.path =
        point_path(job_.machine, exactly(job_.epoch), "/disks/" + std::to_string(job_.disk.number) + "/data");
    request.range = AdminClient::Range{part.offset, part.length};
    request.epoch = job_.epoch;
    std::size_t got = 0;
    auto streamed = client.stream(request, [&](std::span<const std::byte> bytes) -> Status {
      if (bytes.size() > to.size() - got) return odd_answer("more bytes than were asked for");
      std::memcpy(to.data() + got, bytes.data(), bytes.size());
      got += bytes.size();
      return {};
    });
    if (!streamed) return why_cut_off(part.offset + got, std::move(streamed).error());
    if (got != to.size())
      return odd_answer("asked for " + std::to_string(part.length) + " bytes at " + std::to_string(part.offset) +
                        ", the answer is " + std::to_string(to.size() - got) + " bytes short");
    return {};
  }

  // A server ends an answer early when it cannot read what is stored; one that is gone cannot be asked.
  std::unexpected<Error> why_cut_off(std::uint64_t position, Error error) const {
    AdminClient asked(client_.socket_path());
    if (error.code != Code::unavailable || client_.stopped() || !asked.get("/v1/server"))
      return std::unexpected(std::move(error));
    return fail(Code::corrupt, job_.machine + "/" + job_.disk.name,
                "the server broke off at byte " + std::to_string(position) + ": it could not read what is stored there",
                "`tidemark verify " + job_.machine + " --at " + exactly(job_.epoch) +
                    "` names what is damaged; another point may be whole; see tidemarkd's log");
  }

  AdminClient& client_;
  const CopyJob& job_;
  RawImage& image_;
  CopyJournal& journal_;
  std::uint64_t pieces_ = 0;
  std::vector<std::unique_ptr<AdminClient>> clients_;
  std::atomic<std::uint64_t> next_piece_ = 0, done_ = 0;
  Sha256Stream hash_;  // of whoever's turn it is

  std::mutex mutex_;
  std::condition_variable turn_, ended_;
  std::uint64_t next_hashed_ = 0;
  unsigned running_ = 0;
  std::optional<Error> error_;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<Sha256> copy_disk(AdminClient& client, const CopyJob& job, RawImage& image, CopyJournal& journal,
                         PointHold* hold, Progress& progress) {
  return Copy(client, job, image, journal).run(hold, progress);
}

Result<Sha256> digest_image(AdminClient& client, const RawImage& image, std::uint64_t size,
                            const std::vector<Extent>& changed, CopyJournal& journal, PointHold* hold,
                            Progress& progress) {
  Sha256Stream hash;
  std::vector<std::byte> buffer(kCopyPiece);
  for (std::uint64_t from = 0, piece = 0; from < size; from += kCopyPiece, ++piece) {
    if (client.stopped()) return fail(Code::cancelled, {}, "interrupted");
    if (hold != nullptr) TIDEMARK_TRY(hold->renew());
    const auto bytes = std::span(buffer).first(std::min(kCopyPiece, size - from));
    TIDEMARK_TRY(image.read(from, bytes));
    hash.update(bytes);
    if (within(changed, from, from + bytes.size(), true).empty()) TIDEMARK_TRY(journal.note(piece, xxh3_128(bytes)));
    progress.add(bytes.size());
  }
  return hash.finish();
}

}  // namespace tidemark::cli
