// The end of something that takes long to end, on a thread of its own, whoever lets go of it last: a store joins its
// threads and closes its files, and on a disk that hangs that takes as long as the disk hangs. Thread-safe.
#pragma once

#include <pthread.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace tidemark::server {

template <typename Thing>
class EndApart : public std::enable_shared_from_this<EndApart<Thing>> {
 public:
  explicit EndApart(std::unique_ptr<Thing> thing) : thing_(std::move(thing)) {}
  ~EndApart() { wait(); }  // if it has begun

  // To be held by whoever needs it: once. When the last one lets go, it ends; on that thread, when this object is gone
  // or `in_place` is set by then.
  std::shared_ptr<Thing> share(const std::atomic<bool>& in_place) {
    return {thing_.release(), [watch = this->weak_from_this(), &in_place](Thing* thing) {
              const auto self = watch.lock();
              if (self && !in_place) {
                self->begin(std::unique_ptr<Thing>(thing));
              } else {
                delete thing;
                if (self) self->over_ = true;
              }
            }};
  }
  bool over() const { return over_; }  // it is gone, with all that it had open
  void wait() {
    const std::lock_guard lock(mutex_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  void begin(std::unique_ptr<Thing> thing) {
    const std::lock_guard lock(mutex_);
    thread_ = std::thread([this, thing = std::move(thing)]() mutable {
      ::pthread_setname_np(::pthread_self(), "tm-close");
      thing.reset();
      over_ = true;
    });
  }

  std::unique_ptr<Thing> thing_;
  std::atomic<bool> over_{false};
  std::mutex mutex_;
  std::thread thread_;
};

}  // namespace tidemark::server
