// What of a disk need not be read: free space of mounted ext4 and XFS, and swap.
//
// **What is told.** Stretches that were free in the kernel's own allocator at a moment t1 within the call, and after
// which the file system was synced (t2). So at t2 nothing on the disk refers to what they hold any more: whoever comes
// later writes before he refers to it. In any state of the disk that is later than the call, such a stretch may
// therefore read as zeroes, unless it was written to after the call began. The caller must know of all writes since
// then, or know that there was none.
//
// Why the sync: a file system may give blocks back in memory before that is in its log (XFS does, and ext4 without
// ordered data). A copy of such a disk, its log replayed, has the file again, and its blocks. If there was anything to
// be written at t2, the sync writes it to the disk, which is seen by whoever proves that nothing was written.
//
// **Whom is asked.** The kernel, FS_IOC_GETFSMAP (linux/fsmap.h), for records of the owner FMR_OWN_FREE. Never the
// disk: bitmaps there are older than the log. Only file systems that are mounted, here, on the very device or on a
// partition of it, that can be written to and have neither failed nor been mounted without their log, and that lie with
// all of their log on this one device. XFS is asked by a thread without CAP_SYS_ADMIN, for to the mighty it answers
// from its reverse map, which in the middle of an allocation lags behind what is allocated. A frozen file system
// answers as well, and its sync returns at once.
//
// Swap in use by a partition means nothing after a restart, but for its first chunk, where labels are. A swap file's
// blocks belong to a file. What overlaps with another partition is left alone.
//
// Every refusal means only that more is read. Formats and meanings: the kernel's include/uapi/linux/fsmap.h,
// fs/xfs/xfs_fsmap.c, fs/ext4/fsmap.c; mkswap(8), proc_swaps(5).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "agent/block_device.h"
#include "agent/os_paths.h"
#include "agent/skipped_chunks.h"
#include "agent/source.h"
#include "base/status.h"

namespace tidemark::agent {

// The unused stretches of a device, in bytes of it, ascending, disjoint, at most kUnusedMax, the largest ones. `size`:
// of the device. Blocks for as long as the file systems take to answer and to sync.
inline constexpr std::size_t kUnusedMax = 65'536;
std::vector<DataRange> unused_space(const OsPaths& os, const BlockDeviceFacts& facts, std::uint64_t size);

// Free extents of the file system `kind` ("ext4" or "xfs") that `folder` lies on, in bytes of its one device `device`;
// at least a chunk each. unsupported, with the reason, when what it says is no proof.
Result<std::vector<DataRange>> free_extents(int folder, const std::string& kind, dev_t device);

// Puts together what touches; drops the smallest until there are at most so many.
std::vector<DataRange> merged(std::vector<DataRange> ranges, std::size_t ranges_max);

// The whole chunks within these ranges of a disk of `size` bytes.
ChunkSet whole_chunks(std::span<const DataRange> ranges, std::uint64_t size);

}  // namespace tidemark::agent
