// What recovery reads from a disk: segment headers and commits from arbitrary bytes. The fuzzer cannot guess a CRC, so
// the input is tried as it is and with its headers sealed and their expectations met, to reach what lies behind.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "storage/commit_info.h"
#include "storage/log_format.h"

using namespace tidemark;
using namespace tidemark::storage;

namespace {

constexpr std::uint32_t kSalt = 0x5eed5a17;

void require(bool holds) {
  if (!holds) std::abort();
}

// Whatever is taken lies within the commit and adds up.
void check(const ParsedCommit& parsed, const CommitInfo& info, std::size_t size) {
  require(info.size <= size && info.records.size() == parsed.header.record_count);
  require(info.last_lsn.value() + 1 == info.first_lsn.value() + info.records.size());
  std::uint64_t payload = 0, blocks = 0;
  for (const RecordInfo& record : info.records) {
    payload += record.payload_size;
    require(record.first_block == blocks || record.block_count == 0);
    blocks += record.block_count;
    if (record.type != RecordType::blocks) require(record.control.size() == record.payload_size);
  }
  require(payload == parsed.header.payload_size && blocks == info.blocks.size());
  for (const BlockPlace& block : info.blocks) {
    require(block.offset >= info.offset + sizeof(CommitHeader));
    require(std::uint64_t{block.offset} + limits::kBlockHeaderSize + block.stored_size <= info.offset + info.size);
  }
  for (const ParsedCommit::Damage& damage : parsed.damaged)
    require(damage.record < info.records.size() && damage.block < info.blocks.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto segment = parse_segment_header(bytes, PartitionId(7), kSalt, SegmentId(3));
  if (segment) require(segment->segment == 3 && segment->predecessor < 3);

  CommitInfo info;
  CommitExpectation expected{PartitionId(7), kSalt, SegmentId(3), Incarnation(2), 4096, std::nullopt};
  if (const auto parsed = parse_commit(bytes, expected, info)) check(*parsed, info, size);

  if (size < sizeof(CommitHeader)) return 0;
  std::vector<std::byte> sealed(bytes.begin(), bytes.end());
  CommitHeader header;
  std::memcpy(&header, sealed.data(), sizeof header);
  header.magic = kCommitMagic;
  header.version = kLogVersion;
  header.flags = 0;
  header.partition = 7;
  header.segment = 3;
  header.incarnation = 2;
  header.offset = 4096;
  header.record_count %= 8;
  header.payload_size %= 16384;
  header.size = static_cast<std::uint32_t>(commit_size(header.payload_size, header.record_count));
  header.first_lsn = header.first_lsn % 1000 + 1;
  header.durable_lsn %= header.first_lsn;
  sealed.resize(header.size);
  // The hash that these headers have: as the log makes it, from the records as they stand there.
  Xxh3Stream headers;
  CommitInfo made;
  std::size_t at = sizeof(CommitHeader);
  const std::size_t table = table_offset(header.payload_size);
  for (std::uint32_t i = 0; i < header.record_count; ++i) {
    RecordEntry entry;
    std::memcpy(&entry, sealed.data() + table + i * sizeof entry, sizeof entry);
    if (entry.payload_size > table - at) break;
    RecordInfo record;
    record.type = static_cast<RecordType>(entry.type);
    record.disk = DiskId(entry.disk);
    if (!add_record(std::move(record), std::span(sealed).subspan(at, entry.payload_size), 4096 + at, made, headers))
      break;
    at += entry.payload_size;
  }
  headers.update(std::span(sealed).subspan(table, header.record_count * sizeof(RecordEntry)));
  const Hash128 hash = headers.digest();
  header.headers_hash_low = hash.low;
  header.headers_hash_high = hash.high;
  seal(header, kSalt);
  std::memcpy(sealed.data(), &header, sizeof header);
  if (const auto parsed = parse_commit(sealed, expected, info)) check(*parsed, info, sealed.size());
  return 0;
}
