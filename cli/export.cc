#include "cli/export.h"

#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/hex.h"
#include "cli/disk_map.h"
#include "cli/format.h"
#include "cli/image_file.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

struct Disk {
  std::uint64_t number = 0;
  std::string name;
  std::uint64_t size = 0;
};

struct Point {
  json answer;
  std::uint64_t epoch = 0;
  std::vector<Disk> disks;
};

std::unexpected<Error> odd_answer(std::string what) {
  return fail(Code::protocol, "admin API", std::move(what), "use a tidemarkd of the same version");
}

std::string point_path(const std::string& machine, const std::string& at, const std::string& rest = {}) {
  return machine_path(machine, "/points/" + path_segment(at) + rest);
}

Result<Point> read_point(AdminClient& client, const std::string& machine, const std::string& at) {
  Point point;
  point.answer = TIDEMARK_TRY(client.get(point_path(machine, at)));
  const auto epoch = number_at(point.answer, "epoch");
  if (!epoch) return odd_answer("a point without an epoch");
  point.epoch = *epoch;
  for (const json& entry : array_at(point.answer, "disks")) {
    const auto number = number_at(entry, "disk");
    const auto size = number_at(entry, "size");
    if (!number || !size) return odd_answer("a disk without a number or a size");
    std::string name = text_at(entry, "name");
    if (name.empty()) name = "disk" + std::to_string(*number);
    point.disks.push_back({*number, std::move(name), *size});
  }
  if (point.disks.empty()) return odd_answer("a point without disks");
  return point;
}

// "data" of "data.img"; what cannot stand in a file name is replaced. Unique among `taken`.
std::string file_name(const Disk& disk, std::set<std::string>& taken) {
  std::string stem = disk.name.substr(disk.name.rfind('/') + 1);
  std::ranges::replace_if(stem, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, '_');
  if (stem.ends_with(".img") || stem.ends_with(".raw")) stem.resize(stem.size() - 4);
  if (stem.empty() || stem.front() == '.' || stem.size() > 200) stem = "disk" + std::to_string(disk.number);
  std::string name = stem + ".img";
  if (!taken.insert(name).second) {
    name = stem + "-" + std::to_string(disk.number) + ".img";
    taken.insert(name);
  }
  return name;
}

// A server ends an answer early when it cannot read what is stored; one that is gone cannot be asked.
Error why_cut_off(AdminClient& client, const ExportRequest& request, const Disk& disk, std::uint64_t epoch,
                  std::uint64_t position, Error error) {
  if (error.code != Code::unavailable || !client.get("/v1/server")) return error;
  return {Code::corrupt, request.machine + "/" + disk.name,
          "the server broke off at byte " + std::to_string(position) + ": it could not read what is stored there",
          "`tidemark verify " + request.machine + " --at epoch:" + std::to_string(epoch) +
              "` names what is damaged; another point may be whole; see tidemarkd's log"};
}

Status fetch(AdminClient& client, const std::string& disk_path, std::uint64_t epoch, const Extent& extent,
             ImageFile& image, Progress& progress) {
  AdminClient::StreamRequest request;
  request.path = disk_path + "/data";
  request.range = AdminClient::Range{extent.offset, extent.length};
  request.epoch = epoch;
  const std::uint64_t end = extent.offset + extent.length;
  const auto take = [&](std::span<const std::byte> bytes) -> Status {
    if (bytes.size() > end - image.position()) return odd_answer("more bytes than were asked for");
    TIDEMARK_TRY(image.append(bytes));
    progress.add(bytes.size());
    return {};
  };
  TIDEMARK_TRY(client.stream(request, take));
  if (image.position() != end)
    return odd_answer("asked for " + std::to_string(extent.length) + " bytes at " + std::to_string(extent.offset) +
                      ", the answer is " + std::to_string(end - image.position()) + " bytes short");
  return {};
}

Result<json> export_disk(AdminClient& client, const ExportRequest& request, const Point& point, const Disk& disk,
                         const std::string& name, const ExportTarget& target, Progress& progress) {
  const std::string disk_path =
      point_path(request.machine, "epoch:" + std::to_string(point.epoch), "/disks/" + std::to_string(disk.number));
  DiskMap map(disk.size);
  AdminClient::StreamRequest map_request;
  map_request.path = disk_path + "/map";
  TIDEMARK_TRY(client.stream(map_request, [&](std::span<const std::byte> bytes) { return map.feed(bytes); }));
  const std::vector<Extent> extents = TIDEMARK_TRY(std::move(map).finish());

  ImageFile image = TIDEMARK_TRY(ImageFile::create(target.file_path(name), target.final_path(name), disk.size));
  progress.start(disk.name, disk.size);
  for (const Extent& extent : extents) {
    if (extent.zero) {
      TIDEMARK_TRY(image.append_zeroes(extent.length));
      progress.add(extent.length);
    } else {
      auto fetched = fetch(client, disk_path, point.epoch, extent, image, progress);
      if (!fetched)
        return std::unexpected(
            why_cut_off(client, request, disk, point.epoch, image.position(), std::move(fetched).error()));
    }
  }
  const Sha256 digest = TIDEMARK_TRY(image.finish());
  progress.finish();
  return json{
      {"disk", disk.number}, {"name", disk.name}, {"file", name}, {"size", disk.size}, {"sha256", to_hex(digest)}};
}

