// Loading the in-kernel program, attaching it, and pinning both.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <utility>

#include "agent/block_device.h"
#include "agent/bpf/track.skel.h"
#include "agent/device_mapper.h"
#include "agent/kernel_marks.h"
#include "agent/pins.h"
#include "agent/text_file.h"
#include "base/crypto.h"

namespace tidemark::agent {
namespace fs = std::filesystem;
namespace {

constexpr auto kQuietLimit = std::chrono::seconds(1);
constexpr long kBpffs = 0xcafe4a11;

int to_log(libbpf_print_level level, const char* format, va_list arguments) {
  char text[512];
  std::vsnprintf(text, sizeof text, format, arguments);
  text[strcspn(text, "\n")] = '\0';
  if (level == LIBBPF_WARN) spdlog::info("libbpf: {}", text);  // what failed is an error of ours, and told as such
  return 0;
}

struct Unloader {
  void operator()(track* skeleton) const { track__destroy(skeleton); }
};

std::uint64_t number_in(const fs::path& path) {
  const auto text = read_line(path);
  std::uint64_t value = 0;
  if (text) std::from_chars(text->data(), text->data() + text->size(), value);
  return value;
}

// A bpffs holds what is pinned; systemd mounts one at every boot, other systems may not.
Status ensure_bpffs(const fs::path& place) {
  struct statfs facts{};
  if (::statfs(place.c_str(), &facts) != 0)
    return fail(Code::unsupported, place.string(), "the kernel has no BPF file system", "it takes CONFIG_BPF_SYSCALL");
  if (facts.f_type == kBpffs) return {};
  if (::mount("bpf", place.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0) {
    const int error_number = errno;
    auto error = fail_errno(error_number, place.string(), "mount a BPF file system");
    error.error().remedy = fmt::format("mount it as root: mount -t bpf bpf {}", place.string());
    return error;
  }
  return {};
}

std::unexpected<Error> bpf_failed(int error_number, const std::string& doing) {
  auto error = fail_errno(error_number, "tracking", doing);
  if (error_number == EPERM || error_number == EACCES) {
    error.error().remedy = "run the agent as root, or set tracking = \"digests\"";
  } else if (error_number == ENOMEM) {
    error.error().remedy = "the marks take 96 MiB of the kernel's memory for each TiB: free some, or protect less";
  } else {
    error.error().code = Code::unsupported;
    error.error().remedy = "it takes Linux 6.1 or newer with BTF; tracking = \"digests\" works without";
  }
  return error;
}

Status describe_disks(track& skeleton, const std::vector<TrackedDisk>& disks) {
  std::map<std::uint32_t, std::uint32_t> last;  // window of each whole disk
  std::vector<track_window> windows;
  std::uint32_t word = 0;
  for (const TrackedDisk& disk : disks) {
    const auto index = static_cast<std::uint32_t>(windows.size());
    const std::uint32_t number = number_of_disk(disk.device);
    windows.push_back({disk.first_sector, disk.size / 512, word, TRACK_NO_WINDOW});
    word += static_cast<std::uint32_t>(((disk.size + 4095) / 4096 + 63) / 64);
    const auto [at, first] = last.emplace(number, index);
    if (!first) {
      windows[at->second].next = index;
      at->second = index;
    } else if (::bpf_map_update_elem(bpf_map__fd(skeleton.maps.disks), &number, &index, BPF_ANY) != 0) {
      return bpf_failed(errno, "describe a disk");
    }
  }
  for (std::uint32_t i = 0; i < windows.size(); ++i) {
    if (::bpf_map_update_elem(bpf_map__fd(skeleton.maps.windows), &i, &windows[i], BPF_ANY) != 0)
      return bpf_failed(errno, "describe a disk");
  }
  return {};
}

track_control first_control(const std::vector<TrackedDisk>& disks, const std::string& boot_id, std::uint64_t words) {
  track_control control{};
  control.version = TRACK_VERSION;
  std::memcpy(control.boot_id, boot_id.data(), std::min(boot_id.size(), sizeof control.boot_id));
  control.since_us = static_cast<__u64>(Clock::system().wall_us());
  control.words = words;
  control.disks = disks.size();
  for (std::size_t i = 0; i < disks.size(); ++i) {
    auto& disk = control.disk[i];
    disk.device = disks[i].device;
    disk.diskseq = disks[i].diskseq;
    disk.size = disks[i].size;
    disk.first_sector = disks[i].first_sector;
    std::memcpy(disk.identity, digest_of(disks[i]).data(), TRACK_IDENTITY_SIZE);
  }
  return control;
}

Status attach(track& skeleton, const char* name, const fs::path& pin) {
  bpf_program* program = bpf_object__find_program_by_name(skeleton.obj, name);
  bpf_link* link = bpf_program__attach(program);
  if (link == nullptr) return bpf_failed(errno, fmt::format("attach {} to its tracepoint", name));
  const int pinned = bpf_link__pin(link, pin.c_str());
  bpf_link__destroy(link);  // what is pinned stays attached
  if (pinned != 0) return bpf_failed(-pinned, fmt::format("pin {}", name));
  return {};
}

// Writes that were submitted before the program was attached end unknown to it, each of which would mean to read
// everything once more. So they get a moment to end first.
void await_a_quiet_moment(const std::vector<TrackedDisk>& disks) {
  const auto deadline = std::chrono::steady_clock::now() + kQuietLimit;
  for (const TrackedDisk& disk : disks) {
    const auto place = fmt::format("/sys/dev/block/{}:{}/inflight", major(disk.device), minor(disk.device));
    std::uint64_t reads = 0, writes = 0;
    do {
      std::ifstream(place) >> reads >> writes;
    } while (writes != 0 && std::chrono::steady_clock::now() < deadline);
  }
}

}  // namespace

Status KernelMarks::load(const fs::path& pins, const std::vector<TrackedDisk>& disks, const std::string& boot_id) {
  if (::geteuid() != 0) {
    return fail(Code::permission_denied, "tracking", "only root can track the writes to a disk",
                "run the agent as root, or set tracking = \"digests\"");
  }
  if (::access("/sys/kernel/btf/vmlinux", R_OK) != 0) {
    return fail(Code::unsupported, "tracking", "the kernel tells nothing of its types (no /sys/kernel/btf/vmlinux)",
                "it takes a kernel with CONFIG_DEBUG_INFO_BTF; tracking = \"digests\" works without");
  }
  if (disks.empty() || disks.size() > TRACK_DISKS_MAX)
    return fail(Code::unsupported, "tracking", fmt::format("{} disks at once", disks.size()));
  TIDEMARK_TRY(ensure_bpffs(pins.parent_path()));
  libbpf_set_print(to_log);
  const std::unique_ptr<track, Unloader> skeleton(track__open());
  if (!skeleton) return bpf_failed(errno, "open the tracking program");
  std::uint64_t words = 0;
  for (const TrackedDisk& disk : disks) words += ((disk.size + 4095) / 4096 + 63) / 64;
  if (words * TRACK_SETS > UINT32_MAX) {
    return fail(Code::unsupported, "tracking", "the disks are larger than what can be tracked, 85 TiB in all",
                "protect fewer, or set tracking = \"digests\"");
  }
  skeleton->rodata->words_per_set = static_cast<__u32>(words);
  skeleton->rodata->mark_at_the_end = static_cast<__u32>(planted(Planted::marks_on_completion_only));
  bpf_map__set_max_entries(skeleton->maps.marks, static_cast<__u32>(words * TRACK_SETS));
  bpf_map__set_max_entries(skeleton->maps.counters, static_cast<__u32>(libbpf_num_possible_cpus()));
  if (const int error = track__load(skeleton.get()); error != 0)
    return bpf_failed(-error, "load the tracking program into the kernel");
  TIDEMARK_TRY(describe_disks(*skeleton, disks));
  track_control control = first_control(disks, boot_id, words);
  const __u32 zero = 0;
  const int control_fd = bpf_map__fd(skeleton->maps.control);
  if (::bpf_map_update_elem(control_fd, &zero, &control, BPF_ANY) != 0) return bpf_failed(errno, "describe the disks");
  if (::mkdir(pins.c_str(), 0700) != 0) return fail_errno(errno, pins.string(), "make the folder of the pins");
  for (const char* name : kPinnedMaps) {
    const int pinned = bpf_map__pin(bpf_object__find_map_by_name(skeleton->obj, name), (pins / name).c_str());
    if (pinned != 0) return bpf_failed(-pinned, fmt::format("pin the map {}", name));
  }
  for (const PinnedProgram& one : kPinnedPrograms) TIDEMARK_TRY(attach(*skeleton, one.name, pins / one.name));
  await_a_quiet_moment(disks);
  Mapping mapping;
  TIDEMARK_TRY(mapping.map(pins / "control", sizeof(track_control), 1));
  __atomic_store_n(&static_cast<track_control*>(mapping.at)->ready, 1, __ATOMIC_SEQ_CST);
  return {};
}

Status KernelMarks::unpin(const fs::path& pins) {
  std::error_code error;
  if (!fs::exists(pins, error)) return {};
  KernelMarks mine;
  TIDEMARK_TRY(mine.lock(pins));
  fs::remove_all(pins, error);
  if (error) return fail_errno(error.value(), pins.string(), "remove what is pinned");
  return {};
}

namespace {

// bdev_write_page() of the kernel, until 6.3: file systems such as vfat, and swap, use it where the driver has rw_page.
bool writes_pages_past_bios(const std::string& disk) {
  if (!disk.starts_with("zram") && !disk.starts_with("ram") && !disk.starts_with("pmem")) return false;
  utsname kernel{};
  int major = 0, minor = 0;
  if (::uname(&kernel) != 0 || std::sscanf(kernel.release, "%d.%d", &major, &minor) != 2) return true;
  return std::pair(major, minor) < std::pair(6, 3);
}

}  // namespace

Result<TrackedDisk> describe_tracked(const OsPaths& os, const std::string& path, const std::string& identity,
                                     std::uint64_t size) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return fail_errno(errno, path, "look at");
  if (!S_ISBLK(status.st_mode))
    return fail(Code::unsupported, path, "a regular file: only disks and partitions can be tracked",
                "protect the disk, or set tracking = \"digests\"");
  const BlockDeviceFacts facts = TIDEMARK_TRY(describe_block_device(os, status.st_rdev, path));
  const fs::path disk = os.sys / "class/block" / facts.disk_name;
  TrackedDisk tracked;
  tracked.path = path;
  tracked.identity = identity;
  tracked.device = facts.disk_device;
  tracked.diskseq = number_in(disk / "diskseq");
  tracked.size = size;
  tracked.first_sector = facts.partition == 0 ? 0 : number_in(os.sys / "class/block" / facts.name / "start");
  std::error_code error;
  if (number_in(disk / "queue/dax") != 0) {
    return fail(Code::unsupported, path, "it is written to by the processor directly (DAX), which nothing sees",
                "set tracking = \"digests\"");
  }
  if (fs::exists(disk / "dm", error)) tracked.table = TIDEMARK_TRY(digest_of_table(facts.disk_device, path));
  for (const auto& holder : fs::directory_iterator(disk / "holders", error)) {
    const auto uuid = read_text_file(holder.path() / "dm/uuid");
    if (uuid && uuid->starts_with("mpath-"))
      return fail(Code::unsupported, path,
                  "one of several paths to a disk: what is written over another one is not seen",
                  "set tracking = \"digests\", and protect /dev/" + holder.path().filename().string());
  }
  if (writes_pages_past_bios(facts.disk_name)) {
    return fail(Code::unsupported, path,
                "before Linux 6.3 single pages are written to such a disk without any account of it",
                "set tracking = \"digests\"");
  }
  // Request-based drivers have hardware queues in sysfs.
  if (facts.disk_name.starts_with("nvme") && !fs::exists(disk / "mq", error)) {
    return fail(Code::unsupported, path, "a multipath head of NVMe cannot be tracked", "set tracking = \"digests\"");
  }
  return tracked;
}

}  // namespace tidemark::agent
