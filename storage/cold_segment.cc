#include "storage/cold_segment.h"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include "base/checksum.h"
#include "base/planted.h"
#include "base/units.h"
#include "storage/log_format.h"

namespace tidemark::storage {

namespace {

constexpr std::uint32_t kHeaderMagic = 0x434d4454;  // "TDMC" in memory
constexpr std::uint32_t kFooterMagic = 0x464d4454;  // "TDMF" in memory
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kBufferSize = 1 << 20;
constexpr std::size_t kSealed = 60;
constexpr std::string_view kSuffix = ".segment";

template <typename T>
std::uint32_t seal_of(const T& sealed, std::uint32_t salt) {
  return crc32c(std::as_bytes(std::span(&sealed, 1)).first(kSealed), salt);
}

std::optional<SegmentId> parse_name(std::string_view name) {
  if (name.size() != 16 + kSuffix.size() || !name.ends_with(kSuffix)) return std::nullopt;
  std::uint64_t number = 0;
  const auto read = std::from_chars(name.data(), name.data() + 16, number, 16);
  if (read.ec != std::errc() || read.ptr != name.data() + 16 || number == 0) return std::nullopt;
  return cold_segment(number);
}

}  // namespace

std::string cold_path(const std::string& cold_directory, SegmentId segment) {
  return fmt::format("{}/{:016x}{}", cold_directory, cold_number(segment), kSuffix);
}

ColdWriter::ColdWriter(FileSystem& files, std::string directory, SegmentId segment, PartitionId partition,
                       std::uint32_t salt)
    : files_(files),
      directory_(std::move(directory)),
      segment_(segment),
      partition_(partition),
      salt_(salt),
      temporary_(cold_path(directory_, segment) + ".tmp"),
      buffer_(kBufferSize) {}

Result<std::unique_ptr<ColdWriter>> ColdWriter::create(FileSystem& files, const std::string& cold_directory,
                                                       SegmentId segment, PartitionId partition, std::uint32_t salt) {
  std::unique_ptr<ColdWriter> writer(new ColdWriter(files, cold_directory, segment, partition, salt));
  writer->file_ = TIDEMARK_TRY(files.open(writer->temporary_, OpenMode::create, true));
  ColdHeader header{};
  header.magic = kHeaderMagic;
  header.version = kVersion;
  header.partition = partition.value();
  header.number = cold_number(segment);
  header.crc = seal_of(header, salt);
  TIDEMARK_TRY(writer->append(std::as_bytes(std::span(&header, 1))));
  TIDEMARK_TRY(writer->pad());
  return writer;
}

ColdWriter::~ColdWriter() {
  if (finished_ || !file_) return;
  file_.reset();
  // What cannot be removed now is removed at the next start.
  [[maybe_unused]] const auto removed = files_.remove(temporary_);
}

Status ColdWriter::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t n = std::min(bytes.size(), buffer_.size() - buffered_);
    std::memcpy(buffer_.data() + buffered_, bytes.data(), n);
    buffered_ += n;
    offset_ += n;
    bytes = bytes.subspan(n);
    if (buffered_ == buffer_.size()) {
      TIDEMARK_TRY(file_->write_at(offset_ - buffered_, buffer_.span()));
      buffered_ = 0;
    }
  }
  return {};
}

Status ColdWriter::pad() {
  static constexpr std::array<std::byte, limits::kIoAlignment> kZeroes{};
  return append(std::span(kZeroes).first(round_up(offset_, limits::kIoAlignment) - offset_));
}

Result<std::uint32_t> ColdWriter::add_block(std::span<const std::byte> block) {
  const auto at = static_cast<std::uint32_t>(offset_);
  TIDEMARK_TRY(append(block));
  return at;
}

void ColdWriter::add_extent(VolumeId volume, std::uint32_t region, Lsn lsn, EpochNumber epoch,
                            const DeltaExtent& extent) {
  ColdEntry& entry = table_.emplace_back();
  entry = {.volume = volume.value(),
           .region = region,
           .lsn = lsn.value(),
           .epoch = epoch.value(),
           .offset = extent.offset,
           .stored_size = extent.stored_size,
           .first = static_cast<std::uint16_t>(extent.first),
           .count = static_cast<std::uint16_t>(extent.count),
           .encoding = static_cast<std::uint8_t>(extent.encoding),
           .flags = extent.sealed ? wire::kSealedFlag : std::uint8_t{0},
           .reserved = {}};
}

