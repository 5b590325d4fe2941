#include "agent/source_set.h"

#include <map>

namespace tidemark::agent {

Status SourceSet::refresh() {
  if (paths_.empty()) {
    return fail(Code::invalid_argument, "agent", "no disk is protected", "name some: tidemark-agent protect PATH...");
  }
  sources_.resize(paths_.size());
  names_ = disk_names(paths_);
  std::map<std::string, std::string> seen;
  for (std::size_t i = 0; i < paths_.size(); ++i) {
    if (sources_[i] && !sources_[i]->check()) sources_[i].reset();
    if (!sources_[i]) {
      sources_[i] = TIDEMARK_TRY(open_source(paths_[i], os_));
      ++generation_;
    }
    const auto [other, fresh] = seen.emplace(sources_[i]->identity(), paths_[i]);
    if (!fresh) {
      return fail(Code::invalid_argument, paths_[i], "the same disk as " + other->second,
                  "take one of them off the list: tidemark-agent unprotect");
    }
  }
  return {};
}

Status SourceSet::check() {
  for (const auto& source : sources_) TIDEMARK_TRY(source->check());
  return {};
}

std::uint64_t SourceSet::total_bytes() const {
  std::uint64_t total = 0;
  for (const auto& source : sources_) total += source->size();
  return total;
}

}  // namespace tidemark::agent
