#include "agent/block_device.h"

#include <fmt/format.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <sstream>

#include "agent/text_file.h"

namespace tidemark::agent {
namespace fs = std::filesystem;
namespace {

std::optional<dev_t> device_number(const fs::path& folder) {
  const auto text = read_line(folder / "dev");
  unsigned major_number = 0, minor_number = 0;
  if (!text || std::sscanf(text->c_str(), "%u:%u", &major_number, &minor_number) != 2) return std::nullopt;
  return makedev(major_number, minor_number);
}

std::uint64_t number_in(const fs::path& path) {
  const auto text = read_line(path);
  std::uint64_t value = 0;
  if (text) std::from_chars(text->data(), text->data() + text->size(), value);
  return value;
}

std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    entries.push_back(it->path());
  std::sort(entries.begin(), entries.end());
  return entries;
}

// A device, its partitions and what holds any of them, to any depth.
void collect_tree(const OsPaths& os, const fs::path& folder, std::set<dev_t>& tree) {
  const auto device = device_number(folder);
  if (!device || !tree.insert(*device).second) return;
  for (const fs::path& entry : entries_of(folder)) {
    std::error_code error;
    if (fs::exists(entry / "partition", error)) collect_tree(os, entry, tree);
  }
  for (const fs::path& holder : entries_of(folder / "holders")) {
    collect_tree(os, os.sys / "class/block" / holder.filename(), tree);
  }
}

std::string disk_identity(const fs::path& disk) {
  if (const auto uuid = read_line(disk / "dm/uuid"); uuid && !uuid->empty()) return "dm:" + *uuid;
  if (const auto name = read_line(disk / "dm/name")) return "dm-name:" + *name;
  if (const auto uuid = read_line(disk / "md/uuid")) return "md:" + *uuid;
  for (const char* place : {"wwid", "device/wwid"}) {
    if (const auto wwid = read_line(disk / place)) return "wwn:" + *wwid;
  }
  for (const char* place : {"serial", "device/serial"}) {
    if (const auto serial = read_line(disk / place)) return "serial:" + *serial;
  }
  return {};
}

}  // namespace

Result<BlockDeviceFacts> describe_block_device(const OsPaths& os, dev_t device, const std::string& path) {
  const fs::path link = os.sys / "dev/block" / fmt::format("{}:{}", major(device), minor(device));
  std::error_code error;
  const fs::path folder = fs::canonical(link, error);
  if (error) {
    return fail(Code::not_found, path,
                fmt::format("the kernel knows no block device {}:{}", major(device), minor(device)),
                "check that the disk is still attached");
  }
  BlockDeviceFacts facts;
  facts.device = device;
  facts.name = folder.filename();
  const bool is_partition = fs::exists(folder / "partition", error);
  const fs::path disk = is_partition ? folder.parent_path() : folder;
  facts.disk_name = disk.filename();
  facts.disk_device = device_number(disk).value_or(device);
  facts.partition = static_cast<std::uint32_t>(number_in(folder / "partition"));
  facts.backing_file = read_line(disk / "loop/backing_file").value_or("");

  std::string identity = facts.backing_file.empty() ? disk_identity(disk) : "loop:" + facts.backing_file;
  if (identity.empty()) {
    facts.identity = fmt::format("dev:{}:{}:{}", major(device), minor(device), path);
  } else {
    facts.identity = facts.partition == 0 ? identity : fmt::format("{}-part{}", identity, facts.partition);
  }
  collect_tree(os, folder, facts.tree);
  facts.tree.insert(device);
  return facts;
}

std::vector<PartitionPlace> partitions_of(const OsPaths& os, const std::string& disk_name) {
  constexpr std::uint64_t kSector = 512;  // whatever the disk's own is
  std::vector<PartitionPlace> places;
  for (const fs::path& entry : entries_of(os.sys / "class/block" / disk_name)) {
    std::error_code error;
    const auto device = fs::exists(entry / "partition", error) ? device_number(entry) : std::nullopt;
    if (!device) continue;
    const std::uint64_t begin = number_in(entry / "start") * kSector;
    places.push_back({*device, begin, begin + number_in(entry / "size") * kSector});
  }
  return places;
}

Result<WriteCounters> read_write_counters(const OsPaths& os, const std::string& disk_name) {
  const fs::path disk = os.sys / "class/block" / disk_name;
  if (number_in(disk / "queue/iostats") == 0) {
    return fail(Code::unsupported, disk_name, "the kernel does not count its writes",
                fmt::format("switch counting on: echo 1 > /sys/block/{}/queue/iostats", disk_name));
  }
  const std::string text = TIDEMARK_TRY(read_text_file(disk / "stat"));
  std::istringstream fields(text);
  std::uint64_t value[17]{};
  std::size_t count = 0;
  while (count < std::size(value) && fields >> value[count]) ++count;
  if (count < 15)
    return fail(Code::unsupported, disk_name, "the kernel does not count its discards", "it takes Linux 4.18 or newer");
  WriteCounters counters{value[4], value[6], value[11], value[13], 0};
  std::istringstream in_flight(TIDEMARK_TRY(read_text_file(disk / "inflight")));
  std::uint64_t reads = 0;
  if (!(in_flight >> reads >> counters.writes_in_flight)) {
    return fail(Code::unsupported, disk_name, "the kernel does not count its requests in flight");
  }
  return counters;
}

Result<std::vector<std::string>> list_whole_disks(const OsPaths& os) {
  std::vector<std::string> disks;
  for (const fs::path& disk : entries_of(os.sys / "block")) {
    const std::string name = disk.filename();
    const auto starts = [&](const char* prefix) { return name.starts_with(prefix); };
    if (starts("loop") || starts("ram") || starts("zram") || starts("sr") || starts("fd") || starts("nbd")) continue;
    if (number_in(disk / "removable") != 0 || number_in(disk / "hidden") != 0 || number_in(disk / "size") == 0)
      continue;
    if (!entries_of(disk / "slaves").empty()) continue;  // its members are listed themselves
    std::string device = name;
    std::replace(device.begin(), device.end(), '!', '/');  // cciss!c0d0
    disks.push_back("/dev/" + device);
  }
  if (disks.empty()) {
    return fail(Code::not_found, (os.sys / "block").string(), "no whole, non-removable disk", "name what to protect");
  }
  return disks;
}

std::vector<std::string> loops_backed_by(const OsPaths& os, const std::string& real_path) {
  std::vector<std::string> loops;
  for (const fs::path& disk : entries_of(os.sys / "block")) {
    if (read_line(disk / "loop/backing_file") == real_path) loops.push_back("/dev/" + disk.filename().string());
  }
  return loops;
}

}  // namespace tidemark::agent
