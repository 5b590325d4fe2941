// One disk of a clone, as NBD clients see it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "server/clone_writer.h"
#include "server/nbd_export.h"

namespace tidemark::server {

class CloneDisk final : public NbdExport {
 public:
  CloneDisk(nbd::ExportInfo info, MachineId machine, PartitionHost* host, std::shared_ptr<CloneWriter> writer,
            DiskId disk)
      : NbdExport(std::move(info), machine, host), writer_(std::move(writer)), disk_(disk) {}

  Status read(std::uint64_t offset, std::span<std::byte> to, storage::ReadScratch& scratch,
              std::vector<storage::ByteRange>* zeroes) override {
    return writer_->read(disk_, offset, to, scratch, zeroes);
  }
  void read_many(std::span<storage::DiskRead> reads, storage::ReadScratch& scratch) override {
    writer_->read_many(disk_, reads, scratch);
  }
  storage::AsyncRead::Begun begin(storage::AsyncRead& with, const storage::DiskRead& read,
                                  storage::ReadScratch& scratch, storage::IoQueue& queue,
                                  std::function<void()> done) override {
    auto view = writer_->view_for(disk_, read.offset, read.to.size());
    if (!view) return storage::AsyncRead::Begun::no;
    return with.begin(std::move(view), read, scratch, queue, std::move(done));
  }
  Result<std::vector<storage::ByteRange>> map(std::uint64_t offset, std::uint64_t length) override {
    return writer_->map(disk_, offset, length);
  }
  void prefetch(std::uint64_t offset, std::uint64_t length, storage::ReadScratch& scratch) override {
    writer_->prefetch(disk_, offset, length, scratch);
  }
  void change(NbdChange change) override { writer_->change(disk_, std::move(change)); }
  void flush(std::function<void(Status)> done) override { writer_->flush(std::move(done)); }

 private:
  const std::shared_ptr<CloneWriter> writer_;
  const DiskId disk_;
};

}  // namespace tidemark::server
