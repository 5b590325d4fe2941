// A file system that hands everything on, for those that change one thing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "storage/file.h"

namespace tidemark::sim {

class ForwardingFiles : public storage::FileSystem {
 public:
  explicit ForwardingFiles(storage::FileSystem& under) : under_(under) {}

  Result<std::unique_ptr<storage::File>> open(const std::string& path, storage::OpenMode mode, bool direct) override {
    return under_.open(path, mode, direct);
  }
  Status rename(const std::string& from, const std::string& to) override { return under_.rename(from, to); }
  Status remove(const std::string& path) override { return under_.remove(path); }
  Status make_directory(const std::string& path) override { return under_.make_directory(path); }
  Result<std::vector<std::string>> list(const std::string& directory) override { return under_.list(directory); }
  Status sync_directory(const std::string& path) override { return under_.sync_directory(path); }
  Result<bool> exists(const std::string& path) override { return under_.exists(path); }
  Result<storage::SpaceInfo> space(const std::string& path) override { return under_.space(path); }
  Result<std::unique_ptr<storage::FileLock>> lock(const std::string& path) override { return under_.lock(path); }

 protected:
  storage::FileSystem& under() { return under_; }

 private:
  storage::FileSystem& under_;
};

}  // namespace tidemark::sim
