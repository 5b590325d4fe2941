// Shared by checker*.cc only.
#pragma once

#include "base/aligned_buffer.h"
#include "storage/checker.h"
#include "storage/log_format.h"
#include "storage/sealing.h"
#include "wire/block.h"

namespace tidemark::storage {

struct Checker::Block {
  MachineId machine;
  VolumeId volume;
  DiskId disk;
  Lsn lsn;
  Extent extent;  // the block's part of it

  std::uint64_t end() const { return std::uint64_t{extent.offset} + limits::kBlockHeaderSize + extent.stored_size; }
  std::uint32_t region() const {
    return static_cast<std::uint32_t>(extent.block_first_granule / limits::kRegionGranules);
  }
  static Extent whole(std::uint64_t first_granule, std::uint32_t granules, wire::Encoding encoding, SegmentId segment,
                      std::uint32_t offset, std::uint32_t stored_size, EpochNumber epoch, bool sealed) {
    return {.first_granule = first_granule,
            .granules = granules,
            .block_first_granule = first_granule,
            .block_granules = granules,
            .encoding = encoding,
            .segment = segment,
            .offset = offset,
            .stored_size = stored_size,
            .epoch = epoch,
            .sealed = sealed};
  }
};

// The segment of the log in which the mark stands.
struct Checker::Walk {
  SegmentId segment;
  Incarnation incarnation;
  std::shared_ptr<File> file;
  // What was read of it: [start, start + size).
  AlignedBuffer window;
  std::uint64_t start = 0;
  std::size_t size = 0;
  std::size_t last_commit = 0;
  std::optional<Lsn> no_commit_as_of;  // behind the mark, when the index had this much: damage, as far as it is known

  bool fresh(std::uint64_t offset) const { return size != 0 && start == offset; }
  std::span<const std::byte> at(std::uint64_t offset) const {
    if (offset < start || offset >= start + size) return {};
    return std::span(window.data(), size).subspan(offset - start);
  }
};

struct Checker::Scratch {
  explicit Scratch(std::shared_ptr<const VolumeKeys> keys) : decoder(std::move(keys)) {}
  StoredDecoder decoder;
  AlignedBuffer plain{limits::kBlockPlainSizeMax};
  AlignedBuffer piece;
  std::uint64_t since_pause = 0;
};

inline LogMark mark_of(const pb::IntegrityRecord& record) {
  const auto& mark = record.checked();
  return {.segment = SegmentId(mark.segment()),
          .offset = mark.offset(),
          .lsn = Lsn(mark.lsn()),
          .checksum = mark.checksum()};
}

inline void set_mark(pb::IntegrityRecord& record, const LogMark& mark) {
  auto& to = *record.mutable_checked();
  to.set_segment(mark.segment.value());
  to.set_offset(mark.offset);
  to.set_lsn(mark.lsn.value());
  to.set_checksum(mark.checksum);
}

}  // namespace tidemark::storage
