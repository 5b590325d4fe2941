#include "agent/choose_tracker.h"

#include <spdlog/spdlog.h>

#include "agent/ebpf_tracker.h"

namespace tidemark::agent {
namespace {

Result<std::unique_ptr<Tracker>> by_kernel(const Config& config, const MachineId& machine, const std::string& boot_id,
                                           SourceSet& sources, const Clock& clock) {
  std::vector<TrackedDisk> disks;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    disks.push_back(
        TIDEMARK_TRY(describe_tracked(OsPaths{}, sources[i].path(), sources[i].identity(), sources[i].size())));
  }
  auto marks = TIDEMARK_TRY(KernelMarks::open(pins_of(config, machine), disks, boot_id));
  spdlog::info("tracking=ebpf {}", marks->adopted() ? "goes on" : "begins: " + marks->why_new());
  return std::make_unique<EbpfTracker>(std::move(marks), clock);
}

// Nobody goes by them any more, and they cost each write a little.
void remove_marks(const std::filesystem::path& pins) {
  std::error_code error;
  if (!std::filesystem::exists(pins, error)) return;
  const auto removed = KernelMarks::unpin(pins);
  spdlog::info("the kernel's marks of before are {}", removed ? "removed" : "left: " + removed.error().message());
}

}  // namespace

std::filesystem::path pins_of(const Config& config, const MachineId& machine) {
  return std::filesystem::path(config.bpffs) / ("tidemark-" + machine.to_string());
}

Result<ChosenTracker> choose_tracker(const Config& config, const MachineId& machine, const std::string& boot_id,
                                     SourceSet& sources, bool once, const Clock& clock) {
  std::string why = "the configuration says so";
  bool again = false;
  if (config.tracking != Tracking::digests) {
    std::error_code error;
    if (config.tracking == Tracking::automatic && once && !std::filesystem::exists(pins_of(config, machine), error)) {
      why = "a single sync leaves nothing in the kernel";
    } else {
      auto tracker = by_kernel(config, machine, boot_id, sources, clock);
      if (tracker) return ChosenTracker{std::move(*tracker), {}, false};
      if (config.tracking == Tracking::ebpf) return std::unexpected(std::move(tracker).error());
      why = tracker.error().message();
      again = true;
    }
  }
  spdlog::info("tracking=digests why=\"{}\"", why);
  remove_marks(pins_of(config, machine));
  return ChosenTracker{std::make_unique<DigestComparison>(), why, again};
}

}  // namespace tidemark::agent
