#include "storage/indexer.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

namespace tidemark::storage {

namespace {

constexpr std::chrono::seconds kTick{1};
constexpr std::uint64_t kBatchLogBytes = 32 << 20;  // applied at once: bounds the batch, and shares what it costs

}  // namespace

Indexer::Indexer(Index& index, Options options, std::function<void()> housekeeping)
    : index_(index), options_(options), housekeeping_(std::move(housekeeping)), indexed_lsn_(index.mark().lsn) {}

void Indexer::start() {
  if (options_.background) thread_ = std::thread([this] { run(); });
}

Indexer::~Indexer() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = Stop::now;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  serve_calls();  // who called too late to be served on the thread
}

void Indexer::push(CommitInfo&& commit) {
  {
    const std::lock_guard lock(mutex_);
    lag_bytes_ += commit.size;
    queue_.push_back(std::move(commit));
  }
  if (options_.background) {
    wake_.notify_one();
  } else {
    drain();
  }
}

Status Indexer::call(const std::function<Status(Index&)>& work) {
  if (!options_.background) return work(index_);
  Call call{.work = &work, .result = std::nullopt};
  std::unique_lock lock(mutex_);
  if (stop_ != Stop::no) return fail(Code::cancelled, "index", "the partition is being closed");
  calls_.push_back(&call);
  wake_.notify_one();
  called_.wait(lock, [&] { return call.result.has_value(); });
  return *std::move(call.result);
}

void Indexer::serve_calls() {
  for (;;) {
    Call* call = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (calls_.empty()) return;
      call = calls_.front();
      calls_.pop_front();
    }
    Status result = (*call->work)(index_);
    {
      const std::lock_guard lock(mutex_);
      call->result = std::move(result);
    }
    called_.notify_all();
  }
}

void Indexer::step() {
  if (options_.background) return;
  drain();
  housekeeping_();
}

void Indexer::drain() {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (queue_.empty() && working_.empty()) break;
    }
    if (!apply_some()) return;
  }
  flush_if_due(false);
}

Status Indexer::close() {
  {
    const std::lock_guard lock(mutex_);
    if (stop_ == Stop::no) stop_ = Stop::drain;
  }
  wake_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
    serve_calls();
  } else if (!options_.background) {
    drain();
    flush_if_due(true);
  }
  const std::lock_guard lock(mutex_);
  if (error_) return std::unexpected(*error_);
  return {};
}

void Indexer::run() {
  ::pthread_setname_np(::pthread_self(), "tm-index");
  for (auto next_tick = std::chrono::steady_clock::now();;) {
    bool failing = false;
    {
      std::unique_lock lock(mutex_);
      if (!error_) {
        wake_.wait_until(lock, next_tick, [&] { return stop_ != Stop::no || !queue_.empty() || !calls_.empty(); });
      } else {
        wake_.wait_for(lock, kTick, [&] { return stop_ != Stop::no || !calls_.empty(); });
      }
      if (stop_ == Stop::now) return;
    }
    serve_calls();
    failing = !apply_some() || !flush_if_due(false);
    bool drain = false;
    {
      const std::lock_guard lock(mutex_);
      drain = stop_ == Stop::drain && (failing || (queue_.empty() && working_.empty()));
    }
    if (drain) {
      if (!failing) flush_if_due(true);
      return;
    }
    if (std::chrono::steady_clock::now() >= next_tick) {
      housekeeping_();
      next_tick = std::chrono::steady_clock::now() + kTick;
    }
  }
}

bool Indexer::apply_some() {
  std::uint64_t bytes = 0;
  for (const CommitInfo& commit : working_) bytes += commit.size;
  {
    const std::lock_guard lock(mutex_);
    while (!queue_.empty() && bytes < kBatchLogBytes) {
      bytes += queue_.front().size;
      working_.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
  }
  if (working_.empty() && !must_resume_) return true;
  if (must_resume_) {
    if (const auto resumed = index_.resume(); !resumed) {
      failed(resumed.error(), "resume");
      return false;
    }
    must_resume_ = false;
  }
  if (const auto applied = index_.apply(working_); !applied) {
    failed(applied.error(), "apply");
    return false;
  }
  working_.clear();
  if (unflushed_bytes_ == 0) unflushed_since_ = std::chrono::steady_clock::now();
  unflushed_bytes_ += bytes;
  {
    const std::lock_guard lock(mutex_);
    lag_bytes_ -= bytes;
    indexed_lsn_ = index_.mark().lsn;
  }
  indexed_.notify_all();
  return true;
}

bool Indexer::flush_if_due(bool now) {
  if (unflushed_bytes_ == 0) {
    succeeded();
    return true;
  }
  if (!now && unflushed_bytes_ < options_.flush_bytes &&
      // Without a thread nothing may depend on the time it takes.
      (!options_.background || std::chrono::steady_clock::now() - unflushed_since_ < options_.flush_after)) {
    return true;
  }
  if (const auto flushed = index_.flush(); !flushed) {
    failed(flushed.error(), "flush");
    return false;
  }
  unflushed_bytes_ = 0;
  succeeded();
  housekeeping_();
  return true;
}

void Indexer::failed(const Error& error, const char* doing) {
  must_resume_ = true;
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = !error_ || *error_ != error;
    error_ = error;
  }
  // Said once, not once a second: stats go on to tell.
  if (first)
    spdlog::error("event=index_failed doing={} error=\"{}\" retry_seconds={}", doing, error.message(), kTick.count());
}

void Indexer::succeeded() {
  bool recovered = false;
  {
    const std::lock_guard lock(mutex_);
    recovered = error_.has_value();
    error_.reset();
  }
  if (recovered) spdlog::info("event=index_recovered");
}

std::uint64_t Indexer::lag_bytes() const {
  const std::lock_guard lock(mutex_);
  return lag_bytes_;
}

std::uint64_t Indexer::room() const {
  const std::uint64_t lag = lag_bytes();
  return lag >= options_.lag_max ? 0 : options_.lag_max - lag;
}

bool Indexer::wait_for(Lsn lsn, std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return indexed_.wait_for(lock, timeout, [&] { return indexed_lsn_ >= lsn; });
}

Lsn Indexer::indexed_lsn() const {
  const std::lock_guard lock(mutex_);
  return indexed_lsn_;
}

std::optional<Error> Indexer::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

}  // namespace tidemark::storage
