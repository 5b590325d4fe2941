// The files an export makes. Everything is written under a temporary name beside its final place, made durable, and
// only then renamed: under the final name there is either what was there before or the whole export. A temporary that
// was not kept is removed when its object dies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/crypto.h"
#include "base/status.h"

namespace tidemark::cli {

// One raw disk image, written from front to back. Pages of zeroes become holes. Belongs to one thread.
class ImageFile {
 public:
  // Makes the file at `path`, which must not exist; errors call it `shown`.
  static Result<ImageFile> create(const std::string& path, std::string shown, std::uint64_t size);
  ImageFile(ImageFile&& other) noexcept;
  ImageFile& operator=(ImageFile&&) = delete;
  ~ImageFile();  // closes; removes nothing

  Status append(std::span<const std::byte> bytes);
  Status append_zeroes(std::uint64_t count);
  std::uint64_t position() const { return position_ + buffer_.size(); }
  // Durable when it returns. Fails unless exactly `size` bytes were appended. The SHA-256 of all of them.
  Result<Sha256> finish();

 private:
  ImageFile(std::string shown, int fd, std::uint64_t size);
  Status flush();

  std::string shown_;
  int fd_;
  std::uint64_t size_;
  std::uint64_t position_ = 0;  // of the buffer's first byte
  std::vector<std::byte> buffer_;
  Sha256Stream hash_;
};

// Where an export ends up: a file, or a directory of files.
class ExportTarget {
 public:
  enum class Kind : std::uint8_t { file, directory };
  // Checks that `path` is free (an empty directory counts as free for a directory), or with `force` that it may be
  // replaced: a regular file, or a directory that holds an earlier export and nothing else. Makes the temporary.
  static Result<ExportTarget> create(const std::string& path, Kind kind, bool force);
  ExportTarget(ExportTarget&& other) noexcept;
  ExportTarget& operator=(ExportTarget&&) = delete;
  ~ExportTarget();  // removes the temporary, if it was not kept

  // Where to write: the temporary file itself, or a file of this name in the temporary directory.
  std::string file_path(const std::string& name) const;
  // Where that will be in the end.
  std::string final_path(const std::string& name) const;
  // Moves it to its final name, durably.
  Status keep();

 private:
  ExportTarget(std::string path, std::string temporary, Kind kind, bool force);
  Status replace();

  std::string path_;
  std::string temporary_;
  Kind kind_;
  bool force_;
  bool kept_ = false;
};

Status write_small_file(const std::string& path, const std::string& shown, std::string_view content);  // new, durable

inline constexpr char kManifestName[] = "manifest.json";
inline constexpr char kManifestFormat[] = "tidemark-export/1";

}  // namespace tidemark::cli
