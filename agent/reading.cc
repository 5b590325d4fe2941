#include "agent/reading.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/limits.h"

namespace tidemark::agent {
namespace {

constexpr int kTriesPerGranule = 3;

struct Outcome {
  std::size_t bytes = 0;
  int error_number = 0;
};

// Up to `want` bytes into the front of `into` (whose size is aligned, as direct I/O asks for).
Outcome read_some(const PositionedRead& read, std::uint64_t offset, std::span<std::byte> into, std::size_t want) {
  std::size_t done = 0;
  while (done < want) {
    const std::int64_t n = read(into.subspan(done), offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {done, errno};
    if (n == 0) break;
    const std::size_t before = done;
    done += static_cast<std::size_t>(n);
    if (done >= want) break;
    // Direct I/O goes on at aligned places only: what an odd short read gave is read once more, unless it was the end.
    const std::size_t aligned = round_down(done, limits::kIoAlignment);
    if (aligned == before) break;
    done = aligned;
  }
  return {std::min(done, want), 0};
}

std::unexpected<Error> shrunk(const std::string& name, std::uint64_t size, std::uint64_t offset) {
  return fail(Code::invalid_argument, name, fmt::format("ends at or before byte {}, it had {} bytes", offset, size),
              "it shrank: it is opened anew with its new size");
}

}  // namespace

PositionedRead reads_of(int fd) {
  return [fd](std::span<std::byte> into, std::uint64_t offset) -> std::int64_t {
    return ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
  };
}

Status read_fully(const PositionedRead& read, const std::string& name, std::uint64_t size, std::uint64_t offset,
                  std::span<std::byte> into) {
  const std::size_t want =
      offset >= size ? 0 : static_cast<std::size_t>(std::min<std::uint64_t>(into.size(), size - offset));
  std::memset(into.data() + want, 0, into.size() - want);
  const Outcome whole = read_some(read, offset, into, want);
  if (whole.bytes == want) {
    std::memset(into.data() + want, 0, into.size() - want);  // direct reads may put bytes of a grown tail there
    return {};
  }
  if (whole.error_number == 0) return shrunk(name, size, offset + whole.bytes);

  for (std::size_t at = 0; at < want; at += limits::kGranuleSize) {
    const auto granule = into.subspan(at, limits::kGranuleSize);
    const std::size_t want_here = std::min(want - at, limits::kGranuleSize);
    Outcome part;
    for (int attempt = 0; attempt < kTriesPerGranule; ++attempt) {
      part = read_some(read, offset + at, granule, want_here);
      if (part.error_number == 0) break;
    }
    if (part.error_number != 0) {
      auto error = fail_errno(part.error_number, name, fmt::format("read 4096 bytes at {}", offset + at));
      if (error.error().code == Code::io)
        error.error().remedy = "look for disk errors in the kernel's log; replace the disk or its cable";
      return error;
    }
    if (part.bytes != want_here) return shrunk(name, size, offset + at + part.bytes);
  }
  std::memset(into.data() + want, 0, into.size() - want);
  return {};
}

}  // namespace tidemark::agent
