// Commits made by hand, and a directory on the real file system: what tests of the index need.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "storage/epoch_progress.h"
#include "storage/index.h"

namespace tidemark::storage::fixtures {

// In memory, unless TMPDIR says where.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tidemark-test-XXXXXX").string();
    if (std::getenv("TMPDIR") == nullptr && std::filesystem::exists("/dev/shm"))
      pattern = "/dev/shm/tidemark-test-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;  // nothing is left to tell it to
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline MachineId machine_id(unsigned number) {
  std::array<std::byte, 16> bytes{};
  bytes[0] = static_cast<std::byte>(number);
  bytes[15] = std::byte{0x5a};
  return MachineId(bytes);
}

inline pb::MachineRecord machine_record(unsigned number, std::uint32_t disks, std::uint64_t size,
                                        std::uint32_t first_volume) {
  pb::MachineRecord record;
  record.set_machine(machine_to_bytes(machine_id(number)));
  record.set_name("m" + std::to_string(number));
  for (std::uint32_t i = 0; i < disks; ++i) {
    pb::DiskRecord* disk = record.add_disks();
    disk->set_disk(i);
    disk->set_volume(first_volume + i);
    disk->set_size(size);
    disk->set_name("vd" + std::to_string(i));
  }
  return record;
}

// Lays records out as the log would.
class CommitMaker {
 public:
  explicit CommitMaker(std::uint64_t segment_size = 64 << 20) : segment_size_(segment_size) { start(); }

  template <typename Message>
  Lsn control(RecordType type, const MachineId& machine, const Message& message) {
    if constexpr (std::is_same_v<Message, pb::EpochBeginRecord>) open_[machine] = EpochNumber(message.number());
    RecordInfo& record = add(type, machine);
    message.SerializeToString(&record.control);
    offset_ += record.control.size();
    return record.lsn;
  }
  Lsn machine(const pb::MachineRecord& record) {
    return control(RecordType::machine, *machine_from_bytes(record.machine()), record);
  }
  Lsn begin(const MachineId& machine, std::uint64_t number, std::uint64_t size = 0, std::uint32_t disks = 1,
            std::uint32_t kind = 2) {
    pb::EpochBeginRecord begin;
    begin.set_number(number);
    begin.set_kind(kind);
    for (std::uint32_t i = 0; i < disks && size != 0; ++i) {
      pb::DiskSizeRecord* disk = begin.add_disks();
      disk->set_disk(i);
      disk->set_size(size);
    }
    return control(RecordType::epoch_begin, machine, begin);
  }
  Lsn commit_epoch(const MachineId& machine, std::uint64_t number, std::uint32_t consistency = 2,
                   std::int64_t time_us = 0) {
    pb::EpochCommitRecord commit;
    commit.set_number(number);
    commit.set_consistency(consistency);
    commit.set_time_us(time_us);
    return control(RecordType::epoch_commit, machine, commit);
  }
  Lsn abort_epoch(const MachineId& machine, std::uint64_t number) {
    pb::EpochAbortRecord abort;
    abort.set_number(number);
    return control(RecordType::epoch_abort, machine, abort);
  }
  struct Block {
    std::uint64_t first;
    std::uint32_t count;
    wire::Encoding encoding = wire::Encoding::raw;
  };
  Lsn blocks(const MachineId& machine, DiskId disk, const std::vector<Block>& blocks) {
    RecordInfo& record = add(RecordType::blocks, machine);
    record.disk = disk;
    record.epoch = open_[machine];
    record.first_block = static_cast<std::uint32_t>(commit_.blocks.size());
    record.block_count = static_cast<std::uint32_t>(blocks.size());
    for (const Block& block : blocks) {
      const std::uint32_t stored = block.encoding == wire::Encoding::zero  ? 0
                                   : block.encoding == wire::Encoding::raw ? block.count * 4096
                                                                           : block.count * 2000;
      commit_.blocks.push_back({.first_granule = block.first,
                                .granules = block.count,
                                .stored_size = stored,
                                .offset = static_cast<std::uint32_t>(offset_),
                                .encoding = block.encoding});
      offset_ += 48 + stored;
      record.sum += Hash128{1, 2};
    }
    return record.lsn;
  }

  // Ends the commit; the next one follows.
  CommitInfo take() {
    commit_.last_lsn = Lsn(next_lsn_ - 1);
    offset_ = (offset_ + 4095) / 4096 * 4096;
    commit_.size = static_cast<std::uint32_t>(offset_ - commit_.offset);
    commit_.checksum = ++checksum_;
    CommitInfo taken = std::move(commit_);
    if (offset_ + (4 << 20) > segment_size_) {
      segment_ = segment_.next();
      offset_ = 4096;
    }
    start();
    return taken;
  }
  void next_segment() {
    segment_ = segment_.next();
    offset_ = 4096;
    start();
  }
  SegmentId segment() const { return segment_; }

 private:
  void start() {
    commit_ = CommitInfo();
    commit_.segment = segment_;
    commit_.offset = offset_;
    commit_.first_lsn = Lsn(next_lsn_);
    offset_ += 4096;
  }
  RecordInfo& add(RecordType type, const MachineId& machine) {
    RecordInfo& record = commit_.records.emplace_back();
    record.lsn = Lsn(next_lsn_++);
    record.type = type;
    record.machine = machine;
    return record;
  }

  std::uint64_t segment_size_;
  SegmentId segment_{1};
  std::map<MachineId, EpochNumber> open_;  // begun last
  std::uint64_t offset_ = 4096;
  std::uint64_t next_lsn_ = 1;
  std::uint64_t checksum_ = 0;
  CommitInfo commit_;
};

}  // namespace tidemark::storage::fixtures
