// Bringing an export to another point.
//
// First everything is read once: what the manifest says is there is what is there, or nothing is done. Then the
// manifest says durably that the image is on its way from one point to another, and only then it is written to. When
// that is interrupted, the same command goes on: pieces that the changes touch are fetched whole, the others are
// compared with the digests that the first reading left in the journal.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/hex.h"
#include "cli/diff.h"
#include "cli/export_parts.h"
#include "cli/format.h"

namespace tidemark::cli {
namespace {

using nlohmann::json;

struct DiskUpdate {
  Disk disk;
  json entry;  // of the manifest
  std::string path;
  std::vector<Extent> changed;
  std::unique_ptr<CopyJournal> journal;
};

class Update {
 public:
  Update(AdminClient& client, const ExportRequest& request, Progress& progress)
      : client_(client), request_(request), progress_(progress), kind_(kind_of_existing(request.output)) {
    manifest_path_ = manifest_path(request.output, kind_);
  }

  Result<json> run() {
    if (request_.format != "raw")
      return fail(Code::invalid_argument, request_.format, "only raw images can be brought up to date",
                  "export the whole: leave out --changed-since");
    TIDEMARK_TRY(read_manifest());
    const Point from = TIDEMARK_TRY(read_point(client_, request_.machine, request_.changed_since));
    const Point to = TIDEMARK_TRY(read_point(client_, request_.machine, request_.at));
    json made = TIDEMARK_TRY(begin_manifest(client_, request_, to));
    TIDEMARK_TRY(check_points(from, to, made));
    PointHold base = TIDEMARK_TRY(PointHold::take(client_, request_.machine, from));
    PointHold hold = TIDEMARK_TRY(PointHold::take(client_, request_.machine, to));
    TIDEMARK_TRY(find_disks(to));
    TIDEMARK_TRY(find_changes(from.epoch, to.epoch));
    for (DiskUpdate& disk : disks_) {
      TIDEMARK_TRY(base.renew());
      disk.journal = std::make_unique<CopyJournal>(TIDEMARK_TRY(
          CopyJournal::open(disk_journal(disk), journal_head(made, disk.disk, exactly(from.epoch)), disk.path)));
      if (!resumed_) TIDEMARK_TRY(check_image(disk, hold));
    }
    if (!resumed_) {
      manifest_["updating"] = {{"epoch", to.epoch}, {"time", made["time"]}};
      TIDEMARK_TRY(write_manifest(manifest_path_, manifest_));
    }
    std::uint64_t changed = 0;
    for (DiskUpdate& disk : disks_) {
      disk.entry["sha256"] = to_hex(TIDEMARK_TRY(bring(disk, to.epoch, hold)));
      disk.entry["size"] = disk.disk.size;
      for (const Extent& range : disk.changed) changed += range.length;
      made["disks"].push_back(disk.entry);
    }
    TIDEMARK_TRY(write_manifest(manifest_path_, made));
    for (DiskUpdate& disk : disks_) TIDEMARK_TRY(disk.journal->remove());
    for (std::size_t i = 0; i < disks_.size(); ++i) made["disks"][i]["file"] = disks_[i].path;
    made["manifest"] = manifest_path_;
    made["changed_bytes"] = changed;
    return made;
  }

 private:
  std::unexpected<Error> no_base(std::string what) const {
    return fail(Code::invalid_argument, manifest_path_, std::move(what), "export the whole: leave out --changed-since");
  }

  Status read_manifest() {
    std::ifstream file(manifest_path_);
    if (!file) return no_base("there is no export that could be brought up to date: no manifest");
    manifest_ = json::parse(file, nullptr, false);
    if (text_at(manifest_, "format") != kManifestFormat || array_at(manifest_, "disks").empty())
      return no_base("it is not the manifest of an export");
    if (const auto format = text_at(manifest_, "image"); !format.empty() && format != "raw")
      return no_base("only raw images can be brought up to date, and it is " + format);
    return {};
  }

  Status check_points(const Point& from, const Point& to, const json& made) {
    if (text_at(manifest_, "machine_id") != text_at(made, "machine_id"))
      return no_base("it is an export of another machine: " + text_at(manifest_, "machine"));
    if (number_at(manifest_, "epoch") != from.epoch || text_at(manifest_, "time") != text_at(from.answer, "time"))
      return no_base("it is an export of epoch " + std::to_string(number_at(manifest_, "epoch").value_or(0)) +
                     ", not of epoch " + std::to_string(from.epoch) + " of " + text_at(from.answer, "time"));
    if (from.epoch > to.epoch)
      return fail(Code::invalid_argument, exactly(from.epoch), "is newer than the point to be exported");
    const auto updating = manifest_.find("updating");
    if (updating == manifest_.end()) return {};
    resumed_ = number_at(*updating, "epoch") == to.epoch && text_at(*updating, "time") == text_at(made, "time");
    if (!resumed_)
      return fail(Code::busy, manifest_path_,
                  "it was being brought to epoch " + std::to_string(number_at(*updating, "epoch").value_or(0)) +
                      " when that was interrupted",
                  "end that first: --at epoch:" + std::to_string(number_at(*updating, "epoch").value_or(0)));
    return {};
  }

