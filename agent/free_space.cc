#include "agent/free_space.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fsmap.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>

#include "agent/file_descriptor.h"
#include "agent/mounts.h"
#include "base/limits.h"
#include "base/planted.h"

namespace tidemark::agent {
namespace {

constexpr std::uint64_t kChunk = limits::kDigestChunkSize;
constexpr unsigned kRecords = 4096;  // of one call
constexpr char kSwapMark[] = "SWAPSPACE2";

// This thread's right, until it ends.
Status drop_sys_admin() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3]{};
  if (::syscall(SYS_capget, &header, sets) != 0) return fail_errno(errno, "thread", "look at its capabilities");
  sets[CAP_TO_INDEX(CAP_SYS_ADMIN)].effective &= ~CAP_TO_MASK(CAP_SYS_ADMIN);
  if (::syscall(SYS_capset, &header, sets) != 0) return fail_errno(errno, "thread", "give up a capability");
  return {};
}

// Largest first is what is kept when there are too many.
void keep_largest(std::vector<DataRange>& ranges, std::size_t ranges_max) {
  if (ranges.size() <= ranges_max) return;
  const auto larger = [](const DataRange& a, const DataRange& b) { return a.end - a.begin > b.end - b.begin; };
  std::nth_element(ranges.begin(), ranges.begin() + static_cast<std::ptrdiff_t>(ranges_max), ranges.end(), larger);
  ranges.resize(ranges_max);
}

Result<std::vector<DataRange>> ask(int folder, const std::string& kind, dev_t device) {
  if (kind == "xfs") TIDEMARK_TRY(drop_sys_admin());
  const auto memory = std::make_unique<std::byte[]>(fsmap_sizeof(kRecords));
  auto* head = reinterpret_cast<fsmap_head*>(memory.get());
  head->fmh_count = kRecords;
  fsmap& high = head->fmh_keys[1];
  high.fmr_device = high.fmr_flags = UINT32_MAX;  // of all its devices: one more is a reason to refuse
  high.fmr_physical = high.fmr_owner = high.fmr_offset = UINT64_MAX;
  std::vector<DataRange> found;
  DataRange run;
  const auto keep = [&] {
    if (run.end - run.begin >= kChunk) found.push_back(run);
    if (found.size() > 2 * kUnusedMax) keep_largest(found, kUnusedMax);
  };
  while (true) {
    if (::ioctl(folder, FS_IOC_GETFSMAP, head) != 0) return fail_errno(errno, kind, "ask for the map of its space");
    if ((head->fmh_oflags & FMH_OF_DEV_T) == 0) return fail(Code::unsupported, kind, "its map names no devices");
    const std::span records(head->fmh_recs, head->fmh_entries);
    for (const fsmap& record : records) {
      if (record.fmr_device != static_cast<std::uint32_t>(device))
        return fail(Code::unsupported, kind, "it keeps some of its data on another device");
      const bool special = (record.fmr_flags & FMR_OF_SPECIAL_OWNER) != 0;
      const bool free = special && record.fmr_owner == FMR_OWN_FREE;
      if (kind == "xfs" && !free && !(special && record.fmr_owner == FMR_OWN_UNKNOWN))
        return fail(Code::unsupported, kind, "it answers from its reverse map");
      if (!free) continue;
      if (record.fmr_physical == run.end) {
        run.end += record.fmr_length;
        continue;
      }
      keep();
      run = {record.fmr_physical, record.fmr_physical + record.fmr_length};
    }
    if (records.empty() || (records.back().fmr_flags & FMR_OF_LAST) != 0) break;
    fsmap_advance(head);
  }
  keep();
  return merged(std::move(found), kUnusedMax);
}

// Where on the source something lies that is mounted or swapped on.
struct Place {
  dev_t device = 0;
  std::uint64_t begin = 0, end = 0;
};

// The source itself and its partitions, without what overlaps with a partition of the same disk.
std::vector<Place> places_of(const OsPaths& os, const BlockDeviceFacts& facts, std::uint64_t size) {
  const auto partitions = partitions_of(os, facts.disk_name);
  Place whole{facts.device, 0, size};
  std::vector<Place> places;
  if (facts.partition != 0) {
    for (const PartitionPlace& partition : partitions) {
      if (partition.device == facts.device) whole = {facts.device, partition.begin, partition.end};
    }
    places.push_back(whole);
  } else {
    places.push_back(whole);
    for (const PartitionPlace& partition : partitions)
      places.push_back({partition.device, partition.begin, partition.end});
  }
  std::erase_if(places, [&](const Place& place) {
    return std::any_of(partitions.begin(), partitions.end(), [&](const PartitionPlace& other) {
      return other.device != place.device && other.begin < place.end && place.begin < other.end;
    });
  });
  for (Place& place : places) {
    place.begin -= whole.begin;
    place.end -= whole.begin;
  }
  std::erase_if(places, [&](const Place& place) { return place.begin >= place.end || place.end > size; });
  return places;
}

