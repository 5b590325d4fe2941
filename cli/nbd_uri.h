// Where a disk at a point is to be had over NBD.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "cli/client.h"

namespace tidemark::cli {

// "nbd+unix:///web1/disk0@epoch:7?socket=/srv/tidemark/nbd.sock". MACHINE may be clone:NAME, whose newest state it is
// then.
Result<std::string> nbd_uri(AdminClient& client, const std::string& machine, std::uint64_t epoch, std::uint64_t disk);

}  // namespace tidemark::cli
