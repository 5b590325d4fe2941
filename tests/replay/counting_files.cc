#include "tests/replay/counting_files.h"

namespace tidemark::replay {

namespace {

class CountingFile final : public storage::File {
 public:
  CountingFile(std::unique_ptr<storage::File> under, std::atomic<std::uint64_t>& counter)
      : under_(std::move(under)), counter_(counter) {}
  storage::File& under() { return *under_; }

  Result<std::size_t> read_at(std::uint64_t offset, std::span<std::byte> to) override {
    return under_->read_at(offset, to);
  }
  Status write_at(std::uint64_t offset, std::span<const std::byte> from) override {
    counter_ += from.size();
    return under_->write_at(offset, from);
  }
  Status sync() override { return under_->sync(); }
  Result<std::uint64_t> size() override { return under_->size(); }
  Status allocate(std::uint64_t size) override { return under_->allocate(size); }
  const std::string& path() const override { return under_->path(); }

 private:
  std::unique_ptr<storage::File> under_;
  std::atomic<std::uint64_t>& counter_;
};

}  // namespace

Written CountingFiles::written() const { return {.log = log_, .format = format_, .cold = cold_, .other = other_}; }

storage::File& CountingFiles::inner(storage::File& file) { return static_cast<CountingFile&>(file).under(); }

Result<std::unique_ptr<storage::File>> CountingFiles::open(const std::string& path, storage::OpenMode mode,
                                                           bool direct) {
  auto file = TIDEMARK_TRY(under().open(path, mode, direct));
  const bool in_cold = path.find("/cold/") != std::string::npos && path.find("manifest") == std::string::npos;
  // Whatever is written to the log's directory other than by the queue is a segment being formatted.
  const bool in_log = path.find("/log/") != std::string::npos;
  return std::make_unique<CountingFile>(std::move(file), in_log ? format_ : in_cold ? cold_ : other_);
}

}  // namespace tidemark::replay
