// What an NBD client reads and writes: a disk at a recovery point, or a disk of a clone (server/clone_disk.h). One
// object for all clients of it, so that what one has flushed the others see, on any of their connections.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "nbd/handshake.h"
#include "server/nbd_memory.h"
#include "storage/disk_view.h"
#include "storage/partition.h"

namespace tidemark::server {

class PartitionHost;

// One change of a disk. `done` is called once, on any thread.
struct NbdChange {
  enum class Kind : std::uint8_t { write, zero, trim } kind = Kind::write;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::shared_ptr<NbdBuffer> data;  // of a write
  bool durable = false;             // done means durable
  std::function<void(Status)> done;
};

class NbdExport {
 public:
  NbdExport(nbd::ExportInfo info, MachineId machine, PartitionHost* host)
      : info_(std::move(info)), machine_(machine), host_(host) {}
  virtual ~NbdExport() = default;
  NbdExport(const NbdExport&) = delete;
  NbdExport& operator=(const NbdExport&) = delete;

  const nbd::ExportInfo& info() const { return info_; }
  const MachineId& machine() const { return machine_; }
  Status serving() const;  // its partition does; any thread

  // --- blocking: on a worker ---
  // As DiskView::read and map.
  virtual Status read(std::uint64_t offset, std::span<std::byte> to, storage::ReadScratch& scratch,
                      std::vector<storage::ByteRange>* zeroes) = 0;
  // As DiskView::read_many.
  virtual void read_many(std::span<storage::DiskRead> reads, storage::ReadScratch& scratch) = 0;
  virtual Result<std::vector<storage::ByteRange>> map(std::uint64_t offset, std::uint64_t length) = 0;
  virtual void prefetch(std::uint64_t offset, std::uint64_t length, storage::ReadScratch& scratch) = 0;

  // --- on a shard's thread ---
  // As AsyncRead::begin.
  virtual storage::AsyncRead::Begun begin(storage::AsyncRead& with, const storage::DiskRead& read,
                                          storage::ReadScratch& scratch, storage::IoQueue& queue,
                                          std::function<void()> done) = 0;

  // --- any thread; only of writable ones ---
  virtual void change(NbdChange) {}  // NOLINT(performance-unnecessary-value-param): writable ones move it on
  // Everything whose change was done before this call is durable when `done` is told well.
  virtual void flush(std::function<void(Status)> done) { done({}); }

 private:
  const nbd::ExportInfo info_;
  const MachineId machine_;
  PartitionHost* const host_;
};

class PointExport final : public NbdExport {
 public:
  PointExport(nbd::ExportInfo info, MachineId machine, PartitionHost* host,
              std::shared_ptr<storage::Partition> partition, std::shared_ptr<const storage::DiskView> view)
      : NbdExport(std::move(info), machine, host), partition_(std::move(partition)), view_(std::move(view)) {}

  Status read(std::uint64_t offset, std::span<std::byte> to, storage::ReadScratch& scratch,
              std::vector<storage::ByteRange>* zeroes) override {
    return view_->read(offset, to, scratch, zeroes);
  }
  void read_many(std::span<storage::DiskRead> reads, storage::ReadScratch& scratch) override {
    view_->read_many(reads, scratch);
  }
  storage::AsyncRead::Begun begin(storage::AsyncRead& with, const storage::DiskRead& read,
                                  storage::ReadScratch& scratch, storage::IoQueue& queue,
                                  std::function<void()> done) override {
    return with.begin(view_, read, scratch, queue, std::move(done));
  }
  Result<std::vector<storage::ByteRange>> map(std::uint64_t offset, std::uint64_t length) override {
    return view_->map(offset, length);
  }
  void prefetch(std::uint64_t offset, std::uint64_t length, storage::ReadScratch& scratch) override {
    static_cast<void>(view_->prefetch(offset, length, scratch));  // who reads the damage is told of it
  }

 private:
  const std::shared_ptr<storage::Partition> partition_;  // cannot be opened again meanwhile
  const std::shared_ptr<const storage::DiskView> view_;
};

}  // namespace tidemark::server