bool names_directory(const std::string& path) {
  struct stat found{};
  return path.ends_with('/') || (::stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode));
}

}  // namespace

Result<json> find_point(AdminClient& client, const std::string& machine, const std::string& at) {
  return TIDEMARK_TRY(read_point(client, machine, at)).answer;
}

Result<json> export_point(AdminClient& client, const ExportRequest& request, Progress& progress) {
  Point point = TIDEMARK_TRY(read_point(client, request.machine, request.at));
  if (!request.disk.empty()) {
    std::string known;
    for (const Disk& disk : point.disks) known += (known.empty() ? "" : ", ") + disk.name;
    std::erase_if(point.disks, [&](const Disk& disk) { return disk.name != request.disk; });
    if (point.disks.empty())
      return fail(Code::not_found, request.machine + "/" + request.disk, "no such disk at this point",
                  "its disks are " + known);
  }
  const auto kind = point.disks.size() == 1 && !names_directory(request.output) ? ExportTarget::Kind::file
                                                                                : ExportTarget::Kind::directory;
  ExportTarget target = TIDEMARK_TRY(ExportTarget::create(request.output, kind, request.force));

  json manifest = {{"format", kManifestFormat},
                   {"machine", request.machine},
                   {"epoch", point.epoch},
                   {"time", text_at(point.answer, "time")},
                   {"consistency", text_at(point.answer, "consistency")},
                   {"disks", json::array()}};
  std::set<std::string> taken = {kManifestName};
  for (const Disk& disk : point.disks) {
    const std::string name = file_name(disk, taken);
    json exported = TIDEMARK_TRY(export_disk(client, request, point, disk, name, target, progress));
    manifest["disks"].push_back(std::move(exported));
  }
  if (kind == ExportTarget::Kind::directory)
    TIDEMARK_TRY(
        write_small_file(target.file_path(kManifestName), target.final_path(kManifestName), manifest.dump(2) + "\n"));
  TIDEMARK_TRY(target.keep());
  for (json& disk : manifest["disks"]) disk["file"] = target.final_path(disk["file"].get<std::string>());
  return manifest;
}

Result<json> verify_point(AdminClient& client, const std::string& machine, const std::string& at, Progress& progress) {
  const Point point = TIDEMARK_TRY(read_point(client, machine, at));
  std::uint64_t total = 0;
  for (const Disk& disk : point.disks) total += disk.size;
  progress.start(machine, total);

  json verdict;
  std::string line;
  std::uint64_t current_disk = 0, done_before = 0, done_in_disk = 0;
  const auto take_line = [&]() -> Status {
    const json said = json::parse(line, nullptr, false);
    if (!said.is_object()) return odd_answer("a line of the verification is not JSON");
    if (const auto error = said.find("error"); error != said.end())
      return fail(Code::io, text_at(*error, "object"), text_at(*error, "what"), text_at(*error, "remedy"));
    if (said.contains("ok")) {
      verdict = said;
      return {};
    }
    const std::uint64_t disk = number_at(said, "disk").value_or(0);
    if (disk != current_disk) done_before += std::exchange(done_in_disk, 0);
    current_disk = disk;
    done_in_disk = number_at(said, "done").value_or(done_in_disk);
    progress.set(done_before + done_in_disk);
    return {};
  };
  AdminClient::StreamRequest request;
  request.method = "POST";
  request.path = point_path(machine, "epoch:" + std::to_string(point.epoch), "/verify");
  constexpr std::size_t kLineMax = 16 << 20;  // the last one names what is damaged
  const auto take_bytes = [&](std::span<const std::byte> bytes) -> Status {
    for (const std::byte byte : bytes) {
      if (byte != std::byte{'\n'}) {
        if (line.size() == kLineMax) return odd_answer("a line of the verification is too long");
        line += static_cast<char>(byte);
        continue;
      }
      if (!line.empty()) TIDEMARK_TRY(take_line());
      line.clear();
    }
    return {};
  };
  TIDEMARK_TRY(client.stream(request, take_bytes));
  if (!line.empty()) TIDEMARK_TRY(take_line());
  progress.finish();
  if (verdict.is_null())
    return fail(Code::unavailable, client.socket_path(), "the server stopped before the verification was through",
                "see tidemarkd's log, then try again");
  verdict["machine"] = machine;
  verdict["epoch"] = point.epoch;
  verdict["time"] = text_at(point.answer, "time");
  return verdict;
}

}  // namespace tidemark::cli
