#include "agent/consistency.h"

#include <algorithm>

namespace tidemark::agent {
namespace {

Decision fuzzy(const DiskEvidence& disk, const std::string& why, std::string remedy, bool freeze_would_help = false) {
  std::string reason = disk.disk + ": " + why;
  if (!disk.detail.empty()) reason += ", " + disk.detail;
  return {Consistency::fuzzy, std::move(reason), std::move(remedy), freeze_would_help};
}

Decision decide_file(const DiskEvidence& file) {
  if (file.lease_held) return {Consistency::filesystem, {}, {}, false};
  if (file.lease_refused) {
    return fuzzy(file, "open for writing while it was read",
                 "close its writers during a sync; for the file of a loop device protect the loop device instead");
  }
  if (!file.times_unchanged) return fuzzy(file, "changed while it was read", "it becomes a point once the file rests");
  if (file.writer_seen) return fuzzy(file, "may be open for writing", "close its writers during a sync");
  return {Consistency::crash, {}, {}, false};
}

Decision decide_device(const DiskEvidence& device) {
  if (!device.counted) return fuzzy(device, "it cannot be told whether it changed while it was read", "");
  if (!device.unchanged) {
    const bool helps = device.mounted && !device.frozen;
    return fuzzy(device,
                 device.frozen ? "written to although its file systems were frozen" : "written to while it was read",
                 helps ? "a freeze makes it a point: see freeze in agent.toml, or unmount it"
                       : "stop what writes to the device past a file system",
                 helps);
  }
  return {device.claimable || device.frozen ? Consistency::filesystem : Consistency::crash, {}, {}, false};
}

}  // namespace

std::string_view to_string(Consistency consistency) {
  switch (consistency) {
    case Consistency::fuzzy: return "fuzzy";
    case Consistency::crash: return "crash";
    case Consistency::filesystem: return "filesystem";
    case Consistency::application: return "application";
  }
  return "unknown";
}

Decision decide(const std::vector<DiskEvidence>& disks) {
  if (disks.empty()) return {Consistency::fuzzy, "no disk was read", "", false};
  Decision all{Consistency::filesystem, {}, {}, true};
  for (const DiskEvidence& disk : disks) {
    Decision one = disk.is_file ? decide_file(disk) : decide_device(disk);
    if (one.consistency == Consistency::fuzzy) {
      // A freeze helps only when it mends every disk that spoils the point; the first one that it cannot mend is named.
      const bool name_it = all.consistency != Consistency::fuzzy || (all.freeze_would_help && !one.freeze_would_help);
      const bool helps = all.freeze_would_help && one.freeze_would_help;
      if (name_it) all = std::move(one);
      all.consistency = Consistency::fuzzy;
      all.freeze_would_help = helps;
    } else {
      all.consistency = std::min(all.consistency, one.consistency);
    }
  }
  if (all.consistency != Consistency::fuzzy) all.freeze_would_help = false;
  return all;
}

}  // namespace tidemark::agent
