// Names the calling thread after what it does, for as long as it does it: `top -H` shows it, and so can a test tell
// what was under way when it killed the process.
#pragma once

#include <pthread.h>

#include <array>

namespace tidemark {

class ThreadTask {
 public:
  explicit ThreadTask(const char* name) {  // at most 15 characters
    ::pthread_getname_np(::pthread_self(), before_.data(), before_.size());
    ::pthread_setname_np(::pthread_self(), name);
  }
  ~ThreadTask() { ::pthread_setname_np(::pthread_self(), before_.data()); }
  ThreadTask(const ThreadTask&) = delete;
  ThreadTask& operator=(const ThreadTask&) = delete;

 private:
  std::array<char, 16> before_{};
};

}  // namespace tidemark
