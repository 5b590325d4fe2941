#include "cli/mount.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <ostream>
#include <random>
#include <sstream>
#include <thread>

#include "cli/format.h"
#include "cli/nbd_uri.h"
#include "cli/output.h"
#include "cli/point.h"
#include "cli/spawn.h"

namespace tidemark::cli {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr char kRun[] = "/run/tidemark-mount";
constexpr std::string_view kClonePrefix = "tidemark-mount-";  // and eight hexadecimal digits
constexpr std::chrono::seconds kReadyWithin{30}, kGoneWithin{30}, kAtOnce{0};
constexpr auto kLookEvery = std::chrono::milliseconds(20);
constexpr auto kLeftBehindAfter_us = std::int64_t{120} * 1'000'000;  // longer than a mount takes to have its client

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

std::string read_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The output of a program that must end well.
Result<std::string> must(Context& context, const std::vector<std::string>& command, const std::string& object) {
  const auto ran = TIDEMARK_TRY(run_program(command, [&] { return context.client.stopped(); }));
  if (ran.status == 0) return ran.out;
  return fail(Code::io, object,
              fmt::format("{} ended with status {}: {}", command.front(), ran.status, first_line(ran.err)));
}

Status need_programs() {
  if (::geteuid() != 0) return fail(Code::permission_denied, "mount", "only root can mount", "run this with sudo");
  TIDEMARK_TRY(need_program("nbdfuse", "libnbd-bin fuse3"));
  TIDEMARK_TRY(need_program("losetup", "mount"));
  TIDEMARK_TRY(need_program("mount", "mount"));
  TIDEMARK_TRY(need_program("partx", "util-linux"));
  TIDEMARK_TRY(need_program("blkid", "util-linux"));
  if (::access("/dev/fuse", R_OK | W_OK) != 0)
    return fail(Code::unavailable, "/dev/fuse", "is not there", "load the kernel's module: modprobe fuse");
  return {};
}

Status need_directory(const std::string& directory) {
  std::error_code error;
  if (!fs::is_directory(directory, error))
    return fail(Code::not_found, directory, "is no directory", "make it: mkdir " + directory);
  if (!fs::is_empty(directory, error))
    return fail(Code::already_exists, directory, "is not empty", "name an empty directory");
  return {};
}

// "x" of "/run/tidemark-mount/x/fuse/disk"; empty: it is none of ours.
std::string clone_of(const fs::path& backing_file) {
  const fs::path run = backing_file.parent_path().parent_path();
  return backing_file == run / "fuse/disk" && run.parent_path() == kRun ? run.filename().string() : std::string();
}

// Of a field of /proc/self/mountinfo, where blanks and their like are written as \040.
std::string unescaped(const std::string& field) {
  std::string text;
  for (std::size_t i = 0; i < field.size(); ++i) {
    if (field[i] == '\\' && i + 3 < field.size()) {
      text += static_cast<char>(std::stoi(field.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      text += field[i];
    }
  }
  return text;
}

// The clone whose file system is mounted there; empty: something else is, or nothing.
std::string mounted_clone(const std::string& directory) {
  std::error_code error;
  const std::string where = fs::canonical(directory, error).string();
  std::string clone;
  std::ifstream table("/proc/self/mountinfo");
  for (std::string line; !error && std::getline(table, line);) {
    std::istringstream fields(line.substr(0, line.find(" - "))), behind(line.substr(line.find(" - ") + 3));
    std::string number, parent, device, root, point, type, source;
    fields >> number >> parent >> device >> root >> point;
    behind >> type >> source;
    if (unescaped(point) != where) continue;
    clone = clone_of(read_line("/sys/block/" + fs::path(source).filename().string() + "/loop/backing_file"));
  }
  return clone;
}

using Time = std::chrono::steady_clock::time_point;

Status drop_clone(AdminClient& client, const std::string& clone, Time end) {
  for (;;) {  // its client has been told to leave, and may be about to
    auto dropped = client.remove("/v1/clones/" + path_segment(clone));
    if (dropped || dropped.error().code == Code::not_found) return {};
    if (dropped.error().code != Code::busy || std::chrono::steady_clock::now() > end)
      return std::unexpected(std::move(dropped).error());
    std::this_thread::sleep_for(kLookEvery);
  }
}

// Ends nbdfuse. The loop device lets go of its file a moment after the file system was unmounted.
Status stop_serving(const std::string& served, Time end) {
  struct stat here{}, above{};
  const bool alive = ::stat(served.c_str(), &here) == 0;
  const bool mounted =
      alive ? ::stat((served + "/..").c_str(), &above) == 0 && here.st_dev != above.st_dev : errno == ENOTCONN;
  if (!mounted) return {};
  for (;;) {
    const auto ran = TIDEMARK_TRY(run_program({"umount", served}));
    if (ran.status == 0) return {};
    if (std::chrono::steady_clock::now() >= end) return fail(Code::busy, served, first_line(ran.err));
    std::this_thread::sleep_for(kLookEvery);
  }
}

// Undoes what stands below the mount itself.
Status take_down(AdminClient& client, const std::string& clone, std::chrono::seconds within) {
  const Time end = std::chrono::steady_clock::now() + within;
  const fs::path run = fs::path(kRun) / clone;
  TIDEMARK_TRY(stop_serving((run / "fuse").string(), end));
  TIDEMARK_TRY(drop_clone(client, clone, end));
  std::error_code ignored;
  fs::remove_all(run, ignored);
  fs::remove(kRun, ignored);  // when it is empty
  return {};
}

bool is_ours(std::string_view clone) {
  return clone.starts_with(kClonePrefix) && clone.size() == kClonePrefix.size() + 8 &&
         clone.find_first_not_of("0123456789abcdef", kClonePrefix.size()) == std::string_view::npos;
}

// Clones of mounts that ended without us: nobody has them open.
void drop_left_behind(Context& context) {
  const auto list = context.client.get("/v1/clones");
  if (!list) return;
  for (const json& clone : array_at(*list, "clones")) {
    const std::string name = text_at(clone, "name");
    const auto created = time_at(clone, "created");
    if (!is_ours(name) || !array_at(clone, "clients").empty() || !created) continue;
    if (context.clock.wall_us() - *created < kLeftBehindAfter_us) continue;
    static_cast<void>(take_down(context.client, name, kAtOnce));
  }
}

std::string new_name() {
  std::random_device random;
  return fmt::format("{}{:08x}", kClonePrefix, random());
}

// Serves the clone's disk as the file it returns.
Result<std::string> serve(Context& context, const std::string& clone, const Disk& disk) {
  const fs::path run = fs::path(kRun) / clone;
  std::error_code error;
  fs::create_directories(run / "fuse", error);
  if (!error) fs::permissions(kRun, fs::perms::owner_all, error);
  if (error) return fail(Code::io, run.string(), "cannot be made: " + error.message());
  std::ofstream(run / "server") << fs::absolute(context.client.socket_path(), error).string() << "\n";
  const std::string uri = TIDEMARK_TRY(nbd_uri(context.client, "clone:" + clone, 0, disk.number));
  const std::string log = (run / "log").string(), ready = (run / "pid").string();
  const int pid = TIDEMARK_TRY(start_program({"nbdfuse", "-P", ready, (run / "fuse/disk").string(), uri}, log));
  const auto end = std::chrono::steady_clock::now() + kReadyWithin;
  for (; !fs::exists(ready, error); std::this_thread::sleep_for(kLookEvery)) {
    if (has_ended(pid)) return fail(Code::io, "nbdfuse", "does not serve the clone: " + read_line(log));
    if (context.client.stopped()) return fail(Code::cancelled, {}, "interrupted");
    if (std::chrono::steady_clock::now() > end)
      return fail(Code::timed_out, "nbdfuse", "does not come up", "see " + log);
  }
  return (run / "fuse/disk").string();
}

Result<std::vector<Volume>> volumes_of(Context& context, const std::string& file, std::uint64_t size) {
  // Status 1: there is no table that it knows.
  const auto table =
      TIDEMARK_TRY(run_program({"partx", "--show", "--noheadings", "--output", "NR,START,SECTORS", file}));
  std::vector<Volume> volumes;
  if (table.status == 0) volumes = parse_partitions(table.out);
  if (volumes.empty()) volumes.push_back({.partition = 0, .offset = 0, .size = size, .type = {}, .label = {}});
  for (Volume& volume : volumes) {
    for (auto [tag, to] : {std::pair{"TYPE", &volume.type}, std::pair{"LABEL", &volume.label}}) {
      const auto told =
          TIDEMARK_TRY(run_program({"blkid", "-p", "-s", tag, "-o", "value", "-O", std::to_string(volume.offset), "-S",
                                    std::to_string(volume.size), file},
                                   [&] { return context.client.stopped(); }));
      if (told.status == 0) *to = first_line(told.out);
    }
  }
  return volumes;
}

}  // namespace

std::vector<Volume> parse_partitions(const std::string& partx) {
  std::vector<Volume> volumes;
  std::istringstream lines(partx);
  std::uint64_t start = 0, sectors = 0;
  for (std::uint32_t number = 0; lines >> number >> start >> sectors;)
    volumes.push_back({.partition = number, .offset = start * 512, .size = sectors * 512, .type = {}, .label = {}});
  return volumes;
}

std::string mount_options(const std::string& type) {
  // XFS refuses a second file system of the same UUID: that of the machine itself, when this is it.
  return type == "xfs" ? "ro,nosuid,nodev,nouuid" : "ro,nosuid,nodev";
}

Result<Volume> choose_volume(const std::vector<Volume>& volumes, std::uint32_t partition, const std::string& disk) {
  static constexpr std::array kNotMounted = {"swap", "LVM2_member", "linux_raid_member", "crypto_LUKS", "zfs_member"};
  const auto mountable = [](const Volume& volume) {
    return !volume.type.empty() && std::ranges::find(kNotMounted, volume.type) == kNotMounted.end();
  };
  std::string known;
  std::vector<Volume> fitting;
  for (const Volume& volume : volumes) {
    known += fmt::format("{}{} ({}{}{}, {})", known.empty() ? "" : ", ",
                         volume.partition == 0 ? "the whole disk" : std::to_string(volume.partition),
                         volume.type.empty() ? "nothing known" : volume.type, volume.label.empty() ? "" : " ",
                         volume.label, human_size(volume.size));
    if (partition != 0 ? volume.partition == partition : mountable(volume)) fitting.push_back(volume);
  }
  if (fitting.size() == 1 && mountable(fitting.front())) return fitting.front();
  if (partition != 0 && fitting.empty())
    return fail(Code::not_found, disk, fmt::format("it has no partition {}", partition), "there is " + known);
  if (fitting.size() > 1)
    return fail(Code::invalid_argument, disk, "there are several file systems on it",
                "choose one with --partition N: " + known);
  return fail(Code::unsupported, disk, "there is no file system that could be mounted: " + known,
              "make a clone, and reach it over NBD with the programs for what is on it (docs/nbd.md)");
}

Outcome mount_point(Context& context, const MountRequest& request) {
  TIDEMARK_TRY(need_programs());
  TIDEMARK_TRY(need_directory(request.directory));
  drop_left_behind(context);
  Point point = TIDEMARK_TRY(read_point(context.client, request.machine, request.at));
  TIDEMARK_TRY(choose_disk(point, request.machine, request.disk));
  if (point.disks.size() != 1) {
    std::string known;
    for (const Disk& disk : point.disks) known += (known.empty() ? "" : ", ") + disk.name;
    return fail(Code::invalid_argument, request.machine, "it has several disks", "choose one: --disk NAME of " + known);
  }
  const Disk& disk = point.disks.front();
  const std::string clone = new_name();
  TIDEMARK_TRY(
      context.client.post(machine_path(request.machine, "/clones"), {{"at", exactly(point.epoch)}, {"name", clone}}));
  std::string device;
  const auto mounted = [&]() -> Result<Volume> {
    const std::string file = TIDEMARK_TRY(serve(context, clone, disk));
    const auto volumes = TIDEMARK_TRY(volumes_of(context, file, disk.size));
    auto volume = TIDEMARK_TRY(choose_volume(volumes, request.partition, request.machine + "/" + disk.name));
    device = first_line(TIDEMARK_TRY(must(context,
                                          {"losetup", "--find", "--show", "--offset", std::to_string(volume.offset),
                                           "--sizelimit", std::to_string(volume.size), file},
                                          file)));
    // The device can be written to, so the journal is replayed before the file system is there, read-only.
    TIDEMARK_TRY(must(context,
                      {"mount", "-t", volume.type, "-o", mount_options(volume.type), device, request.directory},
                      request.machine + "/" + disk.name));
    return volume;
  }();
  // From here on the mount alone keeps the device: it goes with it.
  if (!device.empty()) static_cast<void>(run_program({"losetup", "--detach", device}));
  if (!mounted) {
    if (mounted_clone(request.directory) == clone) static_cast<void>(run_program({"umount", request.directory}));
    AdminClient another(context.client.socket_path());  // that one may have been stopped
    static_cast<void>(take_down(another, clone, kGoneWithin));
    return std::unexpected(mounted.error());
  }
  if (context.json)
    return answer(context, {{"machine", request.machine},
                            {"epoch", point.epoch},
                            {"time", text_at(point.answer, "time")},
                            {"disk", disk.name},
                            {"partition", mounted->partition},
                            {"type", mounted->type},
                            {"directory", request.directory},
                            {"clone", clone}});
  const auto time = time_at(point.answer, "time");
  context.out << fmt::format("{}/{} of epoch {}{}: {} at {}, read-only\n", clean(request.machine), clean(disk.name),
                             point.epoch, time ? ", the machine as of " + human_time(*time) : "", mounted->type,
                             request.directory);
  context.out << fmt::format("end it:  tidemark unmount {}\n", request.directory);
  return 0;
}

Outcome unmount_point(Context& context, const std::string& directory) {
  const std::string clone = mounted_clone(directory);
  if (clone.empty()) {
    drop_left_behind(context);
    return fail(Code::not_found, directory, "no recovery point is mounted there",
                "`findmnt` tells what is mounted where");
  }
  const auto ran = TIDEMARK_TRY(run_program({"umount", directory}));
  if (ran.status != 0)
    return fail(Code::busy, directory, first_line(ran.err), "`fuser -vm " + directory + "` tells who uses it");
  // The server that it is of, whichever one this command was given.
  AdminClient server(read_line(fs::path(kRun) / clone / "server"));
  TIDEMARK_TRY(take_down(server, clone, kGoneWithin));
  drop_left_behind(context);
  if (context.json) return answer(context, {{"unmounted", directory}});
  context.out << directory << ": unmounted\n";
  return 0;
}

}  // namespace tidemark::cli
