// The production side of the file seam: the kernel's files. Thread-safe as the seam asks.
#pragma once

#include "storage/file.h"

namespace tidemark::storage {

// A file with the descriptor that the ring needs.
class SystemFile final : public File {
 public:
  SystemFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~SystemFile() override;
  SystemFile(const SystemFile&) = delete;
  SystemFile& operator=(const SystemFile&) = delete;

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> to) override;
  Status write_at(std::uint64_t offset, std::span<const std::byte> from) override;
  Status sync() override;  // fdatasync: the data, and the size if it changed
  Result<std::uint64_t> size() override;
  Status allocate(std::uint64_t size) override;
  const std::string& path() const override { return path_; }
  int fd() const { return fd_; }

 private:
  std::string path_;
  int fd_;
};

// The one there is. A file system without direct I/O is served through its cache (logged once): slower, and as durable.
FileSystem& system_files();

}  // namespace tidemark::storage
