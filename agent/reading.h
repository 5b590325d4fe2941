// Reading from a file descriptor as sources do it: whole, zero beyond the end, smaller after an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/status.h"

namespace tidemark::agent {

// As pread(2): bytes, or -1 with errno. A seam, so that tests can fail it.
using PositionedRead = std::function<std::int64_t(std::span<std::byte> into, std::uint64_t offset)>;
PositionedRead reads_of(int fd);

// Contract of BlockSource::read_at, for a source of `size` bytes called `name`. Fewer bytes than `size` promises are an
// error (invalid_argument, the source shrank), an error of the disk is Code::io and names the first bad granule.
Status read_fully(const PositionedRead& read, const std::string& name, std::uint64_t size, std::uint64_t offset,
                  std::span<std::byte> into);

}  // namespace tidemark::agent
