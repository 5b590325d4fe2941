// The real file system and the real ring, with every byte counted that is written through them: by what it is for.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "storage/file.h"
#include "tests/sim/forwarding_files.h"

namespace tidemark::replay {

struct Written {
  std::uint64_t log = 0;     // commits and segment headers
  std::uint64_t format = 0;  // zeroes, so that segments are written before they are used
  std::uint64_t cold = 0;    // settling and compaction
  std::uint64_t other = 0;   // manifest, released, superblock
  std::uint64_t total() const { return log + format + cold + other; }
};

class CountingFiles final : public sim::ForwardingFiles {
 public:
  using ForwardingFiles::ForwardingFiles;

  Written written() const;
  // What `under` must be given for a file that this one opened.
  static storage::File& inner(storage::File& file);
  void count_log(std::uint64_t bytes) { log_ += bytes; }

  Result<std::unique_ptr<storage::File>> open(const std::string& path, storage::OpenMode mode, bool direct) override;

 private:
  std::atomic<std::uint64_t> log_{0}, format_{0}, cold_{0}, other_{0};
};

class CountingQueue final : public storage::IoQueue {
 public:
  CountingQueue(std::unique_ptr<storage::IoQueue> under, CountingFiles& files)
      : under_(std::move(under)), files_(files) {}
  void write_durable(storage::File& file, std::uint64_t offset, std::span<const std::byte> from,
                     storage::IoCompletion& done) override {
    files_.count_log(from.size());
    under_->write_durable(CountingFiles::inner(file), offset, from, done);
  }
  void read(storage::File& file, std::uint64_t offset, std::span<std::byte> to, storage::IoCompletion& done) override {
    under_->read(CountingFiles::inner(file), offset, to, done);
  }
  void submit() override { under_->submit(); }
  std::size_t reap() override { return under_->reap(); }
  std::size_t in_flight() const override { return under_->in_flight(); }
  int event_fd() const override { return under_->event_fd(); }
  std::size_t wait(std::size_t least = 1) override { return under_->wait(least); }

 private:
  std::unique_ptr<storage::IoQueue> under_;
  CountingFiles& files_;
};

}  // namespace tidemark::replay
