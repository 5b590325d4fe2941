// A read lease on a regular file: while it is held, the kernel vouches that nobody has the file open for writing.
//
// Someone who opens it for writing (or truncates it) is made to wait by the kernel until the lease is given up. This is
// done at once, in a signal handler, so that the agent never stands in anyone's way: held() is false from then on. The
// handler serves SIGRTMIN+5 and is installed with the first lease. Taking and releasing is thread-safe.
#pragma once

#include <memory>

#include "base/status.h"

namespace tidemark::agent {

class ReadLease {
 public:
  // On an open, read-only descriptor that stays the caller's and outlives the lease. busy: someone has the file open
  // for writing. unsupported: no leases here (file system, permission, or all slots are taken).
  static Result<std::unique_ptr<ReadLease>> take(int fd, const std::string& name);
  ~ReadLease();
  ReadLease(const ReadLease&) = delete;
  ReadLease& operator=(const ReadLease&) = delete;

  bool held() const;  // without interruption since take()

 private:
  explicit ReadLease(std::size_t slot) : slot_(slot) {}
  std::size_t slot_;
};

}  // namespace tidemark::agent
