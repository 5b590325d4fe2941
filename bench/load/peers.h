// The programs that Tidemark is compared with, each measured once a call with everything made anew in a directory of
// its own: bulk (server CPU seconds per GiB) and 4 KiB random durable writes (blocks a second). A program that is not
// installed is an error with Code::not_found.
#pragma once

#include <cstddef>
#include <string>

#include "base/status.h"

namespace tidemark::bench {

struct CompareWork {
  std::string directory;  // empty, and emptied by whoever made it
  std::size_t mib = 1024;
  double seconds = 5;
};

enum class Peer : unsigned char { qemu_nbd, nbdkit };
const char* to_string(Peer peer);

Result<double> floor_bulk(const CompareWork& work);  // bare TLS, written to the disk
Result<double> floor_drop(const CompareWork& work);  // bare TLS, dropped
Result<double> our_bulk(const CompareWork& work);
Result<double> our_bulk_compressed(const CompareWork& work);  // 2:1, per plain GiB
Result<double> our_random(const CompareWork& work);
Result<double> peer_bulk(const CompareWork& work, Peer peer);
Result<double> peer_random(const CompareWork& work, Peer peer);
Result<double> disk_random(const CompareWork& work);  // fio, io_uring, 32 writes to an fdatasync: no network at all

}  // namespace tidemark::bench
