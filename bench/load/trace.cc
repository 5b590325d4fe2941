#include "bench/load/trace.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>

#include "base/limits.h"
#include "base/random.h"

namespace tidemark::bench {

namespace {

constexpr std::uint64_t kSector = 512;
constexpr std::uint16_t kWrite10 = 0x2a;
constexpr std::uint16_t kVersion2 = 0x0100;
constexpr std::uint64_t kTraceBytesMax = 4ULL << 30;
constexpr std::uint32_t kRequestBytesMax = 64 << 20;

struct VscsiRecord {
  std::uint32_t serial, length, segments;
  std::uint16_t command, version;
  std::uint64_t sector, time_us;
};
static_assert(sizeof(VscsiRecord) == 32);

// What a record of another format, or of a torn file, would hardly pass.
bool plausible(const VscsiRecord& record) {
  constexpr std::uint64_t kSectorMax = limits::kDiskSizeMax / kSector;
  return record.version == kVersion2 && record.command <= 0xff && record.length <= kRequestBytesMax &&
         record.sector < kSectorMax && record.length / kSector <= kSectorMax - record.sector;
}

TraceWrite widened(std::uint64_t time_us, std::uint32_t disk, std::uint64_t begin, std::uint64_t end) {
  const std::uint64_t first = begin / limits::kGranuleSize;
  const std::uint64_t last = (end + limits::kGranuleSize - 1) / limits::kGranuleSize;
  return {
      .time_us = time_us, .disk = disk, .first_granule = first, .granules = static_cast<std::uint32_t>(last - first)};
}

}  // namespace

Result<Trace> load_vscsi(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return fail(Code::not_found, path, "the trace cannot be opened", "give the path of a vscsi trace");
  const auto size = static_cast<std::uint64_t>(in.tellg());
  if (size == 0) return fail(Code::invalid_argument, path, "the trace is empty");
  if (size > kTraceBytesMax) return fail(Code::invalid_argument, path, "the trace is larger than 4 GiB", "cut it");
  in.seekg(0);
  Trace trace;
  std::uint64_t first_us = UINT64_MAX, last_us = 0, end_granule = 0;
  for (std::uint64_t i = 0; i < size / sizeof(VscsiRecord); ++i) {
    VscsiRecord record;
    if (!in.read(reinterpret_cast<char*>(&record), sizeof record))
      return fail(Code::io, path, "record " + std::to_string(i) + " cannot be read");
    if (!plausible(record))
      return fail(Code::invalid_argument, path,
                  "record " + std::to_string(i) + " is none of a vscsi trace of version 2",
                  "only traces of that format can be replayed");
    first_us = std::min(first_us, record.time_us);
    last_us = std::max(last_us, record.time_us);
    if (record.command != kWrite10 || record.length == 0) continue;
    trace.writes.push_back(
        widened(record.time_us, 0, record.sector * kSector, record.sector * kSector + record.length));
    end_granule = std::max(end_granule, trace.writes.back().first_granule + trace.writes.back().granules);
  }
  if (size % sizeof(VscsiRecord) != 0)
    return fail(Code::invalid_argument, path,
                "the trace is cut off within record " + std::to_string(size / sizeof(VscsiRecord)), "fetch it again");
  if (trace.writes.empty()) return fail(Code::invalid_argument, path, "it has no writes");
  for (TraceWrite& write : trace.writes) write.time_us -= first_us;
  std::ranges::stable_sort(trace.writes, {}, &TraceWrite::time_us);
  trace.duration_us = last_us - first_us + 1;
  trace.disk_granules = {end_granule};
  return trace;
}

Trace synthetic_trace(std::uint64_t seed, const SyntheticShape& shape) {
  constexpr std::array<std::uint64_t, 8> kSizes{65536, 4096, 69632, 512, 61440, 8192, 16384, 2560};
  constexpr std::uint64_t kSeconds = 7200;
  Random random(seed);
  Trace trace{.writes = {},
              .duration_us = kSeconds * 1'000'000,
              .disk_granules = std::vector<std::uint64_t>(shape.disks, shape.disk_granules)};
  const std::uint64_t disk_bytes = shape.disk_granules * limits::kGranuleSize;
  std::vector<std::uint64_t> next(shape.disks, 0);  // where a sequential run goes on
  std::uint64_t written = 0;
  while (written < shape.bytes) {
    // A burst: some writes within a second, a few of them at the same moment.
    const std::uint64_t second = random.below(kSeconds);
    std::uint64_t time_us = 0;
    for (std::uint64_t left = 2 + random.below(random.chance(0.1) ? 64 : 6); left != 0; --left) {
      if (time_us == 0 || left % 3 == 0) time_us = second * 1'000'000 + random.below(1'000'000);
      const auto disk = static_cast<std::uint32_t>(random.below(shape.disks));
      const std::uint64_t size = kSizes[random.below(kSizes.size())];
      // Popularity falls with the rank, drawn log-uniformly; ranks are spread over the disk.
      const std::uint64_t places = disk_bytes / kSizes[0];
      const double part = static_cast<double>(random.below(1 << 20)) / (1 << 20);
      const double rank = std::pow(static_cast<double>(places), part);
      const std::uint64_t place = static_cast<std::uint64_t>(rank) * 0x9e3779b1ULL % places * kSizes[0];
      std::uint64_t begin = random.chance(0.3) ? next[disk] : place;
      if (begin + size > disk_bytes) begin = 0;
      next[disk] = begin + size;
      trace.writes.push_back(widened(time_us, disk, begin, begin + size));
      written += size;
    }
  }
  std::ranges::sort(trace.writes, {}, &TraceWrite::time_us);
  return trace;
}

}  // namespace tidemark::bench
