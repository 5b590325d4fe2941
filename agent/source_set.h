// The protected disks, open. Belongs to the engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "agent/source.h"
#include "base/status.h"

namespace tidemark::agent {

class SourceSet {
 public:
  explicit SourceSet(std::vector<std::string> paths, OsPaths os = {}) : paths_(std::move(paths)), os_(std::move(os)) {}

  // Opens what is not open and what is no longer what it was. An error names the first disk that cannot be had; the
  // others stay open. Two paths of one disk are refused.
  Status refresh();
  // All are still what they were when opened.
  Status check();

  std::size_t size() const { return paths_.size(); }
  BlockSource& operator[](std::size_t i) { return *sources_[i]; }
  const std::string& name(std::size_t i) const { return names_[i]; }
  std::uint64_t total_bytes() const;
  // Counts up whenever a disk was opened anew.
  std::uint64_t generation() const { return generation_; }

 private:
  std::vector<std::string> paths_;
  OsPaths os_;
  std::vector<std::unique_ptr<BlockSource>> sources_;
  std::vector<std::string> names_;
  std::uint64_t generation_ = 0;
};

}  // namespace tidemark::agent
