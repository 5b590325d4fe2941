#include "storage/released.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/planted.h"

namespace tidemark::storage {

namespace {

constexpr std::uint32_t kMagic = 0x524d4454;  // "TDMR" in memory
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kSizeMax = 1 << 30;

struct Head {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t begin;
  std::uint64_t begin_lsn;
  std::uint32_t machines;
  std::uint32_t segments;
};
static_assert(sizeof(Head) == 32);

std::string path_of(const std::string& directory) { return directory + "/released"; }

}  // namespace

bool Released::tells_of(SegmentId segment) const {
  return segment < begin || std::ranges::any_of(
                                segments,
                                [&](const SegmentHeader& header) {
                                  return header.predecessor < segment.value() && segment.value() <= header.segment;
                                });
}

void Released::join_neighbours() {
  std::ranges::sort(segments, {}, &SegmentHeader::segment);
  std::vector<SegmentHeader> joined;
  for (const SegmentHeader& header : segments) {
    if (joined.empty() || header.predecessor != joined.back().segment) {
      joined.push_back(header);
      continue;
    }
    SegmentHeader& first = joined.back();
    SegmentHeader all = header;
    if (!planted(Planted::released_run_unlinked)) {
      all.first_lsn = first.first_lsn;
      all.predecessor = first.predecessor;
      all.predecessor_end = first.predecessor_end;
      all.predecessor_checksum = first.predecessor_checksum;
    }
    first = all;
  }
  segments = std::move(joined);
}

std::vector<std::byte> encode_released(const Released& released) {
  std::vector<std::byte> bytes;
  const auto put = [&](const void* from, std::size_t size) {
    const auto* first = static_cast<const std::byte*>(from);
    bytes.insert(bytes.end(), first, first + size);
  };
  const Head head{.magic = kMagic,
                  .version = kVersion,
                  .begin = released.begin.value(),
                  .begin_lsn = released.begin_lsn.value(),
                  .machines = static_cast<std::uint32_t>(released.removed.size()),
                  .segments = static_cast<std::uint32_t>(released.segments.size())};
  put(&head, sizeof head);
  for (const MachineId& machine : released.removed) put(machine.bytes().data(), MachineId::kSize);
  for (const SegmentHeader& segment : released.segments) put(&segment, sizeof segment);
  const std::uint32_t crc = crc32c(bytes);
  put(&crc, sizeof crc);
  return bytes;
}

Result<Released> decode_released(std::span<const std::byte> bytes, const std::string& path) {
  const auto damaged = [&](const char* what) {
    return fail(Code::corrupt, path, what, "restore this file from a backup of the data directory");
  };
  Head head;
  std::uint32_t crc = 0;
  if (bytes.size() < sizeof head + sizeof crc) return damaged("it is cut off");
  std::memcpy(&head, bytes.data(), sizeof head);
  std::memcpy(&crc, bytes.data() + bytes.size() - sizeof crc, sizeof crc);
  if (head.magic != kMagic) return damaged("it is no list of released segments");
  if (crc32c(bytes.first(bytes.size() - sizeof crc)) != crc) return damaged("its checksum does not match");
  if (head.version > kVersion) {
    return fail(Code::unsupported, path,
                "it has version " + std::to_string(head.version) + ", which this program does not know",
                "run the version of tidemarkd that wrote it, or a newer one");
  }
  const std::uint64_t expected = sizeof head + std::uint64_t{head.machines} * MachineId::kSize +
                                 std::uint64_t{head.segments} * sizeof(SegmentHeader) + sizeof crc;
  if (bytes.size() != expected) return damaged("its length does not match what it lists");
  Released released;
  released.begin = SegmentId(head.begin);
  released.begin_lsn = Lsn(head.begin_lsn);
  const std::byte* at = bytes.data() + sizeof head;
  for (std::uint32_t i = 0; i < head.machines; ++i, at += MachineId::kSize) {
    std::array<std::byte, MachineId::kSize> id;
    std::memcpy(id.data(), at, id.size());
    released.removed.emplace_back(id);
  }
  for (std::uint32_t i = 0; i < head.segments; ++i, at += sizeof(SegmentHeader)) {
    std::memcpy(&released.segments.emplace_back(), at, sizeof(SegmentHeader));
  }
  return released;
}

Status write_released(FileSystem& files, const std::string& directory, const Released& released) {
  return write_file_atomically(files, path_of(directory), encode_released(released));
}

Result<Released> read_released(FileSystem& files, const std::string& directory) {
  const std::string path = path_of(directory);
  if (!TIDEMARK_TRY(files.exists(path))) return Released();
  return decode_released(TIDEMARK_TRY(read_whole_file(files, path, kSizeMax)), path);
}

}  // namespace tidemark::storage