  Status find_disks(const Point& to) {
    for (const json& entry : array_at(manifest_, "disks")) {
      const auto disk =
          std::ranges::find_if(to.disks, [&](const Disk& one) { return one.number == number_at(entry, "disk"); });
      if (disk == to.disks.end())
        return no_base("the machine has no disk " + text_at(entry, "name") + " any more at the new point");
      // A name of the manifest must not lead elsewhere.
      const std::string file = std::filesystem::path(text_at(entry, "file")).filename().string();
      if (file.empty()) return no_base("it names no file for disk " + text_at(entry, "name"));
      std::string path = request_.output;
      while (path.size() > 1 && path.ends_with('/')) path.pop_back();
      if (kind_ == ExportTarget::Kind::directory) path += "/" + file;
      disks_.push_back({*disk, entry, std::move(path), {}, nullptr});
    }
    if (kind_ == ExportTarget::Kind::directory && request_.disk.empty() && disks_.size() != to.disks.size())
      return no_base("the machine has other disks at the new point");
    return {};
  }

  std::string disk_journal(const DiskUpdate& disk) const {
    const auto path = std::filesystem::path(disk.path);
    const std::string name = "." + path.filename().string() + ".tidemark-update.state";
    return kind_ == ExportTarget::Kind::device ? name : (path.parent_path() / name).string();
  }

  Status find_changes(std::uint64_t from, std::uint64_t to) {
    const DiffRequest diff{
        .machine = request_.machine, .from = exactly(from), .to = exactly(to), .disk = {}, .written = true};
    TIDEMARK_TRY(read_diff(client_, diff, [&](std::uint64_t number, const Extent& range) -> Status {
      for (DiskUpdate& disk : disks_) {
        if (disk.disk.number != number || range.offset >= disk.disk.size) continue;
        Extent kept = range;
        kept.length = std::min(range.length, disk.disk.size - range.offset);
        disk.changed.push_back(kept);
      }
      return {};
    }));
    return {};
  }

  Result<RawImage> open_image(const DiskUpdate& disk, std::uint64_t size) const {
    return kind_ == ExportTarget::Kind::device ? RawImage::open_device(disk.path, size, true)
                                               : RawImage::open_file(disk.path, disk.path, size);
  }

  Status check_image(DiskUpdate& disk, PointHold& hold) {
    TIDEMARK_TRY(disk.journal->restart());
    const std::uint64_t size = number_at(disk.entry, "size").value_or(0);
    std::error_code error;
    if (kind_ != ExportTarget::Kind::device && std::filesystem::file_size(disk.path, error) != size)
      return no_base(disk.path + " is not as long as it says");
    const RawImage image = TIDEMARK_TRY(open_image(disk, size));
    progress_.start("checking " + disk.disk.name, size);
    const Sha256 found =
        TIDEMARK_TRY(digest_image(client_, image, size, disk.changed, *disk.journal, &hold, progress_));
    progress_.finish();
    if (to_hex(found) != text_at(disk.entry, "sha256"))
      return no_base(disk.path + " was changed since it was exported: its SHA-256 is not the one that stands there");
    return {};
  }

  Result<Sha256> bring(DiskUpdate& disk, std::uint64_t epoch, PointHold& hold) {
    CopyJob job{.machine = request_.machine,
                .epoch = epoch,
                .disk = disk.disk,
                .extents = TIDEMARK_TRY(read_map(client_, request_.machine, epoch, disk.disk)),
                .changed = std::nullopt,
                .threads = request_.threads};
    if (!resumed_) job.changed = disk.changed;
    RawImage image = TIDEMARK_TRY(open_image(disk, disk.disk.size));
    progress_.start(disk.disk.name, disk.disk.size);
    const Sha256 digest = TIDEMARK_TRY(copy_disk(client_, job, image, *disk.journal, &hold, progress_));
    TIDEMARK_TRY(image.sync());
    progress_.finish();
    return digest;
  }

  AdminClient& client_;
  const ExportRequest& request_;
  Progress& progress_;
  const ExportTarget::Kind kind_;
  std::string manifest_path_;
  json manifest_;
  bool resumed_ = false;
  std::vector<DiskUpdate> disks_;
};

}  // namespace

Result<json> update_export(AdminClient& client, const ExportRequest& request, Progress& progress) {
  return Update(client, request, progress).run();
}

}  // namespace tidemark::cli
