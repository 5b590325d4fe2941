#include "storage/log_format.h"

#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "storage/commit_info.h"
#include "wire/block.h"

namespace tidemark::storage {
namespace {

static_assert(std::endian::native == std::endian::little, "the structs are written as they lie in memory");
static_assert(std::has_unique_object_representations_v<CommitHeader>, "no padding");
static_assert(std::has_unique_object_representations_v<RecordEntry>);
static_assert(std::has_unique_object_representations_v<SegmentHeader>);

constexpr std::size_t kSealed = 124;  // bytes before the CRC, in both headers and in every version to come

template <typename Header>
std::span<const std::byte> sealed_bytes(const Header& header) {
  return std::as_bytes(std::span(&header, 1)).first(kSealed);
}

template <typename T>
T load(std::span<const std::byte> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

std::unexpected<Error> broken(std::string what) { return fail(Code::corrupt, "commit", std::move(what)); }

bool known(std::uint8_t type) {
  return type >= static_cast<std::uint8_t>(RecordType::machine) &&
         type <= static_cast<std::uint8_t>(RecordType::history);
}

MachineId machine_of(const RecordEntry& entry) {
  std::array<std::byte, MachineId::kSize> bytes;
  std::memcpy(bytes.data(), entry.machine, bytes.size());
  return MachineId(bytes);
}

std::span<const std::byte> blocks_of(const RecordInfo& record, std::span<const std::byte> payload) {
  return payload.subspan(record.sealed ? kSealedSumSize : 0);
}

// Blocks whose bytes are not what their header says, of the record added last.
Status find_damage(const RecordInfo& record, std::uint32_t record_number, std::span<const std::byte> payload,
                   std::vector<ParsedCommit::Damage>& damaged) {
  wire::BlockReader reader(blocks_of(record, payload), wire::BlockReader::Kind::stored);
  wire::BlockReader::Block block;
  for (std::uint32_t number = record.first_block; TIDEMARK_TRY(reader.next(block)); ++number)
    if (wire::block_hash(record.machine, block.header, block.stored) != block.header.hash())
      damaged.push_back({record_number, number});
  return {};
}

}  // namespace

std::uint64_t commit_checksum(const CommitHeader& header) { return xxh3_64(std::as_bytes(std::span(&header, 1))); }

void seal(CommitHeader& header, std::uint32_t salt) { header.crc = crc32c(sealed_bytes(header), salt); }
void seal(SegmentHeader& header, std::uint32_t salt) { header.crc = crc32c(sealed_bytes(header), salt); }

Result<CommitHeader> parse_commit_header(std::span<const std::byte> bytes, const CommitExpectation& expected) {
  if (bytes.size() < sizeof(CommitHeader)) return broken("is cut off");
  const auto header = load<CommitHeader>(bytes);
  if (header.magic != kCommitMagic) return broken("has no header");
  if (header.crc != crc32c(sealed_bytes(header), expected.salt)) return broken("has a header with a wrong checksum");
  if (header.version != kLogVersion)
    return fail(Code::unsupported, "commit", "is of log version " + std::to_string(header.version),
                "use the Tidemark that wrote it, or a newer one");
  if (header.partition != expected.partition.value()) return broken("is of another partition");
  if (header.segment != expected.segment.value()) return broken("is of another segment");
  if (header.incarnation != expected.incarnation.value()) return broken("is of another incarnation");
  if (header.offset != expected.offset) return broken("belongs to another place");
  // From here on the header is our own writing; what does not fit is still only refused.
  if (header.flags != 0 || header.record_count > limits::kRecordsPerCommitMax || header.size > limits::kCommitSizeMax ||
      header.payload_size > header.size || commit_size(header.payload_size, header.record_count) != header.size ||
      header.first_lsn == 0 || header.durable_lsn >= header.first_lsn)
    return broken("has a header that contradicts itself");
  if (expected.chain) {
    if (header.first_lsn != expected.chain->next_lsn.value())
      return broken("begins with LSN " + std::to_string(header.first_lsn) + " instead of " +
                    std::to_string(expected.chain->next_lsn.value()));
    if (header.previous_checksum != expected.chain->previous_checksum) return broken("follows another commit");
  }
  return header;
}

Result<ParsedCommit> parse_commit(std::span<const std::byte> bytes, const CommitExpectation& expected,
                                  CommitInfo& info) {
  ParsedCommit parsed;
  parsed.header = TIDEMARK_TRY(parse_commit_header(bytes, expected));
  const CommitHeader& header = parsed.header;
  if (header.size > bytes.size()) return broken("is cut off");
  bytes = bytes.first(header.size);

  info = CommitInfo{};
  info.segment = expected.segment;
  info.offset = expected.offset;
  info.size = header.size;
  info.first_lsn = Lsn(header.first_lsn);
  info.last_lsn = Lsn(header.first_lsn + header.record_count - 1);
  info.checksum = commit_checksum(header);
  info.arrival_us = header.arrival_us;
  info.records.reserve(header.record_count);

  Xxh3Stream headers;
  const auto table =
      bytes.subspan(table_offset(header.payload_size), std::size_t{header.record_count} * sizeof(RecordEntry));
  const auto payloads = bytes.subspan(sizeof(CommitHeader), header.payload_size);
  std::size_t at = 0;
  for (std::uint32_t i = 0; i < header.record_count; ++i) {
    const auto entry = load<RecordEntry>(table.subspan(i * sizeof(RecordEntry)));
    if (!known(entry.type) || (entry.flags & ~kSealedRecord) != 0 || entry.payload_size > payloads.size() - at) {
      return broken("has a damaged record table");
    }
    const auto payload = payloads.subspan(at, entry.payload_size);
    RecordInfo record;
    record.lsn = Lsn(header.first_lsn + i);
    record.type = static_cast<RecordType>(entry.type);
    record.machine = machine_of(entry);
    record.disk = DiskId(entry.disk);
    record.sealed = (entry.flags & kSealedRecord) != 0;
    if (!add_record(std::move(record), payload, expected.offset + sizeof(CommitHeader) + at, info, headers))
      return broken("has a damaged record of blocks");
    if (info.records.back().type == RecordType::blocks)
      if (!find_damage(info.records.back(), i, payload, parsed.damaged))
        return broken("has a damaged record of blocks");
    at += entry.payload_size;
  }
  if (at != payloads.size()) return broken("has a damaged record table");
  headers.update(table);
  if (headers.digest() != Hash128{header.headers_hash_low, header.headers_hash_high})
    return broken("has damaged records");
  return parsed;
}

Result<SegmentHeader> parse_segment_header(std::span<const std::byte> bytes, PartitionId partition, std::uint32_t salt,
                                           std::optional<SegmentId> segment) {
  const auto none = [](std::string what) { return fail(Code::not_found, "segment header", std::move(what)); };
  if (bytes.size() < sizeof(SegmentHeader)) return none("is cut off");
  const auto header = load<SegmentHeader>(bytes);
  if (header.magic != kSegmentMagic) return none("is not there");
  // Another partition's salt is not known here, so its CRC cannot be checked; files of our own never name another one.
  if (header.partition != partition.value())
    return fail(
        Code::corrupt, "segment header",
        "names partition " + std::to_string(header.partition) + " instead of " + std::to_string(partition.value()),
        "move the file back to where it belongs");
  if (header.crc != crc32c(sealed_bytes(header), salt)) return none("has a wrong checksum");
  if (header.version != kLogVersion)
    return fail(Code::unsupported, "segment header", "is of log version " + std::to_string(header.version),
                "use the Tidemark that wrote it, or a newer one");
  if (segment && header.segment != segment->value()) return none("is of segment " + std::to_string(header.segment));
  if (header.flags != 0 || header.first_lsn == 0 || header.durable_lsn >= header.first_lsn ||
      header.predecessor >= header.segment || header.incarnation == 0)
    return none("contradicts itself");
  return header;
}

Status add_record(RecordInfo record, std::span<const std::byte> payload, std::uint64_t payload_offset, CommitInfo& info,
                  Xxh3Stream& headers) {
  record.payload_size = static_cast<std::uint32_t>(payload.size());
  if (record.type != RecordType::blocks) {
    record.control.assign(reinterpret_cast<const char*>(payload.data()), payload.size());
    headers.update(payload);
    info.records.push_back(std::move(record));
    return {};
  }
  if (record.sealed && payload.size() < kSealedSumSize) {
    return fail(Code::invalid_argument, "record", "is too short for the sum of its blocks");
  }
  const std::span blocks = blocks_of(record, payload);
  const std::uint64_t blocks_offset = payload_offset + (payload.size() - blocks.size());
  const std::size_t first_block = info.blocks.size();
  record.first_block = static_cast<std::uint32_t>(first_block);
  const auto refuse = [&](std::unexpected<Error> error) {
    info.blocks.resize(first_block);
    return error;
  };
  wire::BlockReader reader(blocks, wire::BlockReader::Kind::stored);
  wire::BlockReader::Block block;
  while (true) {
    auto more = reader.next(block);
    if (!more) return refuse(std::unexpected(std::move(more).error()));
    if (!*more) break;
    const wire::BlockHeader& header = block.header;
    if (record.block_count == 0) record.epoch = EpochNumber(header.epoch);
    if (header.epoch != record.epoch.value() || header.disk != record.disk.value())
      return refuse(fail(Code::invalid_argument, "block", "is of another disk or epoch than its record"));
    info.blocks.push_back({header.first_granule, header.granules, header.stored_size,
                           static_cast<std::uint32_t>(blocks_offset + block.offset),
                           static_cast<wire::Encoding>(header.encoding), header.sealed()});
    ++record.block_count;
    if (!record.sealed) record.sum += header.hash();
  }
  // Only now, when nothing can be refused any more: the hash cannot be taken back.
  if (record.sealed) {
    std::memcpy(&record.sum, payload.data(), kSealedSumSize);
    headers.update(payload.first(kSealedSumSize));
  }
  for (std::size_t i = first_block; i < info.blocks.size(); ++i)
    headers.update(payload.subspan(info.blocks[i].offset - payload_offset, sizeof(wire::BlockHeader)));
  info.records.push_back(std::move(record));
  return {};
}

}  // namespace tidemark::storage
