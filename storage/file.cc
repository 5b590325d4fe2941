#include "storage/file.h"

namespace tidemark::storage {

Status write_file_atomically(FileSystem& files, const std::string& path, std::span<const std::byte> content) {
  const std::string temporary = path + ".tmp";
  if (TIDEMARK_TRY(files.exists(temporary))) TIDEMARK_TRY(files.remove(temporary));  // of a crash in the middle
  {
    const auto file = TIDEMARK_TRY(files.open(temporary, OpenMode::create, false));
    TIDEMARK_TRY(file->write_at(0, content));
    TIDEMARK_TRY(file->sync());
  }
  TIDEMARK_TRY(files.rename(temporary, path));
  const std::size_t slash = path.rfind('/');
  return files.sync_directory(slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash));
}

Result<std::vector<std::byte>> read_whole_file(FileSystem& files, const std::string& path, std::size_t size_max) {
  const auto file = TIDEMARK_TRY(files.open(path, OpenMode::read, false));
  const std::uint64_t size = TIDEMARK_TRY(file->size());
  if (size > size_max)
    return fail(Code::corrupt, path,
                "is " + std::to_string(size) + " bytes long, at most " + std::to_string(size_max) + " make sense");
  std::vector<std::byte> content(size);
  content.resize(TIDEMARK_TRY(file->read_at(0, content)));
  return content;
}

}  // namespace tidemark::storage
