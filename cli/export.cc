#include "cli/export.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/hex.h"
#include "cli/convert.h"
#include "cli/export_parts.h"
#include "cli/format.h"
#include "cli/output.h"

namespace tidemark::cli {

using nlohmann::json;

std::string image_name(const Disk& disk, const std::string& format, std::set<std::string>& taken) {
  std::string stem = disk.name.substr(disk.name.rfind('/') + 1);
  std::ranges::replace_if(stem, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, '_');
  if (stem.ends_with(".img") || stem.ends_with(".raw")) stem.resize(stem.size() - 4);
  if (stem.empty() || stem.front() == '.' || stem.size() > 200) stem = "disk" + std::to_string(disk.number);
  const std::string ending = format == "raw" ? ".img" : "." + format;
  std::string name = stem + ending;
  if (!taken.insert(name).second) {
    name = stem + "-" + std::to_string(disk.number) + ending;
    taken.insert(name);
  }
  return name;
}

Result<std::vector<Extent>> read_map(AdminClient& client, const std::string& machine, std::uint64_t epoch,
                                     const Disk& disk) {
  DiskMap map(disk.size);
  AdminClient::StreamRequest request;
  request.path = point_path(machine, exactly(epoch), "/disks/" + std::to_string(disk.number) + "/map");
  TIDEMARK_TRY(client.stream(request, [&](std::span<const std::byte> bytes) { return map.feed(bytes); }));
  return std::move(map).finish();
}

Result<json> begin_manifest(AdminClient& client, const ExportRequest& request, const Point& point) {
  const json machine = TIDEMARK_TRY(client.get(machine_path(request.machine)));
  return json{{"format", kManifestFormat},
              {"machine", request.machine},
              {"machine_id", text_at(machine, "id")},
              {"epoch", point.epoch},
              {"time", text_at(point.answer, "time")},
              {"arrival", text_at(point.answer, "arrival")},
              {"consistency", text_at(point.answer, "consistency")},
              {"image", request.format},
              {"disks", json::array()}};
}

json journal_head(const json& manifest, const Disk& disk, const std::string& base) {
  return {{"format", "tidemark-export-state/1"},
          {"machine_id", manifest["machine_id"]},
          {"epoch", manifest["epoch"]},
          {"time", manifest["time"]},
          {"arrival", manifest["arrival"]},
          {"disk", disk.number},
          {"size", disk.size},
          {"piece", kCopyPiece},
          {"base", base}};
}

namespace {

bool names_directory(const std::string& path) {
  struct stat found{};
  return path.ends_with('/') || (::stat(path.c_str(), &found) == 0 && S_ISDIR(found.st_mode));
}

Result<json> export_disk(AdminClient& client, const ExportRequest& request, const json& manifest, const Disk& disk,
                         const std::string& name, ExportTarget& target, ExportTarget::Kind kind, PointHold& hold,
                         Progress& progress) {
  if (request.format != "raw") {
    const Sha256 digest = TIDEMARK_TRY(convert_disk(client, request.machine, manifest["epoch"].get<std::uint64_t>(),
                                                    disk, request.format, target.file_path(name), hold, progress));
    return json{
        {"disk", disk.number}, {"name", disk.name}, {"file", name}, {"size", disk.size}, {"sha256", to_hex(digest)}};
  }
  CopyJob job{.machine = request.machine,
              .epoch = manifest["epoch"].get<std::uint64_t>(),
              .disk = disk,
              .extents = {},
              .changed = std::nullopt,
              .threads = request.threads};
  job.extents = TIDEMARK_TRY(read_map(client, request.machine, job.epoch, disk));
  const bool to_device = kind == ExportTarget::Kind::device;
  CopyJournal journal = TIDEMARK_TRY(CopyJournal::open(target.journal_path(name),
                                                       journal_head(manifest, disk, to_device ? request.output : ""),
                                                       target.final_path(name)));
  RawImage image =
      to_device ? TIDEMARK_TRY(RawImage::open_device(request.output, disk.size, request.force || journal.resumed()))
                : TIDEMARK_TRY(RawImage::open_file(target.file_path(name), target.final_path(name), disk.size));
  target.begun();
  progress.start(disk.name, disk.size);
  const Sha256 digest = TIDEMARK_TRY(copy_disk(client, job, image, journal, &hold, progress));
  TIDEMARK_TRY(image.sync());
  progress.finish();
  return json{
      {"disk", disk.number}, {"name", disk.name}, {"file", name}, {"size", disk.size}, {"sha256", to_hex(digest)}};
}

// What was begun is worth something: says how to go on with it.
Error can_go_on(Error error, const ExportTarget& target) {
  if (!target.worth_going_on()) return error;
  error.remedy +=
      (error.remedy.empty() ? "" : "; ") +
      ("the same command goes on where this one stopped; to give it up, remove " + target.temporary() + "*");
  return error;
}

}  // namespace

Result<json> export_point(AdminClient& client, const ExportRequest& request, Progress& progress) {
  Point point = TIDEMARK_TRY(read_point(client, request.machine, request.at));
  TIDEMARK_TRY(choose_disk(point, request.machine, request.disk));
  using Kind = ExportTarget::Kind;
  const bool device = is_block_device(request.output);
  if (device && point.disks.size() != 1)
    return fail(Code::invalid_argument, request.output, "one device cannot take several disks",
                "choose one: --disk NAME");
  const Kind kind = device                                                        ? Kind::device
                    : point.disks.size() == 1 && !names_directory(request.output) ? Kind::file
                                                                                  : Kind::directory;
  PointHold hold = TIDEMARK_TRY(PointHold::take(client, request.machine, point));
  json manifest = TIDEMARK_TRY(begin_manifest(client, request, point));
  ExportTarget target = TIDEMARK_TRY(ExportTarget::create(request.output, kind, request.force));
  std::set<std::string> taken = {kManifestName};
  std::vector<std::string> names;
  for (const Disk& disk : point.disks) names.push_back(image_name(disk, request.format, taken));
  target.leave_only(taken);
  for (std::size_t i = 0; i < names.size(); ++i) {
    auto exported = export_disk(client, request, manifest, point.disks[i], names[i], target, kind, hold, progress);
    if (!exported) return std::unexpected(can_go_on(std::move(exported).error(), target));
    manifest["disks"].push_back(*std::move(exported));
  }
  if (kind == Kind::file)
    manifest["disks"][0]["file"] = target.final_path({}).substr(target.final_path({}).rfind('/') + 1);
  if (kind == Kind::device) manifest["disks"][0]["file"] = target.final_path({});
  if (const auto kept = target.keep(manifest); !kept) return std::unexpected(can_go_on(kept.error(), target));
  for (json& disk : manifest["disks"]) disk["file"] = target.final_path(disk["file"].get<std::string>());
  manifest["manifest"] = manifest_path(request.output, kind);
  return manifest;
}

Outcome run_export(Context& context, const ExportRequest& request) {
  Progress progress(context.err, context.terminal && !context.json);
  const auto started = context.clock.monotonic();
  const json manifest = TIDEMARK_TRY(request.changed_since.empty() ? export_point(context.client, request, progress)
                                                                   : update_export(context.client, request, progress));
  if (context.json) return answer(context, manifest);
  const double seconds = std::chrono::duration<double>(context.clock.monotonic() - started).count();
  std::uint64_t total = 0;
  for (const json& disk : manifest["disks"]) {
    const std::uint64_t size = number_at(disk, "size").value_or(0);
    total += size;
    context.out << fmt::format("{}  {}  {}  sha256 {}\n", clean(text_at(disk, "name")), human_size(size),
                               text_at(disk, "file"), text_at(disk, "sha256"));
  }
  if (const auto changed = number_at(manifest, "changed_bytes"))
    context.out << fmt::format("{} had changed and was written, the rest was checked\n", human_size(*changed));
  const auto time = time_at(manifest, "time");
  context.out << fmt::format(
      "{}: epoch {}, the machine as of {}, {}-consistent; {} in {:.1f} s, {}/s; manifest {}\n", clean(request.machine),
      number_at(manifest, "epoch").value_or(0), time ? human_time(*time) : "-", text_at(manifest, "consistency"),
      human_size(total), seconds,
      human_size(static_cast<std::uint64_t>(static_cast<double>(total) / std::max(seconds, 0.001))),
      text_at(manifest, "manifest"));
  return 0;
}

}  // namespace tidemark::cli
