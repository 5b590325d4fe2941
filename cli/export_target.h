// Where an export ends up. Everything is written under a temporary name beside the final one, made durable, and only
// then renamed: under the final name there is either what was there before or the whole export. What an export that did
// not end has written stays under the temporary name, which is always the same, so that the next one goes on with it. A
// block device has no other name: what tells that it is whole is its manifest.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <string_view>

#include "base/status.h"

namespace tidemark::cli {

class ExportTarget {
 public:
  enum class Kind : std::uint8_t { file, directory, device };
  // Checks that `path` is free (an empty directory counts as free for a directory), or with `force` that it may be
  // replaced: a regular file, or a directory that holds an earlier export and nothing else. Of a device nothing is
  // checked here.
  static Result<ExportTarget> create(const std::string& path, Kind kind, bool force);
  ExportTarget(ExportTarget&& other) noexcept;
  ExportTarget& operator=(ExportTarget&&) = delete;
  ~ExportTarget();  // removes the temporary, unless it was kept or is to be gone on with

  // Of a directory: removes what an earlier run left and is none of these files.
  void leave_only(const std::set<std::string>& names);
  // From now on what is there is worth to be gone on with.
  void begun() { begun_ = true; }
  bool worth_going_on() const { return begun_ && !kept_; }
  const std::string& temporary() const { return temporary_; }

  // Where to write: the temporary file itself, or a file of this name in the temporary directory.
  std::string file_path(const std::string& name) const;
  std::string journal_path(const std::string& name) const;
  // Where that will be in the end.
  std::string final_path(const std::string& name) const;
  // Writes the manifest and moves everything to its final name, durably.
  Status keep(const nlohmann::json& manifest);

 private:
  ExportTarget(std::string path, std::string temporary, Kind kind, bool force);
  Status replace();

  std::string path_;
  std::string temporary_;
  Kind kind_;
  bool force_;
  bool begun_ = false;
  bool kept_ = false;
};

// Beside a file; in a directory; of a device, in the working directory.
std::string manifest_path(const std::string& output, ExportTarget::Kind kind);
ExportTarget::Kind kind_of_existing(const std::string& output);
// Replaces what is there, durably: under the name there is the old one or the new one.
Status write_manifest(const std::string& path, const nlohmann::json& manifest);

inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kManifestFormat[] = "tidemark-export/1";

}  // namespace tidemark::cli