// The root of a mount, if what is seen there is on this device.
FileDescriptor open_mount(const Mount& mount, dev_t device) {
  FileDescriptor folder(::open(mount.mountpoint.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK));
  struct stat status{};
  if (folder && (::fstat(folder.get(), &status) != 0 || status.st_dev != device)) folder.reset();
  return folder;
}

Result<std::vector<DataRange>> free_of(const std::vector<Mount>& mounts, dev_t device) {
  FileDescriptor folder;
  std::string kind;
  for (const Mount& mount : mounts) {
    if (mount.device != device || (mount.filesystem != "ext4" && mount.filesystem != "xfs")) continue;
    for (const char* option : {"ro", "noload", "norecovery", "shutdown", "emergency_ro"}) {
      if (has_option(mount.options, option))
        return fail(Code::unsupported, mount.mountpoint, std::string("it is mounted with the option ") + option);
    }
    folder = open_mount(mount, device);
    kind = mount.filesystem;
    if (folder) break;
  }
  if (!folder) return std::vector<DataRange>{};
  // What was deleted a moment ago is free for ext4 once that is in its log.
  if (!planted(Planted::free_space_unsynced) || kind != "xfs") (void)::syncfs(folder.get());
  auto extents = TIDEMARK_TRY(free_extents(folder.get(), kind, device));
  if (planted(Planted::free_space_unsynced)) return extents;
  // An ext4 that failed says so to fsync, not always to syncfs.
  if (::syncfs(folder.get()) != 0 || ::fsync(folder.get()) != 0) return fail_errno(errno, kind, "sync");
  return extents;
}

// Is it a swap partition, and in use? The path may have become another device's.
bool swapped_on(const Swap& swap) {
  if (FileDescriptor(::open(swap.path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC)) || errno != EBUSY) return false;
  const FileDescriptor fd(::open(swap.path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status{};
  if (!fd || ::fstat(fd.get(), &status) != 0 || status.st_rdev != swap.device) return false;
  char mark[sizeof kSwapMark - 1];
  const off_t at = ::sysconf(_SC_PAGESIZE) - static_cast<off_t>(sizeof mark);
  return ::pread(fd.get(), mark, sizeof mark, at) == static_cast<ssize_t>(sizeof mark) &&
         std::memcmp(mark, kSwapMark, sizeof mark) == 0;
}

}  // namespace

std::vector<DataRange> merged(std::vector<DataRange> ranges, std::size_t ranges_max) {
  const auto before = [](const DataRange& a, const DataRange& b) { return a.begin < b.begin; };
  std::sort(ranges.begin(), ranges.end(), before);
  std::vector<DataRange> out;
  for (const DataRange& range : ranges) {
    if (range.begin >= range.end) continue;
    if (!out.empty() && range.begin <= out.back().end) {
      out.back().end = std::max(out.back().end, range.end);
    } else {
      out.push_back(range);
    }
  }
  keep_largest(out, ranges_max);
  std::sort(out.begin(), out.end(), before);
  return out;
}

ChunkSet whole_chunks(std::span<const DataRange> ranges, std::uint64_t size) {
  ChunkSet chunks;
  for (const DataRange& range : ranges) {
    const std::uint64_t first = round_up(range.begin, kChunk) / kChunk;
    const std::uint64_t end = std::min(range.end, size) / kChunk;
    if (first < end) chunks.add({first, end - first});
  }
  return chunks;
}

Result<std::vector<DataRange>> free_extents(int folder, const std::string& kind, dev_t device) {
  Result<std::vector<DataRange>> extents = std::unexpected(Error{});
  std::thread([&] { extents = ask(folder, kind, device); }).join();
  return extents;
}

std::vector<DataRange> unused_space(const OsPaths& os, const BlockDeviceFacts& facts, std::uint64_t size) {
  std::vector<DataRange> unused;
  const auto places = places_of(os, facts, size);
  const auto add = [&](const Place& place, std::uint64_t begin, std::uint64_t end) {
    begin += place.begin;
    end = std::min(end + place.begin, place.end);
    if (begin < end) unused.push_back({begin, end});
  };
  const auto mounts = read_mounts(os);
  for (const Place& place : places) {
    const auto extents =
        mounts ? free_of(*mounts, place.device) : Result<std::vector<DataRange>>(std::unexpected(mounts.error()));
    if (!extents) {
      spdlog::debug("free space is read too disk={} why=\"{}\"", facts.name, extents.error().message());
      continue;
    }
    for (const DataRange& extent : *extents) add(place, extent.begin, extent.end);
  }
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  for (const Swap& swap : read_swaps(os)) {
    const auto place =
        std::find_if(places.begin(), places.end(), [&](const Place& p) { return p.device == swap.device; });
    if (place == places.end() || !swapped_on(swap)) continue;
    // The first chunk stays, wherever on the disk the partition begins.
    add(*place, kChunk, page + swap.bytes);
  }
  return merged(std::move(unused), kUnusedMax);
}

}  // namespace tidemark::agent
