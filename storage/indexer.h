// Applies durable commits to the index behind the log, on a thread of its own: acknowledgement never waits for it.
//
// The queue is bounded by what room() says: who appends blocks asks first, and slows down with it. What is in flight
// in the log comes on top, which is bounded too. When the index fails, the same commits are tried again every second.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "storage/commit_info.h"
#include "storage/index.h"

namespace tidemark::storage {

class Indexer {
 public:
  struct Options {
    std::uint64_t lag_max = 0;      // bytes of log; beyond it room() is 0
    std::uint64_t flush_bytes = 0;  // of log: the index is flushed after as much
    std::chrono::seconds flush_after{};
    bool background = true;  // false: push() does everything, in the caller
  };
  // `housekeeping` is called on the same thread about every second, and after each flush.
  Indexer(Index& index, Options options, std::function<void()> housekeeping);
  ~Indexer();  // stops without a flush
  // Once all is there that housekeeping needs. What is pushed or called before waits for it.
  void start();
  Indexer(const Indexer&) = delete;
  Indexer& operator=(const Indexer&) = delete;

  void push(CommitInfo&& commit);
  // Applies and flushes everything pushed so far, then stops. The error of the last try if it fails.
  Status close();
  // Runs it on the thread that changes the index, between commits, and waits for it. Code::cancelled after close().
  // Not from that thread itself.
  Status call(const std::function<Status(Index&)>& work);
  // Without a thread: what it would do about every second. Else nothing.
  void step();

  // --- any thread ---
  std::uint64_t lag_bytes() const;
  std::uint64_t room() const;  // bytes
  // True when everything up to `lsn` is in the index, within `timeout`.
  bool wait_for(Lsn lsn, std::chrono::milliseconds timeout);
  Lsn indexed_lsn() const;
  std::optional<Error> error() const;

 private:
  void run();
  void drain();       // without a thread: applies what is there, flushes if that is due
  bool apply_some();  // false: it failed
  bool flush_if_due(bool now);
  void serve_calls();
  void failed(const Error& error, const char* doing);
  void succeeded();

  Index& index_;
  const Options options_;
  const std::function<void()> housekeeping_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable indexed_;
  std::deque<CommitInfo> queue_;
  std::uint64_t lag_bytes_ = 0;
  Lsn indexed_lsn_;
  std::optional<Error> error_;
  enum class Stop : std::uint8_t { no, drain, now } stop_ = Stop::no;
  struct Call {
    const std::function<Status(Index&)>* work = nullptr;
    std::optional<Status> result;
  };
  std::deque<Call*> calls_;
  std::condition_variable called_;

  // Of the working thread.
  std::vector<CommitInfo> working_;  // taken off the queue, not applied yet
  std::uint64_t unflushed_bytes_ = 0;
  std::chrono::steady_clock::time_point unflushed_since_{};
  bool must_resume_ = false;
  std::thread thread_;
};

}  // namespace tidemark::storage
