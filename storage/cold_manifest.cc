#include "storage/cold_manifest.h"

#include <cstring>
#include <vector>

#include "base/checksum.h"
#include "storage/cold_segment.h"
#include "storage/segment_kind.h"

namespace tidemark::storage {

namespace {

constexpr std::uint32_t kMagic = 0x4c4d4454;  // "TDML" in memory
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kSizeMax = 1 << 30;

struct Head {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t count;
};
static_assert(sizeof(Head) == 16);

}  // namespace

Result<bool> ColdManifest::load() {
  const std::string path = directory_ + "/manifest";
  if (!TIDEMARK_TRY(files_.exists(path))) return false;
  const auto bytes = TIDEMARK_TRY(read_whole_file(files_, path, kSizeMax));
  const auto damaged = [&](const char* what) {
    return fail(Code::corrupt, path, what, "restore this file from a backup of the data directory");
  };
  Head head;
  std::uint32_t crc = 0;
  if (bytes.size() < sizeof head + sizeof crc) return damaged("it is cut off");
  std::memcpy(&head, bytes.data(), sizeof head);
  std::memcpy(&crc, bytes.data() + bytes.size() - sizeof crc, sizeof crc);
  if (head.magic != kMagic) return damaged("it is no list of cold segments");
  if (crc32c(std::span(bytes).first(bytes.size() - sizeof crc)) != crc) return damaged("its checksum does not match");
  if (head.version > kVersion) {
    return fail(Code::unsupported, path,
                "it has version " + std::to_string(head.version) + ", which this program does not know",
                "run the version of tidemarkd that wrote it, or a newer one");
  }
  if ((bytes.size() - sizeof head - sizeof crc) / 8 != head.count)
    return damaged("its length does not match its count");
  const std::lock_guard lock(mutex_);
  segments_.clear();
  for (std::uint64_t i = 0; i < head.count; ++i) {
    std::uint64_t number = 0;
    std::memcpy(&number, bytes.data() + sizeof head + i * sizeof number, sizeof number);
    segments_.insert(cold_segment(number));
  }
  return true;
}

std::set<SegmentId> ColdManifest::segments() const {
  const std::lock_guard lock(mutex_);
  return segments_;
}

std::optional<SegmentId> ColdManifest::after(SegmentId segment) const {
  const std::lock_guard lock(mutex_);
  const auto found = segments_.upper_bound(segment);
  return found == segments_.end() ? std::nullopt : std::optional(*found);
}

std::uint64_t ColdManifest::newest() const {
  const std::lock_guard lock(mutex_);
  return segments_.empty() ? 0 : cold_number(*segments_.rbegin());
}

std::uint64_t ColdManifest::bytes() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t bytes = 0;
  for (const auto& [segment, size] : sizes_) bytes += size;
  return bytes;
}

void ColdManifest::measure() {
  const std::lock_guard lock(mutex_);
  measure_new();
}

// One that is not there takes no room; that it should be is not for this to find.
void ColdManifest::measure_new() {
  std::erase_if(sizes_, [&](const auto& known) { return !segments_.contains(known.first); });
  for (const SegmentId segment : segments_) {
    if (sizes_.contains(segment)) continue;
    const auto file = files_.open(cold_path(directory_, segment), OpenMode::read, false);
    if (!file) continue;
    if (const auto size = (*file)->size()) sizes_[segment] = *size;
  }
}

Status ColdManifest::write(std::set<SegmentId> segments) {
  const Head head{.magic = kMagic, .version = kVersion, .count = segments.size()};
  std::vector<std::byte> bytes;
  const auto put = [&](const auto& value) {
    const auto raw = std::as_bytes(std::span(&value, 1));
    bytes.insert(bytes.end(), raw.begin(), raw.end());
  };
  put(head);
  for (const SegmentId segment : segments) put(cold_number(segment));
  put(crc32c(bytes));
  unsure_ = true;
  TIDEMARK_TRY(write_file_atomically(files_, directory_ + "/manifest", bytes));
  unsure_ = false;
  segments_ = std::move(segments);
  measure_new();
  return {};
}

Status ColdManifest::create() {
  const std::lock_guard lock(mutex_);
  return write({});
}

Status ColdManifest::add(std::span<const SegmentId> segments) {
  const std::lock_guard lock(mutex_);
  auto next = segments_;
  next.insert(segments.begin(), segments.end());
  return next == segments_ && !unsure_ ? Status() : write(std::move(next));
}

Status ColdManifest::remove(std::span<const SegmentId> segments) {
  const std::lock_guard lock(mutex_);
  auto next = segments_;
  for (const SegmentId segment : segments) next.erase(segment);
  return next == segments_ && !unsure_ ? Status() : write(std::move(next));
}

}  // namespace tidemark::storage
