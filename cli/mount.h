// The files of a recovery point, under a directory: a clone of the point that lasts as long as the mount, made a file
// by nbdfuse, and mounted read-only. A clone and not the point itself, so that the kernel can replay the file system's
// journal, as it would after a crash: what the machine had only there is seen.
//
// What a mount consists of is found in the kernel's tables alone: DIR -> loop device -> RUN/CLONE/disk -> the clone. A
// clone that a crash or a reboot left behind has no client any more, and the next mount or unmount drops it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace tidemark::cli {

struct MountRequest {
  std::string machine{};
  std::string at = "latest";
  std::string disk{};           // empty: the only one
  std::uint32_t partition = 0;  // 0: the only file system there is
  std::string directory{};
};

Outcome mount_point(Context& context, const MountRequest& request);
Outcome unmount_point(Context& context, const std::string& directory);

// A place on a disk that may hold a file system.
struct Volume {
  std::uint32_t partition = 0;  // 0: the whole disk
  std::uint64_t offset = 0, size = 0;
  std::string type;  // as blkid names it; empty: nothing known
  std::string label;
};
// The volume to mount: the one of this number, or the only one with a file system. Else the error lists what there is.
Result<Volume> choose_volume(const std::vector<Volume>& volumes, std::uint32_t partition, const std::string& disk);
// What `partx --show --noheadings --output NR,START,SECTORS` says, in sectors of 512 bytes.
std::vector<Volume> parse_partitions(const std::string& partx);
// What mount(8) is given for a file system of this type.
std::string mount_options(const std::string& type);

}  // namespace tidemark::cli
