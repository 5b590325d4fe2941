// From the name of an export to the export. On the node's workers.
#include <charconv>

#include "nbd/export_name.h"
#include "server/admin_routes.h"
#include "server/clone_disk.h"
#include "server/nbd_service.h"
#include "storage/epoch_progress.h"

namespace tidemark::server {

namespace {

constexpr char kPrefix[] = "clone:";

std::string bare(const std::string& name) { return name.starts_with(kPrefix) ? name.substr(sizeof kPrefix - 1) : name; }

std::string owner_of(const MachineReport& report) {
  return report.is_clone ? "clone/" + bare(report.name) : report.name;
}

// As the admin API takes it, and diskN.
Result<DiskReport> disk_of(const MachineReport& report, const storage::pb::EpochEntry& point, const std::string& text) {
  auto found = find_disk(report.disks, point, text);
  if (!found && text.starts_with("disk") && text.size() > 4)
    if (auto numbered = find_disk(report.disks, point, text.substr(4))) return numbered;
  return found;
}

std::string disk_name(const DiskReport& disk) {
  return disk.name.empty() ? "disk" + std::to_string(disk.disk) : disk.name;
}

}  // namespace

Result<std::shared_ptr<NbdExport>> NbdService::open(const std::string& name, const NbdOrigin& origin) {
  nbd::ExportName wanted{.clone = true, .owner = origin.clone, .disk = "0", .at = {}};
  if (origin.clone.empty() && name.empty())
    return fail(Code::not_found, "the default export", "this socket has none",
                "ask for a name; `nbdinfo --list` shows them");
  if (!name.empty()) {
    // On a clone's own socket its disks go by themselves as well.
    const bool whole = origin.clone.empty() || name.starts_with("clone/");
    wanted = TIDEMARK_TRY(nbd::parse_export_name(whole ? name : "clone/" + origin.clone + "/" + name));
    if (!origin.clone.empty() && (!wanted.clone || wanted.owner != origin.clone))
      return fail(Code::not_found, name, "this socket serves the clone " + origin.clone + " alone");
  }
  const auto place = TIDEMARK_TRY(find_place(node_, wanted.clone ? kPrefix + bare(wanted.owner) : wanted.owner));
  const auto report = TIDEMARK_TRY(find_report(place));
  const auto point = TIDEMARK_TRY(find_point(node_, place, wanted.clone ? "latest" : wanted.at));
  const auto disk = TIDEMARK_TRY(disk_of(report, point, wanted.disk));
  const EpochNumber epoch(wanted.clone ? 0 : point.number());

  const std::lock_guard one_at_a_time(opening_);
  const Key key(place.id, DiskId(disk.disk), epoch);
  {
    const std::lock_guard lock(mutex_);
    if (dropping_.contains(place.id)) return fail(Code::not_found, name, "it is being dropped");
    std::erase_if(open_, [](const auto& one) { return one.second.expired(); });
    if (const auto found = open_.find(key); found != open_.end())
      if (auto same = found->second.lock(); same && same->serving()) return same;
  }
  nbd::ExportInfo info{.size = disk.size, .read_only = true, .name = {}, .description = {}};
  info.name =
      owner_of(report) + "/" + disk_name(disk) + (report.is_clone ? "" : "@epoch:" + std::to_string(point.number()));
  info.description = report.is_clone ? "clone " + bare(report.name) + ", disk " + std::to_string(disk.disk)
                                     : "machine " + report.name + ", disk " + std::to_string(disk.disk) +
                                           ", recovery point of " + format_rfc3339(point.time_us());
  std::shared_ptr<NbdExport> opened;
  if (report.is_clone) {
    std::shared_ptr<CloneWriter> writer;
    {
      const std::lock_guard lock(mutex_);
      std::erase_if(writers_, [](const auto& one) { return one.second.expired(); });
      if (const auto known = writers_.find(place.id); known != writers_.end()) writer = known->second.lock();
    }
    if (!writer || writer->broken())
      writer = TIDEMARK_TRY(
          CloneWriter::open(*this, {place.shard, place.host, place.partition, place.id, bare(report.name)}));
    TIDEMARK_TRY(writer->open_disk(DiskId(disk.disk)));
    info.read_only = false;
    opened = std::make_shared<CloneDisk>(std::move(info), place.id, place.host, writer, DiskId(disk.disk));
    const std::lock_guard lock(mutex_);
    writers_[place.id] = writer;
  } else {
    auto view = TIDEMARK_TRY(
        place.partition->view(place.id, DiskId(disk.disk), EpochNumber(point.number()), kIndexTimeout, cache_));
    opened = std::make_shared<PointExport>(std::move(info), place.id, place.host, place.partition, std::move(view));
  }
  const std::lock_guard lock(mutex_);
  open_[key] = opened;
  return opened;
}

Result<std::vector<nbd::ListedExport>> NbdService::names(const NbdOrigin& origin) {
  std::vector<nbd::ListedExport> list;
  for (const auto& shard : node_.shards) {
    auto some = TIDEMARK_TRY(shard->call([shard = shard.get(), &origin] {
      std::vector<nbd::ListedExport> names;
      const auto add = [&](PartitionHost& host, const storage::MachineState& state) {
        if (state.record.removed() || names.size() >= kListMax) return;
        const bool clone = state.record.has_clone();
        if (!clone && state.newest_point.value() == 0) return;
        if (!origin.clone.empty() && state.record.name() != kPrefix + origin.clone) return;
        const auto report = host.report(state);
        for (const auto& disk : report.disks) {
          if (disk.size == 0) continue;
          names.push_back({owner_of(report) + "/" + disk_name(disk) + (clone ? "" : "@latest"),
                           clone ? "writable clone" : "newest point, of " + format_rfc3339(report.newest_point_us)});
        }
      };
      for (const auto& host : shard->hosts()) {
        if (host->partition() == nullptr) continue;
        host->partition()->for_each_machine([&](const auto& state) { add(*host, state); });
        host->partition()->for_each_clone([&](const auto& state) { add(*host, state); });
      }
      return names;
    }));
    for (auto& one : some)
      if (list.size() < kListMax) list.push_back(std::move(one));
  }
  return list;
}

}  // namespace tidemark::server
