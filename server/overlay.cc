#include "server/overlay.h"

#include <algorithm>
#include <utility>

namespace tidemark::server {

namespace {

Overlay::Run cut(Overlay::Run run, std::uint64_t first, std::uint64_t end) {
  const std::uint64_t from = std::max(first, run.first), to = std::min(end, run.first + run.granules);
  run.offset += from - run.first;
  run.first = from;
  run.granules = to - from;
  return run;
}

}  // namespace

void Overlay::put(Run run) {
  const std::uint64_t end = run.first + run.granules;
  auto at = runs_.upper_bound(run.first);
  if (at != runs_.begin() && std::prev(at)->second.first + std::prev(at)->second.granules > run.first) --at;
  while (at != runs_.end() && at->first < end) {
    const Run old = std::move(at->second);
    at = runs_.erase(at);
    if (old.first < run.first) runs_[old.first] = cut(old, old.first, run.first);
    if (old.first + old.granules > end) at = runs_.emplace(end, cut(old, end, old.first + old.granules)).first;
  }
  runs_[run.first] = std::move(run);
}

std::vector<Overlay::Run> Overlay::find(std::uint64_t first, std::uint64_t granules) const {
  std::vector<Run> found;
  auto at = runs_.upper_bound(first);
  if (at != runs_.begin() && std::prev(at)->second.first + std::prev(at)->second.granules > first) --at;
  for (; at != runs_.end() && at->first < first + granules; ++at)
    found.push_back(cut(at->second, first, first + granules));
  return found;
}

void Overlay::drop_until(EpochNumber epoch) {
  std::erase_if(runs_, [&](const auto& one) { return one.second.epoch <= epoch; });
}

}  // namespace tidemark::server