Status ColdWriter::finish() {
  TIDEMARK_TRY(pad());
  const auto table = std::as_bytes(std::span(table_));
  const Hash128 hash = xxh3_128(table);
  ColdFooter footer{};
  footer.magic = kFooterMagic;
  footer.count = static_cast<std::uint32_t>(table_.size());
  footer.number = cold_number(segment_);
  footer.table_offset = offset_;
  footer.table_hash_low = hash.low;
  footer.table_hash_high = hash.high;
  footer.crc = seal_of(footer, salt_);
  TIDEMARK_TRY(append(table));
  TIDEMARK_TRY(pad());
  TIDEMARK_TRY(append(std::as_bytes(std::span(&footer, 1))));
  TIDEMARK_TRY(pad());
  if (buffered_ != 0) TIDEMARK_TRY(file_->write_at(offset_ - buffered_, buffer_.span().first(buffered_)));
  if (!planted(Planted::settled_unsynced)) TIDEMARK_TRY(file_->sync());
  file_.reset();
  TIDEMARK_TRY(files_.rename(temporary_, cold_path(directory_, segment_)));
  finished_ = true;
  return files_.sync_directory(directory_);
}

Result<std::vector<ColdExtent>> read_cold_table(File& file, SegmentId segment, PartitionId partition,
                                                std::uint32_t salt) {
  const auto bad = [&](std::string what) {
    return fail(Code::corrupt, file.path(), std::move(what),
                "restore this file, or the data directory, from a copy; other points may be intact");
  };
  const std::uint64_t size = TIDEMARK_TRY(file.size());
  if (size < 2 * limits::kIoAlignment || size % limits::kIoAlignment != 0 || size > UINT32_MAX) {
    return bad("its size is impossible");
  }
  AlignedBuffer block(limits::kIoAlignment);
  ColdHeader header;
  ColdFooter footer;
  if (TIDEMARK_TRY(file.read_at(0, block.span())) != block.size()) return bad("it is cut off");
  std::memcpy(&header, block.data(), sizeof header);
  if (TIDEMARK_TRY(file.read_at(size - limits::kIoAlignment, block.span())) != block.size()) {
    return bad("it is cut off");
  }
  std::memcpy(&footer, block.data(), sizeof footer);
  if (header.magic != kHeaderMagic || header.crc != seal_of(header, salt)) return bad("its header is damaged");
  if (header.version != kVersion) {
    return fail(Code::unsupported, file.path(), fmt::format("it is of version {}", header.version),
                "use the Tidemark that wrote it, or a newer one");
  }
  if (header.partition != partition.value() || header.number != cold_number(segment)) {
    return bad("it belongs to another place");
  }
  if (footer.magic != kFooterMagic || footer.crc != seal_of(footer, salt) || footer.number != header.number) {
    return bad("its footer is damaged");
  }
  const std::uint64_t bytes = std::uint64_t{footer.count} * sizeof(ColdEntry);
  if (footer.table_offset % limits::kIoAlignment != 0 ||
      footer.table_offset + round_up(bytes, limits::kIoAlignment) + limits::kIoAlignment != size) {
    return bad("its footer contradicts its size");
  }
  AlignedBuffer table(std::max<std::uint64_t>(bytes, 1));
  if (bytes != 0 && TIDEMARK_TRY(file.read_at(footer.table_offset, table.span())) < bytes) return bad("it is cut off");
  if (xxh3_128(table.span().first(bytes)) != Hash128{footer.table_hash_low, footer.table_hash_high}) {
    return bad("its table is damaged");
  }
  std::vector<ColdExtent> extents;
  extents.reserve(footer.count);
  for (std::uint32_t i = 0; i < footer.count; ++i) {
    ColdEntry entry;
    std::memcpy(&entry, table.data() + i * sizeof entry, sizeof entry);
    extents.push_back({.volume = VolumeId(entry.volume),
                       .region = entry.region,
                       .lsn = Lsn(entry.lsn),
                       .epoch = EpochNumber(entry.epoch),
                       .extent = {.first = entry.first,
                                  .count = entry.count,
                                  .encoding = static_cast<wire::Encoding>(entry.encoding),
                                  .offset = entry.offset,
                                  .stored_size = entry.stored_size,
                                  .sealed = (entry.flags & wire::kSealedFlag) != 0}});
  }
  return extents;
}

Result<std::vector<SegmentId>> list_cold_segments(FileSystem& files, const std::string& cold_directory) {
  std::vector<SegmentId> segments;
  for (const std::string& name : TIDEMARK_TRY(files.list(cold_directory))) {
    if (name.ends_with(".tmp")) {
      TIDEMARK_TRY(files.remove(cold_directory + "/" + name));
    } else if (const auto segment = parse_name(name)) {
      segments.push_back(*segment);
    }
  }
  return segments;
}

}  // namespace tidemark::storage
